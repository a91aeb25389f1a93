# SPDX-License-Identifier: Apache-2.0
"""Triton implementation of ``tikhonov_snapshots``: one launch forward, three backward.

Forward: everything, from the Gram matrix to the estimates. Backward: z again; then w = S^{-1} Phi g
with the gradient to the codes; then the gradient to H. z and w [B, L, M] and, for the gradient to
H, c q and c a [B, L, N] pass between the launches through memory.
"""

from __future__ import annotations

from torch import Tensor

from riskernels.ops._checks import check_grad, check_tikhonov
from riskernels.reference.tikhonov_snapshots import Solution
from riskernels.triton_kernels._channel import channel_gradient
from riskernels.triton_kernels._launch import on_device
from riskernels.triton_kernels._solve import adjoint, estimate


def gradients(
    g: Tensor, y: Tensor, h: Tensor, codes: Tensor, alpha: float, relative: bool,
    z: Tensor, solution: Solution | None, need: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients to y, h and codes from the gradient g to the estimates; unneeded ones are empty."""
    need_y, need_h, need_codes = need
    w, grad_codes, q, a, t = adjoint(
        g, y, h, codes, alpha, relative, z, solution, need_h=need_h, need_codes=need_codes
    )
    grad_h = h.new_empty(0)
    if need_h:
        grad_h = channel_gradient(z, w, q, a, t, h, codes, relative)
    return w if need_y else y.new_empty(0), grad_h, grad_codes


def empty_gradients(
    y: Tensor, h: Tensor, codes: Tensor, need: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of no scenes, or of no gradient that is needed."""
    grad_y, grad_h, grad_codes = (
        tensor.new_empty(tensor.shape if needed else (0,))
        for tensor, needed in zip((y, h, codes), need, strict=True)
    )
    return grad_y, grad_h, grad_codes


def tikhonov_snapshots(
    y: Tensor, h: Tensor, codes: Tensor, alpha: float = 1e-3, *, relative: bool = False
) -> Tensor:
    """[B, L, N] estimates; see :func:`riskernels.tikhonov_snapshots`."""
    check_tikhonov("tikhonov_snapshots", y, h, codes, alpha)
    if y.shape[0] == 0:
        return y.new_empty((0, y.shape[1], codes.shape[2]))
    with on_device(y):
        return estimate(y, h, codes, alpha, relative, need_a=True, need_z=False)[1]


def tikhonov_snapshots_backward(
    grad: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    alpha: float,
    *,
    relative: bool,
    need_y: bool = True,
    need_h: bool = True,
    need_codes: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to y, h and codes; one that is not needed comes back empty."""
    op = "tikhonov_snapshots_backward"
    check_tikhonov(op, y, h, codes, alpha)
    check_grad(op, grad, (y.shape[0], y.shape[1], codes.shape[2]), y)
    need = (need_y, need_h, need_codes)
    if y.shape[0] == 0 or not any(need):
        return empty_gradients(y, h, codes, need)
    with on_device(y):
        z, _, solution = estimate(y, h, codes, alpha, relative, need_a=False, need_z=True)
        return gradients(grad, y, h, codes, alpha, relative, z, solution, need)
