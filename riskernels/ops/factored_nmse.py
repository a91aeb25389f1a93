# SPDX-License-Identifier: Apache-2.0
"""Operator ``factored_nmse``: schema, rules and public function.

The public operator is a composition: its forward returns, beside the NMSE, the four sums and the
Gram matrix of both factors, so that the backward reads the inputs once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._checks import check_companion, check_grad_real
from riskernels.ops._factored_checks import check_factored_nmse
from riskernels.ops._registration import (
    define,
    define_composite,
    fold_arguments,
    fold_mask,
    refuse_autograd,
    register_autograd,
    register_fake,
    register_full_precision_autocast,
    register_vmap,
    unfold_needed,
    unfold_vmap,
)
from riskernels.reference import factored_nmse as reference


def _check(
    factor: Tensor,
    rho: Tensor | None,
    target_factor: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
) -> None:
    check_factored_nmse(
        "factored_nmse", factor, rho, target_factor, lam_diag, lam_off, eps, element_mask
    )


def _check_backward(
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
) -> None:
    op = "factored_nmse_backward"
    check_factored_nmse(op, factor, rho, target_factor, lam_diag, lam_off, eps, element_mask)
    b, columns = factor.shape[0], factor.shape[2] + target_factor.shape[2]
    check_grad_real(op, "grad", grad, (b,), factor)
    check_companion(op, "gram", gram, torch.complex128, (b, columns, columns), factor)
    check_companion(op, "sums", sums, torch.float64, (b, 4), factor)


FORWARD = define(
    "factored_nmse_forward(Tensor factor, Tensor? rho, Tensor target_factor, "
    "Tensor? element_mask, float lam_diag, float lam_off, float eps) "
    "-> (Tensor nmse, Tensor sums, Tensor gram)",
    reference.factored_nmse_forward,
    _check,
)
BACKWARD = define(
    "factored_nmse_backward(Tensor grad, Tensor factor, Tensor? rho, Tensor target_factor, "
    "Tensor sums, Tensor gram, Tensor? element_mask, float lam_diag, float lam_off, float eps, *, "
    "bool need_factor=True, bool need_rho=True, bool need_target=True) "
    "-> (Tensor, Tensor, Tensor)",
    reference.factored_nmse_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _composite(
    factor: Tensor,
    rho: Tensor | None,
    target_factor: Tensor,
    lam_diag: float = 0.2,
    lam_off: float = 0.8,
    eps: float = 1e-12,
    *,
    element_mask: Tensor | None = None,
) -> Tensor:
    nmse: Tensor = _call(
        factor,
        rho,
        target_factor,
        element_mask,
        lam_diag,
        lam_off,
        eps,
    )[0]
    return nmse


PUBLIC = define_composite(
    "factored_nmse(Tensor factor, Tensor? rho, Tensor target_factor, float lam_diag=0.2, "
    "float lam_off=0.8, float eps=1e-12, *, Tensor? element_mask=None) -> Tensor",
    _composite,
)


def _fake(
    factor: Tensor,
    rho: Tensor | None,
    target_factor: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(factor, rho, target_factor, element_mask, lam_diag, lam_off, eps)
    b, columns = factor.shape[0], factor.shape[2] + target_factor.shape[2]
    return (
        factor.new_empty((b,), dtype=factor.dtype.to_real()),
        factor.new_empty((b, 4), dtype=torch.float64),
        factor.new_empty((b, columns, columns), dtype=torch.complex128),
    )


def _fake_backward(
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
    _check_backward(
        grad, factor, rho, target_factor, sums, gram, element_mask, lam_diag, lam_off, eps
    )
    return (
        factor.new_empty(factor.shape if need_factor else (0,)),
        factor.new_empty((factor.shape[0] if need_rho else 0,), dtype=factor.dtype.to_real()),
        target_factor.new_empty(target_factor.shape if need_target else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    factor, rho, target_factor, element_mask, *ctx.weights = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(factor, rho, target_factor, *output[1:], element_mask)


def _backward(ctx: Any, grad: Tensor, *_unused: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    grads = _call_backward(
        grad,
        *ctx.saved_tensors,
        *ctx.weights,
        need_factor=needs[0],
        need_rho=needs[1],
        need_target=needs[2],
    )
    wanted = tuple(out if need else None for out, need in zip(grads, needs, strict=True))
    return (*wanted, None, None, None, None)


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    tensors = fold_arguments(size, args, in_dims, 3)
    b = tensors[0].shape[0] // size if size else 0
    mask = fold_mask(size, b, args[3], in_dims[3])
    outputs = torch.ops.riskernels.factored_nmse_forward(*tensors, mask, *args[4:])
    return tuple(unfold_vmap(size, out) for out in outputs), (0, 0, 0)


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], *args: Any, **needs: bool
) -> tuple[Any, Any]:
    size = info.batch_size
    tensors = fold_arguments(size, args, in_dims, 6)
    b = tensors[1].shape[0] // size if size else 0
    mask = fold_mask(size, b, args[6], in_dims[6])
    outputs = torch.ops.riskernels.factored_nmse_backward(*tensors, mask, *args[7:], **needs)
    return unfold_needed(size, outputs, needs, ("need_factor", "need_rho", "need_target"))


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)
register_autograd(FORWARD, _backward, _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, _vmap)
register_vmap(BACKWARD, _vmap_backward)
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def factored_nmse(
    factor: Tensor,
    rho: Tensor | None,
    target_factor: Tensor,
    lam_diag: float = 0.2,
    lam_off: float = 0.8,
    eps: float = 1e-12,
    *,
    element_mask: Tensor | None = None,
) -> Tensor:
    r""":func:`hermitian_nmse` of two covariances given by factors, without N x N matrices.

    .. math:: \mathrm{nmse} = \frac{1}{\lambda_d + \lambda_o} \left(
        \lambda_d \frac{\sum_i |E_{ii}|^2}{\sum_i |T_{ii}|^2 + \epsilon} +
        \lambda_o \frac{\sum_{i \ne j} |E_{ij}|^2}{\sum_{i \ne j} |T_{ij}|^2 + \epsilon}
        \right), \qquad E = X X^H + \rho I - T, \quad T = Y Y^H

    All sums follow from the Gram matrix of [X, Y] and the norms of their rows. They are formed in
    float64, where products of complex64 entries are exact: the value holds to 1e-5 relative down to
    an NMSE of 1e-6 and far below.

    Args:
        factor: X [B, N, r], complex64 or complex128.
        rho: [B] real (float32 for complex64, float64 for complex128), or None for 0.
        target_factor: Y [B, N, k] of the dtype of ``factor``.
        lam_diag: weight of the diagonal part, >= 0.
        lam_off: weight of the off-diagonal part, >= 0, not both zero.
        eps: added to both denominators, >= 0, in the units of :math:`|T|^2`.
        element_mask: [N] or [B, N] bool; False elements, that is rows of X and Y, leave every sum,
            whatever values they hold.

    Returns:
        [B] real, float32 for complex64 and float64 for complex128.

    Gradients reach ``factor``, ``rho`` and ``target_factor`` (PyTorch's convention,
    dL/dRe + i dL/dIm). Any strides and stride-0 batches are read in place, at full speed with
    either N or the columns contiguous; conjugated views are resolved by a copy. The result is
    bitwise the same on every run. Non-finite input stays in its scene.

    Cost per scene, with c = r + k: 4 N c^2 FLOPs in float64 and 8 N c bytes read in complex64
    forward; 8 N c FLOPs for each column of a gradient, 8 N c bytes read and 8 N c written backward.
    Memory: 16 c^2 bytes are kept for the backward.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, weights or eps out of range.

    Source: :math:`|X X^H|_F = |X^H X|_F`, e.g. G. H. Golub and C. F. Van Loan, *Matrix
    Computations*, section 2.4 (the nonzero singular values of X give both).

    Example:
        >>> from riskernels import hermitian_nmse
        >>> x = torch.randn(2, 144, 21, dtype=torch.complex64)
        >>> y, rho = torch.randn(2, 144, 5, dtype=torch.complex64), torch.rand(2)
        >>> dense = x @ x.mH + rho[:, None, None] * torch.eye(144)
        >>> nmse = factored_nmse(x, rho, y)
        >>> torch.allclose(nmse, hermitian_nmse(dense, y @ y.mH), rtol=1e-4)
        True
    """
    # What the operator of this name is composed of, without the way through its composition.
    return _composite(factor, rho, target_factor, lam_diag, lam_off, eps, element_mask=element_mask)
