# SPDX-License-Identifier: Apache-2.0
"""Operator ``blend_covariance``: schema, rules and public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._checks import check_grad
from riskernels.ops._covariance_checks import check_blend
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
from riskernels.reference import blend_covariance as reference


def _check(
    pred: Tensor,
    samp: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> None:
    check_blend("blend_covariance", pred, samp, beta, target_trace, loading, shrinkage)


def _check_backward(
    grad: Tensor,
    pred: Tensor,
    samp: Tensor,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> None:
    op = "blend_covariance_backward"
    check_blend(op, pred, samp, beta, target_trace, loading, shrinkage)
    check_grad(op, grad, tuple(pred.shape), pred)


FORWARD = define(
    "blend_covariance(Tensor pred, Tensor samp, float beta=0.3, float? target_trace=None, *, "
    "float loading=0.0, float shrinkage=0.0) -> Tensor",
    reference.blend_covariance,
    _check,
)
BACKWARD = define(
    "blend_covariance_backward(Tensor grad, Tensor pred, Tensor samp, float beta, "
    "float? target_trace, float loading, float shrinkage) -> Tensor",
    reference.blend_covariance_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _fake(pred: Tensor, samp: Tensor, *args: Any, **options: float) -> Tensor:
    _check(pred, samp, *args, **options)
    return pred.new_empty(pred.shape)


def _fake_backward(grad: Tensor, pred: Tensor, samp: Tensor, *options: Any) -> Tensor:
    _check_backward(grad, pred, samp, *options)
    return pred.new_empty(pred.shape)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    pred, samp, beta, target_trace = inputs
    ctx.options = (
        beta,
        target_trace,
        keyword_only_inputs["loading"],
        keyword_only_inputs["shrinkage"],
    )
    ctx.save_for_backward(pred, samp)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.needs_input_grad[0]:
        return None, None, None, None
    gradient = _call_backward(grad, *ctx.saved_tensors, *ctx.options)
    return gradient, None, None, None


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any, **options: float) -> tuple[Tensor, int]:
    size = info.batch_size
    matrices = (fold_vmap(size, args[i], in_dims[i]) for i in range(2))
    output = torch.ops.riskernels.blend_covariance(*matrices, *args[2:], **options)
    return unfold_vmap(size, output), 0


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    matrices = (fold_vmap(size, args[i], in_dims[i]) for i in range(3))
    output = torch.ops.riskernels.blend_covariance_backward(*matrices, *args[3:])
    return unfold_vmap(size, output), 0


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)
register_autograd(FORWARD, _backward, _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, _vmap)
register_vmap(BACKWARD, _vmap_backward)
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def blend_covariance(
    pred: Tensor,
    samp: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> Tensor:
    r"""Blend of a predicted and a sample covariance, where beta is a share of energy.

    .. math:: R_1 = (1 - \beta) \frac{N}{\mathrm{tr} P} \frac{P + P^H}{2}
        + \beta \frac{N}{\mathrm{tr} S} \frac{S + S^H}{2}, \qquad
        R_2 = R_1 + \ell \, \frac{\mathrm{tr} R_1}{N} I, \qquad
        R_3 = (1 - s) R_2 + s \, \frac{\mathrm{tr} R_2}{N} I, \qquad
        R = \frac{t}{\mathrm{tr} R_3} R_3

    with P = ``pred``, S = ``samp``, :math:`\ell` = ``loading``, s = ``shrinkage`` and
    t = ``target_trace``. All of it is evaluated as one expression affine in the two matrices.

    With the default options and ``beta=0`` a Hermitian ``pred`` of trace N passes through
    unchanged. Scaling either matrix by a positive number changes nothing.

    Args:
        pred: [B, N, N], complex64 or complex128; its Hermitian part counts.
        samp: [B, N, N] of the same dtype, a constant: no gradient reaches it.
        beta: share of ``samp`` in the energy (trace), from 0 to 1.
        target_trace: trace of the result, > 0; None for N.
        loading: diagonal loading >= 0, relative to the mean eigenvalue.
        shrinkage: share of the scaled identity, from 0 to 1.

    Returns:
        [B, N, N] in the dtype of ``pred``, exactly Hermitian with a real diagonal, of trace
        ``target_trace``. A matrix whose trace is zero or negative is left out, and the other one
        takes its share; with neither the result is 0.

    Gradients reach ``pred`` (PyTorch's convention, dL/dRe + i dL/dIm) through its trace too; where
    that is zero or negative they are 0. They are recomputed from the inputs. Any strides and
    stride-0 batches are read in place; conjugated views are resolved by a copy. The result is
    bitwise the same on every run. Non-finite input stays in its scene. torch.compile specialises on
    the values of the options.

    Cost: memory-bound, in complex64 16 B N^2 bytes read and 8 B N^2 written, forward and backward
    alike.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, options out of range.

    Source: diagonal loading as in B. D. Carlson, "Covariance matrix estimation errors and diagonal
    loading in adaptive arrays", IEEE Trans. AES 24(4), 1988; shrinkage as in O. Ledoit and M. Wolf,
    "A well-conditioned estimator for large-dimensional covariance matrices", J. Multivariate
    Analysis 88(2), 2004.

    Example:
        >>> factor = torch.randn(2, 144, 5, dtype=torch.complex64)
        >>> samples = torch.randn(2, 144, 16, dtype=torch.complex64)
        >>> blend = blend_covariance(factor @ factor.mH, samples @ samples.mH, 0.3)
        >>> torch.equal(blend, blend.mH), [round(float(r.diagonal().sum().real)) for r in blend]
        (True, [144, 144])
    """
    result: Tensor = _call(
        pred,
        samp,
        beta,
        target_trace,
        loading=loading,
        shrinkage=shrinkage,
    )
    return result
