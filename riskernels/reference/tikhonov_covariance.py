# SPDX-License-Identifier: Apache-2.0
r"""Sample covariance of the Tikhonov estimates, in plain PyTorch.

R = (1/L) sum_l a_l a_l^H with a_l from :mod:`riskernels.reference.tikhonov_snapshots`. For a real
loss with G = dL/dR, dL = Re tr(G^H dR) gives

    dL/da_l = (1/L) (G + G^H) a_l.

``center`` replaces a_l by a_l minus its mean over l; that projection is its own adjoint, so the
mean over l is subtracted from dL/da_l as well.
"""

from __future__ import annotations

from torch import Tensor

from riskernels.reference.tikhonov_snapshots import adjoint, conjugate, solve, solve_backward


def tikhonov_covariance(
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    alpha: float = 1e-3,
    *,
    relative: bool = False,
    center: bool = False,
) -> Tensor:
    """[B, N, N] sample covariance; see :func:`riskernels.tikhonov_covariance`."""
    a = solve(y, h, codes, alpha, relative).a
    if center:
        a = a - a.mean(1, keepdim=True)
    product = a.mT @ conjugate(a) / a.shape[1]
    # Matrix products round (i, j) and (j, i) differently; the average is exactly Hermitian.
    return (product + adjoint(product)) / 2


def tikhonov_covariance_backward(
    grad: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    alpha: float,
    *,
    relative: bool,
    center: bool,
    need_y: bool = True,
    need_h: bool = True,
    need_codes: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to y, h and codes; one that is not needed comes back empty."""
    solution = solve(y, h, codes, alpha, relative)
    a = solution.a
    if center:
        a = a - a.mean(1, keepdim=True)
    grad_a = a @ (grad.mT + conjugate(grad)) / a.shape[1]
    if center:
        grad_a = grad_a - grad_a.mean(1, keepdim=True)
    need = (need_y, need_h, need_codes)
    return solve_backward(grad_a, solution, h, codes, alpha, relative, need)
