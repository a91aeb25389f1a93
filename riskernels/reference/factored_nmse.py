# SPDX-License-Identifier: Apache-2.0
r"""NMSE of R = X X^H + rho I against T = Y Y^H without either matrix, in plain PyTorch.

X [N, r] and Y [N, k]; masked elements are rows that leave both factors. With the Gram matrix of
[X, Y], G_xx = X^H X, G_yx = Y^H X, G_yy = Y^H Y, the rows x_i and y_i, and u_i = |x_i|^2 - |y_i|^2,

    e_D = sum_i (u_i + rho)^2                                         (the diagonal of R - T)
    e_O = |G_xx|^2 - 2 |G_yx|^2 + |G_yy|^2 - sum_i u_i^2
    t_D = sum_i |y_i|^4
    t_O = |G_yy|^2 - t_D

because |X X^H - Y Y^H|^2 = |G_xx|^2 - 2 |G_yx|^2 + |G_yy|^2 and the off-diagonal entries of R do
not depend on rho. e_O and t_O are clamped at 0, and are 0 where one element or none is kept. The
NMSE is that of ``hermitian_nmse``,

    nmse = (lam_d e_D / (t_D + eps) + lam_o e_O / (t_O + eps)) / (lam_d + lam_o).

Differences of squares lose digits: with sums in float32 nothing is left below an NMSE of 1e-6. All
sums are therefore float64, where products of complex64 entries are exact.

Backward. For g = dL/dnmse, w_S = lam_S g / ((lam_d + lam_o) (t_S + eps)) and
q_S = w_S e_S / (t_S + eps), with de_O/dX_i = 4 [X G_xx - Y G_yx]_i - 4 u_i x_i,

    dL/dX_i = 4 w_o [X G_xx - Y G_yx]_i + 4 (w_d (u_i + rho) - w_o u_i) x_i,
    dL/dY_i = 4 [w_o (Y G_yy - X G_xy) - q_o Y G_yy]_i
              - 4 (w_d (u_i + rho) - w_o u_i + (q_d - q_o) |y_i|^2) y_i,
    dL/drho = 2 w_d sum_i (u_i + rho).

The sums and the Gram matrix are all the backward needs besides the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riskernels.reference.tikhonov_snapshots import adjoint


def joint_gram(left: Tensor, right: Tensor) -> Tensor:
    """[B, c, c] complex128 Gram matrix of the columns of [left, right]."""
    both = torch.cat([left, right], dim=-1).to(torch.complex128)
    return adjoint(both) @ both


def keep_rows(factor: Tensor, element_mask: Tensor | None) -> Tensor:
    """The factor with the rows of masked elements zeroed, whatever they hold."""
    if element_mask is None:
        return factor
    kept = element_mask.reshape(-1, factor.shape[1], 1)
    return torch.where(kept, factor, factor.new_zeros(()))


def square_norm(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sums of |x|^2 over dims (counted as those of x), in float64."""
    return torch.view_as_real(x).double().square().sum(-1).sum(dims)


def _diagonals(factor: Tensor, target_factor: Tensor) -> tuple[Tensor, Tensor]:
    """u_i = |x_i|^2 - |y_i|^2 and |y_i|^2, [B, N] float64."""
    target = square_norm(target_factor, (2,))
    return square_norm(factor, (2,)) - target, target


def _loading(rho: Tensor | None, factor: Tensor) -> Tensor:
    """rho [B, 1] in float64."""
    if rho is None:
        return factor.new_zeros((factor.shape[0], 1), dtype=torch.float64)
    return rho.double()[:, None]


def _kept(factor: Tensor, element_mask: Tensor | None) -> Tensor:
    """[B or 1, N] bool."""
    if element_mask is None:
        return factor.new_ones((1, factor.shape[1]), dtype=torch.bool)
    return element_mask.reshape(-1, factor.shape[1])


