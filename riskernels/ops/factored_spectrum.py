# SPDX-License-Identifier: Apache-2.0
"""Operator ``factored_spectrum``: schema, rules and public function.

The public operator is a composition: its forward returns, beside the eigenvalues, the eigenvectors
of the Gram matrix, from which the backward forms the gradient without another decomposition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._factored_checks import (
    check_factored_spectrum,
    check_factored_spectrum_backward,
)
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
from riskernels.reference import factored_spectrum as reference


def _check(factor: Tensor, rho: Tensor | None) -> None:
    check_factored_spectrum("factored_spectrum", factor, rho)


def _check_backward(
    grad: Tensor,
    factor: Tensor,
    vectors: Tensor,
    *,
    need_factor: bool = True,
    need_rho: bool = True,
) -> None:
    check_factored_spectrum_backward("factored_spectrum_backward", grad, factor, vectors)


FORWARD = define(
    "factored_spectrum_forward(Tensor factor, Tensor? rho) -> (Tensor, Tensor)",
    reference.factored_spectrum_forward,
    _check,
)
BACKWARD = define(
    "factored_spectrum_backward(Tensor grad, Tensor factor, Tensor vectors, *, "
    "bool need_factor=True, bool need_rho=True) -> (Tensor, Tensor)",
    reference.factored_spectrum_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _composite(factor: Tensor, rho: Tensor | None = None) -> Tensor:
    values: Tensor = _call(factor, rho)[0]
    return values


PUBLIC = define_composite(
    "factored_spectrum(Tensor factor, Tensor? rho=None) -> Tensor",
    _composite,
)


def _fake(factor: Tensor, rho: Tensor | None) -> tuple[Tensor, Tensor]:
    _check(factor, rho)
    b, _, r = factor.shape
    return factor.new_empty((b, r), dtype=factor.dtype.to_real()), factor.new_empty((b, r, r))


def _fake_backward(
    grad: Tensor,
    factor: Tensor,
    vectors: Tensor,
    *,
    need_factor: bool = True,
    need_rho: bool = True,
) -> tuple[Tensor, Tensor]:
    _check_backward(grad, factor, vectors)
    return (
        factor.new_empty(factor.shape if need_factor else (0,)),
        grad.new_empty((factor.shape[0],) if need_rho else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _backward(ctx: Any, grad: Tensor, _grad_vectors: Tensor | None) -> tuple[Tensor | None, ...]:
    need_factor, need_rho = ctx.needs_input_grad[:2]
    grad_factor, grad_rho = _call_backward(
        grad, *ctx.saved_tensors, need_factor=need_factor, need_rho=need_rho
    )
    return grad_factor if need_factor else None, grad_rho if need_rho else None


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    factor, rho = fold_arguments(size, args, in_dims, 2)
    outputs = torch.ops.riskernels.factored_spectrum_forward(factor, rho)
    return tuple(unfold_vmap(size, out) for out in outputs), (0, 0)


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], *args: Any, **needs: bool
) -> tuple[Any, Any]:
    size = info.batch_size
    tensors = fold_arguments(size, args, in_dims, 3)
    outputs = torch.ops.riskernels.factored_spectrum_backward(*tensors, **needs)
    return unfold_needed(size, outputs, needs, ("need_factor", "need_rho"))


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)
register_autograd(FORWARD, _backward, _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, _vmap)
register_vmap(BACKWARD, _vmap_backward)
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def factored_spectrum(factor: Tensor, rho: Tensor | None = None) -> Tensor:
    r"""Eigenvalues of a covariance in factored form, from the Gram matrix of its factor.

    .. math:: \lambda_i\left(X X^H + \rho I_N\right) = \lambda_i(X^H X) + \rho, \qquad
        i = 1, \dots, r

    The N - r eigenvalues that are not returned where r < N equal rho. Where r > N, the Gram matrix
    has r - N more than the covariance; in their place the result holds rho too.

    Args:
        factor: X, [B, N, r], complex64 or complex128.
        rho: [B] real in the precision of ``factor``, in the units of :math:`|X|^2`; None for 0.

    Returns:
        [B, r] real in descending order, float32 for complex64 and float64 for complex128.

    Gradients reach ``factor`` and ``rho`` (PyTorch's convention, dL/dRe + i dL/dIm):
    :math:`\partial L / \partial X = 2 X V \mathrm{diag}(g) V^H` with the eigenvectors V of the Gram
    matrix. Nothing is divided by a difference of eigenvalues. Where eigenvalues coincide, the
    gradient is exact for a function that is symmetric in them, and a subgradient otherwise.

    The Gram matrix and its decomposition are computed in float64 whatever the precision of
    ``factor``: a value is right to about 1e-14 of the largest one before it is rounded. Any strides
    and stride-0 batches are read in place; conjugated views are resolved by a copy. The result is
    bitwise the same on every run. A scene that holds a non-finite number gives NaN; others are not
    affected.

    Cost per scene: 2 N r^2 real multiply-adds for the Gram matrix and about 12 r^3 for its
    decomposition in float64, 4 N r^2 backward; memory O(r^2).

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.

    Example:
        >>> factor = torch.zeros(1, 4, 2, dtype=torch.complex64)
        >>> factor[0, 0, 0], factor[0, 1, 1] = 1.0, 2.0j
        >>> factored_spectrum(factor, torch.tensor([0.5]))
        tensor([[4.5000, 1.5000]])
    """
    # What the operator of this name is composed of, without the way through its composition.
    return _composite(factor, rho)
