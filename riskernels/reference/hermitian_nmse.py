# SPDX-License-Identifier: Apache-2.0
r"""Masked diagonal/off-diagonal NMSE, in plain PyTorch.

With E = estimate - target, D the masked diagonal and O the masked off-diagonal entries,

    nmse = (lam_d e_D / (t_D + eps) + lam_o e_O / (t_O + eps)) / (lam_d + lam_o),
    e_S = sum_S |E_ij|^2,   t_S = sum_S |T_ij|^2.

For g = dL/dnmse and p_S = lam_S / ((lam_d + lam_o) (t_S + eps)), entries of S have

    dL/destimate_ij = 2 g p_S E_ij,
    dL/dtarget_ij   = -2 g p_S (E_ij + e_S / (t_S + eps) T_ij).

The four sums (e_D, e_O, t_D, t_O) of the forward are all the backward needs besides the inputs,
so both passes read the inputs once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _pair_mask(matrix: Tensor, element_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Boolean [B or 1, N, N] selections of the diagonal and the off-diagonal entries."""
    n = matrix.shape[-1]
    diagonal = torch.eye(n, dtype=torch.bool, device=matrix.device).unsqueeze(0)
    off = ~diagonal
    if element_mask is not None:
        mask = element_mask.reshape(-1, n)
        kept = mask.unsqueeze(-1) & mask.unsqueeze(-2)
        diagonal, off = diagonal & kept, off & kept
    return diagonal, off


def _energy(matrix: Tensor, selection: Tensor) -> Tensor:
    squares = torch.view_as_real(matrix).square().sum(-1)
    return torch.where(selection, squares, squares.new_zeros(())).sum((-2, -1))


def hermitian_nmse_forward(
    estimate: Tensor,
    target: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The NMSE [B] and its sums [B, 4] = (e_D, e_O, t_D, t_O)."""
    diagonal, off = _pair_mask(estimate, element_mask)
    error = estimate - target
    sums = torch.stack(
        [
            _energy(error, diagonal),
            _energy(error, off),
            _energy(target, diagonal),
            _energy(target, off),
        ],
        dim=-1,
    )
    parts = lam_diag * sums[:, 0] / (sums[:, 2] + eps) + lam_off * sums[:, 1] / (sums[:, 3] + eps)
    return parts / (lam_diag + lam_off), sums


def hermitian_nmse_backward(
    grad: Tensor,
    estimate: Tensor,
    target: Tensor,
    sums: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
    *,
    need_estimate: bool = True,
    need_target: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gradients to estimate and target; one that is not needed comes back empty."""
    diagonal, off = _pair_mask(estimate, element_mask)
    total = lam_diag + lam_off
    scale_d = 2 * grad * lam_diag / (total * (sums[:, 2] + eps))
    scale_o = 2 * grad * lam_off / (total * (sums[:, 3] + eps))

    def select(at_diagonal: Tensor, at_off: Tensor) -> Tensor:
        zero = at_diagonal.new_zeros(())
        picked = torch.where(diagonal, at_diagonal[:, None, None], zero)
        return torch.where(off, at_off[:, None, None], picked)

    # Masked entries are zeroed rather than multiplied by zero, so that NaN there stays out.
    zero = estimate.new_zeros(())
    error = torch.where(diagonal | off, estimate - target, zero)
    weight = select(scale_d, scale_o)
    grad_estimate = weight * error if need_estimate else estimate.new_empty(0)
    if not need_target:
        return grad_estimate, target.new_empty(0)
    ratio_d = scale_d * sums[:, 0] / (sums[:, 2] + eps)
    ratio_o = scale_o * sums[:, 1] / (sums[:, 3] + eps)
    kept = torch.where(diagonal | off, target, zero)
    return grad_estimate, -(weight * error + select(ratio_d, ratio_o) * kept)
