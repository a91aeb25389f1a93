# SPDX-License-Identifier: Apache-2.0
"""The small algebra of ``factored_leakage`` in PyTorch, for more sources than a program holds.

Its matrices are [B, c, c] in complex128; see the reference for the derivation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riskernels.reference.subspace_leakage import leakage_transform
from riskernels.reference.tikhonov_snapshots import adjoint


class Algebra(NamedTuple):
    """The small matrices of a scene, complex128, and |R|^2 and tr G_xx, float64."""

    gram: Tensor
    transform: Tensor
    coupling: Tensor
    basis_gram: Tensor
    inner: Tensor
    loading: Tensor
    total: Tensor
    trace: Tensor


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).real.sum(-1)


def _energy(x: Tensor) -> Tensor:
    return torch.view_as_real(x).square().sum((1, 2, 3))


def _algebra(
    gram: Tensor, r: int, rho: Tensor | None, num_sources: Tensor, elements: int, ridge: float
) -> Algebra:
    xx, sx, ss = (part.contiguous() for part in (gram[:, :r, :r], gram[:, r:, :r], gram[:, r:, r:]))
    transform = leakage_transform(ss, num_sources, ridge)
    coupling = adjoint(transform) @ sx
    basis_gram = adjoint(transform) @ ss @ transform
    loading = torch.zeros_like(xx[:, 0, 0].real) if rho is None else rho.resolve_neg().double()
    inner = coupling @ adjoint(coupling) + loading[:, None, None] * basis_gram
    trace = _trace(xx)
    total = _energy(xx) + 2 * loading * trace + loading.square() * elements
    return Algebra(xx, transform, coupling, basis_gram, inner, loading, total, trace)


def leakage_of_gram(
    gram: Tensor, r: int, rho: Tensor | None, num_sources: Tensor, elements: int, ridge: float
) -> Tensor:
    """The leakage [B] in float64."""
    a = _algebra(gram, r, rho, num_sources, elements, ridge)
    projected = _trace(a.coupling @ a.gram @ adjoint(a.coupling)) + 2 * a.loading * _energy(
        a.coupling
    )
    projected = projected + a.loading.square() * _trace(a.basis_gram)
    outside = (a.total - 2 * projected + _energy(a.inner)).clamp(min=0)
    return torch.where(a.total == 0, torch.zeros_like(a.total), outside / a.total)


def slopes_of_gram(
    grad: Tensor,
    leakage: Tensor,
    gram: Tensor,
    r: int,
    rho: Tensor | None,
    num_sources: Tensor,
    elements: int,
    ridge: float,
) -> tuple[Tensor, Tensor]:
    """M [B, c, r] of dL/dX = [X, S] M in complex128, and dL/drho [B] in float64."""
    a = _algebra(gram, r, rho, num_sources, elements, ridge)
    scale = torch.where(a.total == 0, torch.zeros_like(a.total), grad.double() / a.total)
    rest = 1 - leakage.double()
    identity = torch.eye(r, dtype=gram.dtype, device=gram.device)
    loaded = a.gram + a.loading[:, None, None] * identity
    on_factor = rest[:, None, None] * loaded - adjoint(a.coupling) @ a.coupling
    on_steering = a.transform @ (
        a.inner @ a.coupling - a.coupling @ a.gram - 2 * a.loading[:, None, None] * a.coupling
    )
    slopes = 4 * scale[:, None, None] * torch.cat([on_factor, on_steering], 1)
    spread = 2 * rest * (a.trace + a.loading * elements) - 4 * _trace(a.inner)
    return slopes, scale * (spread + 2 * _trace(a.inner @ a.basis_gram))
