# SPDX-License-Identifier: Apache-2.0
r"""Share of a covariance's energy outside the span of steering vectors, in plain PyTorch.

S_m are the steering vectors with the columns >= num_sources zeroed, G = S_m^H S_m + ridge I and
P = S_m G^-1 S_m^H the (ridge) projector. For a Hermitian R

    leakage = |(I - P) R (I - P)|^2 / |R|^2.

No N x N projector is needed. With a basis Q of K columns such that Q Q^H = 2P - P^2,

    |(I - P) R (I - P)|^2 = |R|^2 - 2 |W|^2 + |U|^2,   W = Q^H R,  U = W Q,

since (I - P)^2 = I - Q Q^H. From 2P - P^2 = S_m G^-1 (S_m^H S_m + 2 ridge I) G^-1 S_m^H,

    Q = S_m T,   T = G^-1 L,   L L^H = S_m^H S_m + 2 ridge I.

Masked columns get a 1 on the diagonal of S_m^H S_m, which leaves the others as they are; their
columns of Q are 0. The K x K algebra runs in complex128.

The gradient takes the right-hand side as it stands, for any R: with V = 2W - U Q^H,

    dL/dR = (2 g / |R|^2) ((1 - leakage) R - Q V),   0 where R is 0.

The steering vectors are constants.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _lower_factor(matrix: Tensor, floor: Tensor) -> Tensor:
    """Cholesky factor [B, K, K], with pivots of at least ``floor`` [B]; NaN passes through.

    In exact arithmetic no pivot is below the ridge. Where the ridge is below the rounding errors of
    nearly dependent columns, the floor keeps noise from being divided by less than itself.
    """
    k = matrix.shape[-1]
    rest = matrix
    columns = []
    for j in range(k):
        pivot = rest[:, j, j].real
        pivot = torch.where(pivot < floor, floor, pivot)
        below = (torch.arange(k, device=matrix.device) > j).to(pivot.dtype)
        column = rest[:, :, j] * below / pivot.sqrt()[:, None]
        unit = (torch.arange(k, device=matrix.device) == j).to(pivot.dtype)
        column = column + unit * pivot.sqrt()[:, None]
        columns.append(column)
        rest = rest - column[:, :, None] * column.conj_physical()[:, None, :]
    return torch.stack(columns, -1)


def leakage_transform(gram: Tensor, num_sources: Tensor, ridge: float) -> Tensor:
    """T [B, K, K] of Q = S_m T from S_m^H S_m [B, K, K] in complex128; masked rows are 0."""
    k = gram.shape[-1]
    kept = torch.arange(k, device=gram.device) < num_sources[:, None]
    gram = gram + torch.diag_embed((~kept).to(gram.dtype))
    identity = torch.eye(k, dtype=gram.dtype, device=gram.device)
    largest = torch.where(kept, torch.diagonal(gram, dim1=1, dim2=2).real, 0).amax(-1)
    noise = 8 * kept.sum(-1) * torch.finfo(torch.float64).eps * largest
    floor = torch.where(noise > ridge, noise, torch.full_like(noise, ridge))
    factor = _lower_factor(gram + ridge * identity, floor)
    doubled = _lower_factor(gram + 2 * ridge * identity, floor)
    half = torch.linalg.solve_triangular(factor, doubled, upper=False)
    transform = torch.linalg.solve_triangular(factor.mT.conj_physical(), half, upper=True)
    return torch.where(kept[:, :, None], transform, transform.new_zeros(()))


def masked_steering(steering: Tensor, num_sources: Tensor) -> Tensor:
    """S_m in complex128: masked columns are 0, whatever they hold."""
    kept = torch.arange(steering.shape[2], device=steering.device) < num_sources[:, None]
    wide = steering.to(torch.complex128)
    return torch.where(kept[:, None, :], wide, wide.new_zeros(()))


def subspace_leakage_forward(
    cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """leakage [B], |R|^2 [B], Q [B, N, K] and W = Q^H R [B, K, N]."""
    real = cov.real.dtype
    masked = masked_steering(steering, num_sources)
    gram = masked.mT.conj_physical() @ masked
    basis = (masked @ leakage_transform(gram, num_sources, ridge)).to(cov.dtype)
    projected = basis.mT.conj_physical() @ cov
    both = projected.to(torch.complex128) @ basis.to(torch.complex128)
    total, once, twice = (
        torch.view_as_real(x).double().square().sum((1, 2, 3)) for x in (cov, projected, both)
    )
    outside = (total - 2 * once + twice).clamp(min=0)
    leakage = torch.where(total == 0, total.new_zeros(()), outside / total)
    return leakage.to(real), total.to(real), basis, projected


def subspace_leakage_backward(
    grad: Tensor, cov: Tensor, leakage: Tensor, total: Tensor, basis: Tensor, projected: Tensor
) -> Tensor:
    """Gradient to cov."""
    adjoint = basis.mT.conj_physical()
    both = projected.to(torch.complex128) @ basis.to(torch.complex128)
    inside = 2 * projected - (both @ adjoint.to(torch.complex128)).to(cov.dtype)
    scale = (2 * grad / total)[:, None, None]
    result = scale * ((1 - leakage)[:, None, None] * cov - basis @ inside)
    # Selected rather than multiplied by zero: the basis may hold NaN.
    return torch.where((total == 0)[:, None, None], result.new_zeros(()), result)
