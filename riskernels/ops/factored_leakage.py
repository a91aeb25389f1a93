# SPDX-License-Identifier: Apache-2.0
"""Operator ``factored_leakage``: schema, rules and public function.

The public operator is a composition: its forward returns, beside the leakage, the Gram matrix of
the factor and the steering vectors, so that the backward reads the inputs once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._checks import check_companion, check_grad_real
from riskernels.ops._factored_checks import check_factored_leakage
from riskernels.ops._registration import (
    define,
    define_composite,
    fold_arguments,
    refuse_autograd,
    register_autograd,
    register_fake,
    register_full_precision_autocast,
    register_vmap,
    unfold_needed,
    unfold_vmap,
)
from riskernels.reference import factored_leakage as reference


def _check(
    factor: Tensor, rho: Tensor | None, steering: Tensor, num_sources: Tensor, ridge: float
) -> None:
    check_factored_leakage("factored_leakage", factor, rho, steering, num_sources, ridge)


def _check_backward(
    grad: Tensor,
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    leakage: Tensor,
    gram: Tensor,
    ridge: float,
    *,
    need_factor: bool = True,
    need_rho: bool = True,
) -> None:
    op = "factored_leakage_backward"
    check_factored_leakage(op, factor, rho, steering, num_sources, ridge)
    b, columns = factor.shape[0], factor.shape[2] + steering.shape[2]
    check_grad_real(op, "grad", grad, (b,), factor)
    check_companion(op, "gram", gram, torch.complex128, (b, columns, columns), factor)
    check_grad_real(op, "leakage", leakage, (b,), factor)


FORWARD = define(
    "factored_leakage_forward(Tensor factor, Tensor? rho, Tensor steering, Tensor num_sources, "
    "float ridge) -> (Tensor leakage, Tensor gram)",
    reference.factored_leakage_forward,
    _check,
)
BACKWARD = define(
    "factored_leakage_backward(Tensor grad, Tensor factor, Tensor? rho, Tensor steering, "
    "Tensor num_sources, Tensor leakage, Tensor gram, float ridge, *, bool need_factor=True, "
    "bool need_rho=True) -> (Tensor, Tensor)",
    reference.factored_leakage_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _composite(
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    ridge: float = 1e-4,
) -> Tensor:
    leakage: Tensor = _call(
        factor,
        rho,
        steering,
        num_sources,
        ridge,
    )[0]
    return leakage


PUBLIC = define_composite(
    "factored_leakage(Tensor factor, Tensor? rho, Tensor steering, Tensor num_sources, "
    "float ridge=0.0001) -> Tensor",
    _composite,
)


def _fake(
    factor: Tensor, rho: Tensor | None, steering: Tensor, num_sources: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    _check(factor, rho, steering, num_sources, ridge)
    b, columns = factor.shape[0], factor.shape[2] + steering.shape[2]
    return (
        factor.new_empty((b,), dtype=factor.dtype.to_real()),
        factor.new_empty((b, columns, columns), dtype=torch.complex128),
    )


def _fake_backward(
    grad: Tensor,
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    leakage: Tensor,
    gram: Tensor,
    ridge: float,
    *,
    need_factor: bool = True,
    need_rho: bool = True,
) -> tuple[Tensor, Tensor]:
    _check_backward(grad, factor, rho, steering, num_sources, leakage, gram, ridge)
    return (
        factor.new_empty(factor.shape if need_factor else (0,)),
        factor.new_empty((factor.shape[0] if need_rho else 0,), dtype=factor.dtype.to_real()),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    if ctx.needs_input_grad[2]:
        raise RuntimeError(
            "riskernels::factored_leakage: steering requires grad, but it is a constant of this "
            "operator; pass steering.detach()"
        )
    *tensors, ctx.ridge = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _grad_gram: Tensor | None) -> tuple[Tensor | None, ...]:
    need_factor, need_rho = ctx.needs_input_grad[:2]
    grad_factor, grad_rho = _call_backward(
        grad, *ctx.saved_tensors, ctx.ridge, need_factor=need_factor, need_rho=need_rho
    )
    return (
        grad_factor if need_factor else None,
        grad_rho if need_rho else None,
        None,
        None,
        None,
    )


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    tensors = fold_arguments(size, args, in_dims, 4)
    outputs = torch.ops.riskernels.factored_leakage_forward(*tensors, args[4])
    return tuple(unfold_vmap(size, out) for out in outputs), (0, 0)


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], *args: Any, **needs: bool
) -> tuple[Any, Any]:
    size = info.batch_size
    tensors = fold_arguments(size, args, in_dims, 7)
    outputs = torch.ops.riskernels.factored_leakage_backward(*tensors, args[7], **needs)
    return unfold_needed(size, outputs, needs, ("need_factor", "need_rho"))


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)
register_autograd(FORWARD, _backward, _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, _vmap)
register_vmap(BACKWARD, _vmap_backward)
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def factored_leakage(
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    ridge: float = 1e-4,
) -> Tensor:
    r""":func:`subspace_leakage` of a covariance given by a factor, without N x N matrices.

    .. math:: \mathrm{leakage} = \frac{\|(I - P) R (I - P)\|_F^2}{\|R\|_F^2}, \qquad
        R = X X^H + \rho I, \qquad P = S (S^H S + \mathrm{ridge} \, I)^{-1} S^H

    with S the first ``num_sources`` columns of ``steering``. Every trace in it is one of r x r and
    k x k matrices, which follow from the Gram matrix of [X, S].

    Args:
        factor: X [B, N, r], complex64 or complex128.
        rho: [B] real (float32 for complex64, float64 for complex128), or None for 0.
        steering: [B, N, k] of the dtype of ``factor``, the true steering vectors; a constant.
        num_sources: [B] int64, the columns of ``steering`` that count, clamped to [0, k]. Others
            may hold anything.
        ridge: > 0, in the units of :math:`|s|^2` (steering vectors of unit norm: 1).

    Returns:
        [B] real in [0, 1], float32 for complex64 and float64 for complex128; 0 where R is 0.

    Gradients reach ``factor`` and ``rho`` (PyTorch's convention, dL/dRe + i dL/dIm); ``steering``
    that requires grad is refused. Any strides and stride-0 batches are read in place, at full
    speed with either N or the columns contiguous; conjugated views are resolved by a copy. The
    result is bitwise the same on every run. Non-finite input stays in its scene.

    Cost per scene, with c = r + k: 4 N c^2 FLOPs in float64 and 8 N c bytes read in complex64
    forward; 8 N r c FLOPs, 8 N c bytes read and 8 N r written backward. Memory: 16 c^2 bytes are
    kept for the backward.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, ridge not finite and > 0,
            ``steering`` that requires grad.

    Source: subspace fitting, e.g. M. Viberg and B. Ottersten, "Sensor array processing based on
    subspace fitting", *IEEE Trans. Signal Processing* 39(5), 1991.

    Example:
        >>> steering = torch.linalg.qr(torch.randn(2, 144, 5, dtype=torch.complex64))[0]
        >>> mixing = torch.randn(2, 5, 8, dtype=torch.complex64)
        >>> sources = torch.tensor([5, 5])
        >>> bool((factored_leakage(steering @ mixing, None, steering, sources) < 1e-5).all())
        True
    """
    # What the operator of this name is composed of, without the way through its composition.
    return _composite(factor, rho, steering, num_sources, ridge)
