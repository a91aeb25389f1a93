# SPDX-License-Identifier: Apache-2.0
"""Definitions of the blend, the leakage and the factored operators, which build every N x N matrix.

They are evaluated in complex128, step by step as the operators' documentation has them, and
differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import test_hermitian_nmse as nmse
import tikhonov_inputs as ti
import torch
from torch import Tensor

from riskernels.testing import assert_close, tolerance

C64, C128 = torch.complex64, torch.complex128


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return ti.complex_normal(*shape, dtype=dtype, seed=torch.Generator().manual_seed(seed))


def loadings(scenes: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(0.3, 0.9, scenes, dtype=dtype.to_real())


def outer(x: Tensor) -> Tensor:
    return x @ x.mH


def covariance(scenes: int, n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Hermitian, of a trace that is neither N nor the same in every scene."""
    return outer(normal(scenes, n, n, dtype=C128, seed=seed)).to(dtype)


def trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).real.sum(-1)[:, None, None]


def blend(
    pred: Tensor,
    samp: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> Tensor:
    """The definition, step by step, for traces > 0."""
    n = pred.shape[-1]
    identity = torch.eye(n, dtype=C128)
    one, two = (n * (x + x.mH) / 2 / trace(x) for x in (pred, samp.detach()))
    value = (1 - beta) * one + beta * two
    value = value + loading * trace(value) / n * identity
    value = (1 - shrinkage) * value + shrinkage * trace(value) / n * identity
    return value * (n if target_trace is None else target_trace) / trace(value)


def factored_blend(
    factor: Tensor,
    snapshots: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The same steps on the weights of R = p A A^H + s V V^H / L + d I, for traces > 0."""
    n, count = factor.shape[1], snapshots.shape[1]
    v = snapshots.detach().mT
    of_pred, of_samp = factor.abs().square().sum((1, 2)), v.abs().square().sum((1, 2)) / count

    def scale(weight: Tensor) -> Tensor:
        return weight[:, None, None].sqrt()

    def mean() -> Tensor:
        return (p * of_pred + s * of_samp) / n + d

    p, s, d = (1 - beta) * n / of_pred, beta * n / of_samp, torch.zeros_like(of_pred)
    d = d + loading * mean()
    p, s, d = (1 - shrinkage) * p, (1 - shrinkage) * s, (1 - shrinkage) * d + shrinkage * mean()
    final = (n if target_trace is None else target_trace) / n / mean()
    # Every normalisation is relative: the rest does not depend on the factor.
    s, d = (s * final).detach(), (d * final).detach()
    return torch.cat([scale(p * final) * factor, scale(s / count) * v], -1), d


def projector(steering: Tensor, count: int, ridge: float) -> Tensor:
    s = steering[:, : min(max(count, 0), steering.shape[1])]
    gram = s.mH @ s + ridge * torch.eye(s.shape[1], dtype=C128)
    return s @ torch.linalg.solve(gram, s.mH)


def leakage(cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float = 1e-4) -> Tensor:
    """|R|^2 - 2 |Q^H R|^2 + |Q^H R Q|^2 over |R|^2, from Q Q^H = 2P - P^2."""
    values = []
    for r, s, count in zip(cov, steering, num_sources.tolist(), strict=True):
        p = projector(s, count, ridge)
        inside = 2 * p - p @ p
        energy = r.abs().square().sum()
        parts = -2 * inside @ r + inside @ r @ inside
        values.append(1 + (r.conj() * parts).sum().real / energy)
    return torch.stack(values)


def dense(factor: Tensor, rho: Tensor | None) -> Tensor:
    value = outer(factor)
    if rho is not None:
        value = value + rho[:, None, None] * torch.eye(factor.shape[1], dtype=C128)
    return value


def factored_nmse(x: Tensor, rho: Tensor | None, y: Tensor, *args: Any, **options: Any) -> Tensor:
    return nmse.oracle(dense(x, rho), outer(y), *args, **options)


def factored_leakage(x: Tensor, rho: Tensor | None, *args: Any) -> Tensor:
    return leakage(dense(x, rho), *args)


def wide(value: Any) -> Any:
    """Tensors of numbers in double precision."""
    if not isinstance(value, Tensor) or not (value.is_complex() or value.is_floating_point()):
        return value
    return value.detach().resolve_conj().to(C128 if value.is_complex() else torch.float64)


def outputs_and_gradients(
    function: Callable[..., Any], arguments: Sequence[Any], leaves: Sequence[int], options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients to some arguments for the same weights at every precision."""
    arguments = list(arguments)
    for index in leaves:
        arguments[index] = arguments[index].detach().requires_grad_()
    value = function(*arguments, **options)
    values = [value] if isinstance(value, Tensor) else list(value)
    live = [v for v in values if v.requires_grad]
    weights = [
        normal(*v.shape, dtype=C128, seed=7).to(v.dtype)
        if v.is_complex()
        else torch.linspace(-1, 2, v.numel(), dtype=v.dtype).reshape(v.shape)
        for v in live
    ]
    return values, list(torch.autograd.grad(live, [arguments[i] for i in leaves], weights))


def check(
    actual: Callable[..., Any],
    oracle: Callable[..., Any],
    arguments: Sequence[Any],
    leaves: Sequence[int],
    condition: float = 1.0,
    **options: Any,
) -> None:
    dtype = arguments[0].dtype
    got = outputs_and_gradients(actual, arguments, leaves, options)
    want = outputs_and_gradients(oracle, [wide(a) for a in arguments], leaves, options)
    for kind, ours, theirs in zip(("output", "gradient"), got, want, strict=True):
        for index, (g, w) in enumerate(zip(ours, theirs, strict=True)):
            assert g.dtype in (dtype, dtype.to_real()) and g.is_contiguous()
            assert_close(g, w, tolerance(dtype, condition), f"{actual.__name__} {kind} {index}")