def factored_nmse_forward(
    factor: Tensor,
    rho: Tensor | None,
    target_factor: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The NMSE [B], its sums [B, 4] = (e_D, e_O, t_D, t_O), and the Gram matrix of [X, Y]."""
    x, y = keep_rows(factor, element_mask), keep_rows(target_factor, element_mask)
    r, kept = x.shape[2], _kept(factor, element_mask)
    gram = joint_gram(x, y)
    xx, yx, yy = (
        square_norm(part, (1, 2)) for part in (gram[:, :r, :r], gram[:, r:, :r], gram[:, r:, r:])
    )
    difference, target = _diagonals(x, y)
    loaded = torch.where(kept, difference + _loading(rho, x), torch.zeros_like(difference))
    error_diagonal, target_diagonal = loaded.square().sum(1), target.square().sum(1)
    error_off = (xx - 2 * yx + yy - difference.square().sum(1)).clamp(min=0)
    target_off = (yy - target_diagonal).clamp(min=0)
    several = kept.sum(1) > 1
    zero = torch.zeros_like(error_off)
    error_off = torch.where(several, error_off, zero)
    target_off = torch.where(several, target_off, zero)
    parts = lam_diag * error_diagonal / (target_diagonal + eps)
    parts = parts + lam_off * error_off / (target_off + eps)
    nmse = (parts / (lam_diag + lam_off)).to(factor.dtype.to_real())
    sums = torch.stack([error_diagonal, error_off, target_diagonal, target_off], dim=-1)
    return nmse, sums, gram


def factored_nmse_backward(
    grad: Tensor,
    factor: Tensor,
    rho: Tensor | None,
    target_factor: Tensor,
    sums: Tensor,
    gram: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
    *,
    need_factor: bool = True,
    need_rho: bool = True,
    need_target: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to factor, rho and target_factor; one that is not needed comes back empty."""
    x, y = keep_rows(factor, element_mask), keep_rows(target_factor, element_mask)
    r, kept = x.shape[2], _kept(factor, element_mask)
    real, total = factor.dtype.to_real(), lam_diag + lam_off
    weight_d = grad.double() * lam_diag / (total * (sums[:, 2] + eps))
    weight_o = grad.double() * lam_off / (total * (sums[:, 3] + eps))
    ratio_d = weight_d * sums[:, 0] / (sums[:, 2] + eps)
    ratio_o = weight_o * sums[:, 1] / (sums[:, 3] + eps)
    # Off the diagonal of a single element lies nothing: weights of it, perhaps 0/0, meet nothing.
    several = kept.sum(1) > 1
    weight_o, ratio_o = (torch.where(several, w, torch.zeros_like(w)) for w in (weight_o, ratio_o))
    difference, target = _diagonals(x, y)
    loaded = difference + _loading(rho, x)
    at_row = weight_d[:, None] * loaded - weight_o[:, None] * difference

    def rows(on_x: Tensor, on_y: Tensor, own: Tensor, columns: Tensor) -> Tensor:
        """4 (X on_x + Y on_y + own_i columns_i) on kept rows, 0 on masked ones."""
        product = x @ (4 * on_x).to(x.dtype) + y @ (4 * on_y).to(x.dtype)
        product = product + (4 * own).to(real)[:, :, None] * columns
        return torch.where(kept[:, :, None], product, product.new_zeros(()))

    scale_o = weight_o[:, None, None]
    grad_factor, grad_rho = factor.new_empty(0), factor.new_empty(0, dtype=real)
    grad_target = target_factor.new_empty(0)
    if need_factor:
        grad_factor = rows(scale_o * gram[:, :r, :r], -scale_o * gram[:, r:, :r], at_row, x)
    if need_rho:
        zero = torch.zeros_like(loaded)
        grad_rho = (2 * weight_d * torch.where(kept, loaded, zero).sum(1)).to(real)
    if need_target:
        grad_target = rows(
            -scale_o * gram[:, :r, r:],
            (weight_o - ratio_o)[:, None, None] * gram[:, r:, r:],
            -(at_row + (ratio_d - ratio_o)[:, None] * target),
            y,
        )
    return grad_factor, grad_rho, grad_target
