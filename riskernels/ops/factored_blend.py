# SPDX-License-Identifier: Apache-2.0
"""Operator ``factored_blend``: schema, rules and public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._checks import check_grad
from riskernels.ops._factored_checks import check_factored_blend
from riskernels.ops._registration import (
    define,
    fold_vmap,
    refuse_autograd,
    register_autograd,
    register_fake,
    register_full_precision_autocast,
    register_vmap,
    unfold_vmap,
)
from riskernels.reference import factored_blend as reference


def _check(
    factor: Tensor,
    snapshots: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> None:
    check_factored_blend(
        "factored_blend", factor, snapshots, beta, target_trace, loading, shrinkage
    )


def _columns(factor: Tensor, snapshots: Tensor) -> tuple[int, int, int]:
    """Shape of X."""
    b, n, k = factor.shape
    return b, n, k + snapshots.shape[1]


def _check_backward(
    grad: Tensor,
    factor: Tensor,
    snapshots: Tensor,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> None:
    op = "factored_blend_backward"
    check_factored_blend(op, factor, snapshots, beta, target_trace, loading, shrinkage)
    check_grad(op, grad, _columns(factor, snapshots), factor)


FORWARD = define(
    "factored_blend(Tensor factor, Tensor snapshots, float beta=0.3, float? target_trace=None, *, "
    "float loading=0.0, float shrinkage=0.0) -> (Tensor, Tensor)",
    reference.factored_blend,
    _check,
)
BACKWARD = define(
    "factored_blend_backward(Tensor grad, Tensor factor, Tensor snapshots, float beta, "
    "float? target_trace, float loading, float shrinkage) -> Tensor",
    reference.factored_blend_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _fake(factor: Tensor, snapshots: Tensor, *args: Any, **options: float) -> tuple[Tensor, Tensor]:
    _check(factor, snapshots, *args, **options)
    return (
        factor.new_empty(_columns(factor, snapshots)),
        factor.new_empty((factor.shape[0],), dtype=factor.dtype.to_real()),
    )


def _fake_backward(grad: Tensor, factor: Tensor, snapshots: Tensor, *options: Any) -> Tensor:
    _check_backward(grad, factor, snapshots, *options)
    return factor.new_empty(factor.shape)


def _setup_context(
    ctx: Any,
    inputs: tuple[Any, ...],
    keyword_only_inputs: dict[str, Any],
    output: tuple[Tensor, Tensor],
) -> None:
    factor, snapshots, beta, target_trace = inputs
    ctx.options = (
        beta,
        target_trace,
        keyword_only_inputs["loading"],
        keyword_only_inputs["shrinkage"],
    )
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(factor, snapshots)


def _backward(ctx: Any, grad: Tensor, _grad_rho: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.needs_input_grad[0]:
        return None, None, None, None
    gradient = _call_backward(grad, *ctx.saved_tensors, *ctx.options)
    return gradient, None, None, None


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any, **options: float) -> tuple[Any, Any]:
    size = info.batch_size
    tensors = (fold_vmap(size, args[i], in_dims[i]) for i in range(2))
    outputs = torch.ops.riskernels.factored_blend(*tensors, *args[2:], **options)
    return tuple(unfold_vmap(size, out) for out in outputs), (0, 0)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    tensors = (fold_vmap(size, args[i], in_dims[i]) for i in range(3))
    output = torch.ops.riskernels.factored_blend_backward(*tensors, *args[3:])
    return unfold_vmap(size, output), 0


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)
register_autograd(FORWARD, _backward, _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, _vmap)
register_vmap(BACKWARD, _vmap_backward)
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def factored_blend(
    factor: Tensor,
    snapshots: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""The blend of :func:`blend_covariance` as a factor and a loading, without N x N matrices.

    .. math:: R = X X^H + \rho I, \qquad
        X = \left[ \sqrt{c_p} A, \; \sqrt{c_s / L} \, [a_1 \dots a_L] \right]

    where :math:`c_p R_{pred} + c_s R_{samp} + \rho I` is :func:`blend_covariance` of
    :math:`R_{pred} = A A^H` and :math:`R_{samp} = \frac{1}{L} \sum_\ell a_\ell a_\ell^H` with the
    same options. Both matrices are Hermitian, so c_p, c_s and rho follow from :math:`|A|^2` and
    :math:`\sum_\ell |a_\ell|^2` alone.

    Args:
        factor: A [B, N, K], complex64 or complex128.
        snapshots: [B, L, N] of the same dtype, the :math:`a_\ell` as :func:`tikhonov_snapshots`
            gives them; a constant: no gradient reaches it.
        beta: share of the sample covariance in the energy (trace), from 0 to 1.
        target_trace: trace of R, > 0; None for N.
        loading: diagonal loading >= 0, relative to the mean eigenvalue.
        shrinkage: share of the scaled identity, from 0 to 1.

    Returns:
        X [B, N, K + L] in the dtype of ``factor``, and rho [B] real, float32 for complex64 and
        float64 for complex128. A factor that is 0 is left out, and the other one takes its share;
        with neither X and rho are 0.

    Gradients reach ``factor`` (PyTorch's convention, dL/dRe + i dL/dIm) through its trace too, and
    are 0 where it is 0. They are recomputed from the inputs; rho does not depend on ``factor``. Any
    strides and stride-0 batches are read in place; conjugated views are resolved by a copy. The
    result is bitwise the same on every run. Non-finite input stays in its scene. torch.compile
    specialises on the values of the options.

    Cost per scene in complex64: memory-bound; 8 (K + L) N bytes read (twice, the second time from
    cache) and as many written forward, 16 K N bytes read and 8 K N written backward.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, options out of range.

    Source: as :func:`blend_covariance`.

    Example:
        >>> factor = torch.randn(2, 144, 5, dtype=torch.complex64)
        >>> snapshots = torch.randn(2, 16, 144, dtype=torch.complex64)
        >>> x, rho = factored_blend(factor, snapshots, loading=0.1)
        >>> trace = x.abs().square().sum((1, 2)) + 144 * rho
        >>> x.shape, bool(((trace - 144).abs() < 1e-3).all())
        (torch.Size([2, 144, 21]), True)
    """
    result: tuple[Tensor, Tensor] = _call(
        factor,
        snapshots,
        beta,
        target_trace,
        loading=loading,
        shrinkage=shrinkage,
    )
    return result
