# SPDX-License-Identifier: Apache-2.0
"""Inverse Fisher information from whitened derivatives, with the nuisance parameters taken out.

For a circular Gaussian vector with mean mu and covariance R the Fisher information is, by the
Slepian-Bangs formula (D. Slepian, Trans. IRE PGIT-3, 1954; W. J. Bangs, PhD thesis, Yale, 1971),

    F_ij = tr(R^-1 dR/di R^-1 dR/dj) + 2 Re (dmu/di)^H R^-1 (dmu/dj).

Both terms are inner products of whitened derivatives, so F = W^T W with one real column of W for
each parameter, and the bound of eta is the inverse of what is left of W's columns once the span of
the nuisance columns is taken out. It is computed from QR factorisations of W with normalised
columns and never from F, whose condition number is the square of W's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = 16 * torch.finfo(torch.float64).eps
"""Relative to its length and per column of a matrix, what of a column counts as rounding."""


def hermitian_rows(left: Tensor, right: Tensor) -> Tensor:
    """The Hermitian matrices left right^H + right left^H [..., M, M] as real vectors [..., M^2].

    Re X + Im X keeps the inner product tr(X Y) of Hermitian X and Y: Re is symmetric and Im is not.
    """
    outer = left[..., :, None] * right[..., None, :].conj()
    hermitian = outer + outer.mH
    return (hermitian.real + hermitian.imag).flatten(-2)


def _unit_columns(matrix: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """``matrix`` [..., R, C] with columns of length 1 and C more rows, and the lengths [..., C].

    A column that ``keep`` [..., C] leaves out becomes the unit vector of a row of its own: of full
    rank, and orthogonal to every other column.
    """
    length = torch.linalg.vector_norm(matrix, dim=-2)
    length = torch.where(keep & (length > 0), length, 1.0)
    extra = torch.diag_embed((~keep).to(matrix.dtype))
    return torch.cat([matrix / length[..., None, :], extra], dim=-2), length


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q, R and whether the columns (of length 1) are linearly dependent, [...].

    Dependent columns are replaced by some independent ones, so that neither Q and R nor their
    gradients hold anything undefined; the caller gives such scenes the answer infinity.
    """
    limit = ROUNDING * matrix.shape[-1]
    with torch.no_grad():
        r = torch.linalg.qr(matrix, mode="r")[1]
        dependent = (r.diagonal(dim1=-2, dim2=-1).abs() <= limit).any(-1)
    substitute = torch.eye(*matrix.shape[-2:], dtype=matrix.dtype, device=matrix.device)
    q, r = torch.linalg.qr(torch.where(dependent[..., None, None], substitute, matrix))
    return q, r, dependent


def outside_span(matrix: Tensor, nuisance: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """``matrix`` [..., R, E] less its part in the span of ``nuisance`` [..., R, V].

    A column that lies in the span becomes zero, not what rounding leaves of it. Also says where the
    columns of ``nuisance`` marked in ``keep`` are dependent.
    """
    before = torch.linalg.vector_norm(matrix.detach(), dim=-2, keepdim=True)
    q, _, dependent = _decomposed(_unit_columns(nuisance, keep)[0])
    q = q[..., : matrix.shape[-2], :]
    # Once more, for what little may be left: the first difference has the rounding of its terms.
    for _ in range(2):
        matrix = matrix - q @ (q.mH @ matrix)
    left = torch.linalg.vector_norm(matrix.detach(), dim=-2, keepdim=True)
    return torch.where(left > ROUNDING * nuisance.shape[-1] * before, matrix, 0.0), dependent


def inverse_information(weighted: Tensor, keep: Tensor, unknowable: Tensor) -> Tensor:
    """(W^T W)^-1 of the columns in ``keep``; infinite variances where it does not exist."""
    matrix, length = _unit_columns(weighted, keep)
    _, r, dependent = _decomposed(matrix)
    identity = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device).expand_as(r)
    root = torch.linalg.solve_triangular(r, identity, upper=True) / length[..., None]
    both = keep[..., None] & keep[..., None, :]
    covariance = torch.where(both, root @ root.mT, 0.0)
    nothing = (dependent | unknowable)[:, None, None]
    limit = torch.diag_embed(torch.where(keep, math.inf, 0.0).to(r.dtype))
    return torch.where(nothing, limit, covariance)
