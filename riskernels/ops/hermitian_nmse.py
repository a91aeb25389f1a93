# SPDX-License-Identifier: Apache-2.0
"""Operator ``hermitian_nmse``: schema, rules and public function.

The public operator is a composition: its forward returns, beside the NMSE, the four sums that let
the backward read the inputs once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._checks import check_grad_real, check_nmse
from riskernels.ops._registration import (
    define,
    define_composite,
    fold_mask,
    fold_vmap,
    refuse_autograd,
    register_autograd,
    register_fake,
    register_full_precision_autocast,
    register_vmap,
    unfold_needed,
    unfold_vmap,
)
from riskernels.reference import hermitian_nmse as reference


def _check(
    estimate: Tensor,
    target: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
) -> None:
    check_nmse("hermitian_nmse", estimate, target, lam_diag, lam_off, eps, element_mask)


def _check_backward(
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
) -> None:
    op = "hermitian_nmse_backward"
    check_nmse(op, estimate, target, lam_diag, lam_off, eps, element_mask)
    check_grad_real(op, "grad", grad, (estimate.shape[0],), estimate)
    check_grad_real(op, "sums", sums, (estimate.shape[0], 4), estimate)


FORWARD = define(
    "hermitian_nmse_forward(Tensor estimate, Tensor target, Tensor? element_mask, "
    "float lam_diag, float lam_off, float eps) -> (Tensor, Tensor)",
    reference.hermitian_nmse_forward,
    _check,
)
BACKWARD = define(
    "hermitian_nmse_backward(Tensor grad, Tensor estimate, Tensor target, Tensor sums, "
    "Tensor? element_mask, float lam_diag, float lam_off, float eps, *, bool need_estimate=True, "
    "bool need_target=True) -> (Tensor, Tensor)",
    reference.hermitian_nmse_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _composite(
    estimate: Tensor,
    target: Tensor,
    lam_diag: float = 0.2,
    lam_off: float = 0.8,
    eps: float = 1e-12,
    *,
    element_mask: Tensor | None = None,
) -> Tensor:
    nmse: Tensor = _call(
        estimate,
        target,
        element_mask,
        lam_diag,
        lam_off,
        eps,
    )[0]
    return nmse


PUBLIC = define_composite(
    "hermitian_nmse(Tensor estimate, Tensor target, float lam_diag=0.2, float lam_off=0.8, "
    "float eps=1e-12, *, Tensor? element_mask=None) -> Tensor",
    _composite,
)


def _fake(
    estimate: Tensor,
    target: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    _check(estimate, target, element_mask, lam_diag, lam_off, eps)
    real, b = estimate.dtype.to_real(), estimate.shape[0]
    return estimate.new_empty((b,), dtype=real), estimate.new_empty((b, 4), dtype=real)


def _fake_backward(
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
    _check_backward(grad, estimate, target, sums, element_mask, lam_diag, lam_off, eps)
    return (
        estimate.new_empty(estimate.shape if need_estimate else (0,)),
        target.new_empty(target.shape if need_target else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    estimate, target, element_mask, *ctx.weights = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(estimate, target, output[1], element_mask)


def _backward(ctx: Any, grad: Tensor, _grad_sums: Tensor | None) -> tuple[Tensor | None, ...]:
    estimate, target, sums, element_mask = ctx.saved_tensors
    need_estimate, need_target = ctx.needs_input_grad[:2]
    grad_estimate, grad_target = _call_backward(
        grad,
        estimate,
        target,
        sums,
        element_mask,
        *ctx.weights,
        need_estimate=need_estimate,
        need_target=need_target,
    )
    return (
        grad_estimate if need_estimate else None,
        grad_target if need_target else None,
        None,
        None,
        None,
        None,
    )


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    estimate, target = (fold_vmap(size, args[i], in_dims[i]) for i in range(2))
    b = estimate.shape[0] // size if size else 0
    mask = fold_mask(size, b, args[2], in_dims[2])
    outputs = torch.ops.riskernels.hermitian_nmse_forward(estimate, target, mask, *args[3:])
    return tuple(unfold_vmap(size, out) for out in outputs), (0, 0)


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], *args: Any, **needs: bool
) -> tuple[Any, Any]:
    size = info.batch_size
    tensors = [fold_vmap(size, args[i], in_dims[i]) for i in range(4)]
    b = tensors[1].shape[0] // size if size else 0
    mask = fold_mask(size, b, args[4], in_dims[4])
    outputs = torch.ops.riskernels.hermitian_nmse_backward(*tensors, mask, *args[5:], **needs)
    return unfold_needed(size, outputs, needs, ("need_estimate", "need_target"))


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)
register_autograd(FORWARD, _backward, _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, _vmap)
register_vmap(BACKWARD, _vmap_backward)
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def hermitian_nmse(
    estimate: Tensor,
    target: Tensor,
    lam_diag: float = 0.2,
    lam_off: float = 0.8,
    eps: float = 1e-12,
    *,
    element_mask: Tensor | None = None,
) -> Tensor:
    r"""Normalised squared error of a covariance, weighted by diagonal and off-diagonal parts.

    .. math:: \mathrm{nmse} = \frac{1}{\lambda_d + \lambda_o} \left(
        \lambda_d \frac{\sum_i |E_{ii}|^2}{\sum_i |T_{ii}|^2 + \epsilon} +
        \lambda_o \frac{\sum_{i \ne j} |E_{ij}|^2}{\sum_{i \ne j} |T_{ij}|^2 + \epsilon}
        \right), \qquad E = \mathrm{estimate} - T

    It is 0 where ``estimate`` equals ``target``, and 1 (up to eps) where ``estimate`` is 0 and both
    parts of the target hold energy.

    Args:
        estimate: [B, N, N], complex64 or complex128. Every entry counts: the matrix need not be
            exactly Hermitian.
        target: [B, N, N] of the same dtype.
        lam_diag: weight of the diagonal part, >= 0.
        lam_off: weight of the off-diagonal part, >= 0, not both zero.
        eps: added to both denominators, >= 0, in the units of :math:`|T|^2`.
        element_mask: [N] or [B, N] bool; rows and columns of False elements leave every sum,
            whatever values they hold.

    Returns:
        [B] real, float32 for complex64 and float64 for complex128.

    Gradients reach both matrices (PyTorch's convention, dL/dRe + i dL/dIm). Forward and backward
    each read the inputs once. Any strides and stride-0 batches are read in place; conjugated views
    are resolved by a copy. The result is bitwise the same on every run. Non-finite input stays in
    its scene.

    Cost: memory-bound, 16 B N^2 bytes read in complex64 forward, and 8 B N^2 more written for
    each gradient backward.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, weights or eps out of range.

    Example:
        >>> target = torch.randn(3, 8, 8, dtype=torch.complex64)
        >>> hermitian_nmse(torch.zeros_like(target), target)
        tensor([1., 1., 1.])
    """
    # What the operator of this name is composed of, without the way through its composition.
    return _composite(estimate, target, lam_diag, lam_off, eps, element_mask=element_mask)
