# SPDX-License-Identifier: Apache-2.0
"""Random factors of covariances in every layout, and the dense matrices they stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import tikhonov_inputs as ti
import torch
from torch import Tensor

# N, r, k: one and several of everything, more columns than rows, neither a multiple of a vector.
SIZES = [
    (1, 1, 1),
    (1, 5, 7),
    (7, 1, 5),
    (7, 21, 1),
    (31, 5, 5),
    (31, 26, 7),
    (144, 21, 5),
    (144, 1, 1),
    (257, 26, 5),
    (257, 5, 7),
]


@dataclass
class Factors:
    """X [B, N, r], rho [B], Y [B, N, k] (a target's factor or steering vectors)."""

    x: Tensor
    rho: Tensor
    y: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x, self.rho, self.y

    def wide(self) -> Factors:
        """The same values on the CPU in double precision, as autograd leaves."""
        x, y = (t.detach().cpu().to(torch.complex128).requires_grad_() for t in (self.x, self.y))
        return Factors(x, self.rho.detach().cpu().double().requires_grad_(), y)

    def leaves(self) -> Factors:
        """The same tensors, strides included, as autograd leaves."""
        return Factors(*(t.detach().requires_grad_() for t in self.tensors))


def make(
    b: int, n: int, r: int, k: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> Factors:
    """Columns of unit mean energy."""
    g = torch.Generator().manual_seed(seed)
    x, y = (
        (ti.complex_normal(b, n, c, dtype=torch.complex128, seed=g) / n**0.5).to(dtype).to(device)
        for c in (r, k)
    )
    rho = torch.rand(b, dtype=torch.float64, generator=g)
    return Factors(x, rho.to(dtype.to_real()).to(device), y)


def layouts(f: Factors) -> dict[str, Factors]:
    """The same or other values with every kind of stride."""
    b = f.x.shape[0]
    transposed = [t.mT.contiguous().mT for t in (f.x, f.y)]
    apart = [torch.stack([t, -t], -1)[..., 0] for t in (f.x, f.y)]
    return {
        "transposed": replace(f, x=transposed[0], y=transposed[1]),
        "mixed": replace(f, x=transposed[0]),
        "strided": replace(f, x=apart[0], y=apart[1], rho=torch.stack([f.rho, f.rho], 1)[:, 0]),
        "expanded": Factors(
            f.x[:1].expand_as(f.x), f.rho[:1].expand(b), f.y[..., :1].expand_as(f.y)
        ),
        "conjugated": replace(f, x=f.x.conj(), y=f.y.mT.contiguous().mH),
        "sliced": replace(f, x=f.x[:, ::2], y=f.y[:, 1::2][:, : f.x[:, ::2].shape[1]]),
    }


def dense(x: Tensor, rho: Tensor | None = None) -> Tensor:
    """X X^H + rho I."""
    gram = x @ x.mH
    if rho is None:
        return gram
    return gram + rho[:, None, None] * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def close(actual: Tensor, expected: Tensor, tolerance: float, floor: float = 0.0) -> None:
    """|actual - expected| at most tolerance (|expected| + floor).

    ``floor`` is the size of the terms that cancel in a small result.
    """
    assert actual.shape == expected.shape
    got, want = (t.detach().cpu().to(torch.complex128) for t in (actual, expected))
    error, allowed = (got - want).norm().item(), tolerance * (want.norm().item() + floor)
    # Written so that NaN fails.
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"
