# SPDX-License-Identifier: Apache-2.0
"""Random inputs of the Tikhonov operators, and their oracle, the N-side definition."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

SIZES = list(itertools.product((1, 7, 16, 33), (1, 31, 144, 257), (1, 5, 16)))  # M, N, L


@dataclass
class Inputs:
    """y, h, codes of one call."""

    y: Tensor
    h: Tensor
    codes: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.y, self.h, self.codes

    def oracle(self) -> Inputs:
        """The same values in complex128 on the CPU, as autograd leaves."""
        return Inputs(
            *(t.detach().cpu().to(torch.complex128).requires_grad_() for t in self.tensors)
        )

    def leaves(self) -> Inputs:
        """The same values as autograd leaves."""
        return Inputs(*(t.detach().requires_grad_() for t in self.tensors))


def complex_normal(*shape: int, dtype: torch.dtype, seed: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=seed).to(dtype)


def make(
    b: int,
    snapshots: int,
    m: int,
    n: int,
    dtype: torch.dtype = torch.complex128,
    *,
    per_snapshot: bool = False,
    modulus: str = "unit",
    device: str = "cpu",
    seed: int = 0,
) -> Inputs:
    """modulus: "unit", "varying" (over l and n), or "tapered" (over n alone)."""
    g = torch.Generator().manual_seed(seed)
    shape = (b, snapshots, m, n) if per_snapshot else (b, m, n)
    amplitude = torch.ones(b, snapshots, n, dtype=torch.float64)
    if modulus == "varying":
        amplitude = 0.5 + torch.rand(b, snapshots, n, dtype=torch.float64, generator=g)
    elif modulus == "tapered":
        amplitude = (0.5 + torch.rand(b, 1, n, dtype=torch.float64, generator=g)) * amplitude
    phase = 2 * torch.pi * torch.rand(b, snapshots, n, dtype=torch.float64, generator=g)
    return Inputs(
        complex_normal(b, snapshots, m, dtype=dtype, seed=g).to(device),
        (complex_normal(*shape, dtype=torch.complex128, seed=g) / n**0.5).to(dtype).to(device),
        torch.polar(amplitude, phase).to(dtype).to(device),
    )


def snapshots_oracle(inputs: Inputs, alpha: float, relative: bool = False) -> Tensor:
    """(Phi^H Phi + alpha I)^{-1} Phi^H y, as it is written."""
    y, h, codes = inputs.tensors
    phi = (h if h.dim() == 4 else h.unsqueeze(1)) * codes.unsqueeze(2)
    n = phi.shape[-1]
    loading = torch.full(y.shape[:2], alpha, dtype=y.real.dtype)
    if relative:
        loading = alpha * phi.abs().square().sum((-2, -1)) / n
    identity = torch.eye(n, dtype=y.dtype)
    system = phi.mH @ phi + loading[..., None, None] * identity
    return torch.linalg.solve(system, phi.mH @ y.unsqueeze(-1)).squeeze(-1)


def covariance_oracle(
    inputs: Inputs, alpha: float, relative: bool = False, center: bool = False
) -> Tensor:
    """Mean outer product of the oracle's snapshots."""
    a = snapshots_oracle(inputs, alpha, relative)
    if center:
        a = a - a.mean(1, keepdim=True)
    return torch.einsum("bli,blj->bij", a, a.conj()) / a.shape[1]


def condition(inputs: Inputs, alpha: float, relative: bool = False) -> float:
    """Largest 2-norm condition number of the systems S = Phi Phi^H + alpha I that are solved."""
    _, h, codes = (t.detach() for t in inputs.oracle().tensors)
    phi = (h if h.dim() == 4 else h.unsqueeze(1)) * codes.unsqueeze(2)
    values = torch.linalg.svdvals(phi).square()
    loading = torch.full(values.shape[:-1], alpha, dtype=values.dtype)
    if relative:
        loading = alpha * values.sum(-1) / phi.shape[-1]
    smallest = values[..., -1] if phi.shape[-2] <= phi.shape[-1] else torch.zeros_like(loading)
    return float(((values[..., 0] + loading) / (smallest + loading)).max())


def inner(value: Tensor, weight: Tensor) -> Tensor:
    """Re<weight, value>: a real loss whose gradient to value is weight."""
    return (value * weight.conj()).real.sum()


def aligned_weight(value: Tensor) -> Tensor:
    """A random gradient to ``value`` with a part along it.

    A gradient without one can cancel almost completely in a small input; its relative error then
    says nothing about the backward.
    """
    noise = torch.randn(value.shape, dtype=torch.complex128)
    return value.detach() / value.detach().norm() + noise / noise.norm()
