# SPDX-License-Identifier: Apache-2.0
"""Operator ``subspace_leakage``: schema, rules and public function.

The public operator is a composition: its forward returns, beside the leakage, the energy |R|^2, the
basis and the projection, so that the backward reads the covariance once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._checks import check_grad_real
from riskernels.ops._covariance_checks import check_leakage, check_leakage_state
from riskernels.ops._registration import (
    define,
    define_composite,
    fold_vmap,
    refuse_autograd,
    register_autograd,
    register_fake,
    register_full_precision_autocast,
    register_vmap,
    unfold_vmap,
)
from riskernels.reference import subspace_leakage as reference


def _check(cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float) -> None:
    check_leakage("subspace_leakage", cov, steering, num_sources, ridge)


def _check_backward(
    grad: Tensor, cov: Tensor, leakage: Tensor, total: Tensor, basis: Tensor, projected: Tensor
) -> None:
    op = "subspace_leakage_backward"
    check_leakage_state(op, cov, basis, projected)
    for name, value in (("grad", grad), ("leakage", leakage), ("total", total)):
        check_grad_real(op, name, value, (cov.shape[0],), cov)


FORWARD = define(
    "subspace_leakage_forward(Tensor cov, Tensor steering, Tensor num_sources, float ridge) "
    "-> (Tensor leakage, Tensor total, Tensor basis, Tensor projected)",
    reference.subspace_leakage_forward,
    _check,
)
BACKWARD = define(
    "subspace_leakage_backward(Tensor grad, Tensor cov, Tensor leakage, Tensor total, "
    "Tensor basis, Tensor projected) -> Tensor",
    reference.subspace_leakage_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _composite(cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float = 1e-4) -> Tensor:
    leakage: Tensor = _call(cov, steering, num_sources, ridge)[0]
    return leakage


PUBLIC = define_composite(
    "subspace_leakage(Tensor cov, Tensor steering, Tensor num_sources, float ridge=0.0001) "
    "-> Tensor",
    _composite,
)


def _fake(
    cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(cov, steering, num_sources, ridge)
    real, (b, n, k) = cov.dtype.to_real(), steering.shape
    return (
        cov.new_empty((b,), dtype=real),
        cov.new_empty((b,), dtype=real),
        cov.new_empty((b, n, k)),
        cov.new_empty((b, k, n)),
    )


def _fake_backward(
    grad: Tensor, cov: Tensor, leakage: Tensor, total: Tensor, basis: Tensor, projected: Tensor
) -> Tensor:
    _check_backward(grad, cov, leakage, total, basis, projected)
    return cov.new_empty(cov.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    if ctx.needs_input_grad[1]:
        raise RuntimeError(
            "riskernels::subspace_leakage: steering requires grad, but it is a constant of this "
            "operator; pass steering.detach()"
        )
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(inputs[0], *output)


def _backward(ctx: Any, grad: Tensor, *_unused: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient = _call_backward(grad, *ctx.saved_tensors)
    return gradient, None, None, None


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    tensors = (fold_vmap(size, args[i], in_dims[i]) for i in range(3))
    outputs = torch.ops.riskernels.subspace_leakage_forward(*tensors, args[3])
    return tuple(unfold_vmap(size, out) for out in outputs), (0, 0, 0, 0)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    tensors = (fold_vmap(size, args[i], in_dims[i]) for i in range(6))
    output = torch.ops.riskernels.subspace_leakage_backward(*tensors)
    return unfold_vmap(size, output), 0


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)
register_autograd(FORWARD, _backward, _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, _vmap)
register_vmap(BACKWARD, _vmap_backward)
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def subspace_leakage(
    cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float = 1e-4
) -> Tensor:
    r"""Share of a covariance's energy that lies outside the span of steering vectors.

    .. math:: \mathrm{leakage} = \frac{\|(I - P) R (I - P)\|_F^2}{\|R\|_F^2}, \qquad
        P = A (A^H A + \rho I)^{-1} A^H

    with R = ``cov``, A the first ``num_sources`` columns of ``steering`` and :math:`\rho` =
    ``ridge``. It is 0 where R lies in their span (up to the ridge) and 1 where R is orthogonal to
    it. It is evaluated as :math:`\|R\|^2 - 2 \|Q^H R\|^2 + \|Q^H R Q\|^2` with
    :math:`Q Q^H = 2P - P^2`, Q of K columns, and not below 0: no N x N projector is formed.

    Args:
        cov: [B, N, N], complex64 or complex128. It is read as Hermitian.
        steering: [B, N, K] of the same dtype, the steering vectors of the sources; a constant.
        num_sources: [B] int64, how many columns count in each scene; clamped to [0, K]. Other
            columns may hold anything.
        ridge: added to the diagonal of :math:`A^H A`, > 0, in its units (1 for unit vectors).

    Returns:
        [B] real, from 0 to 1, float32 for complex64 and float64 for complex128; 0 where R is 0. Its
        absolute error is a few units of rounding of the dtype, as long as :math:`|R_{ij}|^2` and
        their sum stay within its range (entries from about 1e-17 to 1e17 in complex64).

    Gradients reach ``cov`` (PyTorch's convention, dL/dRe + i dL/dIm): those of the expanded form,
    with all entries independent. Steering vectors that require gradients are refused. Forward
    and backward each read ``cov`` once. Any strides and stride-0 batches are read in place;
    conjugated views are resolved by a copy. The result is bitwise the same on every run. Non-finite
    input stays in its scene.

    Cost: 4 K N^2 real multiply-adds per scene and, in complex64, 8 N^2 bytes read forward; the same
    and 8 N^2 bytes written backward. The K x K algebra runs in float64.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, ridge not finite and > 0, steering
            that requires gradients.

    Source: orthogonal projections as in H. Krim and M. Viberg, "Two decades of array signal
    processing research", IEEE Signal Processing Magazine 13(4), 1996.

    Example:
        >>> steering = torch.randn(2, 144, 5, dtype=torch.complex64) / 12
        >>> num_sources = torch.tensor([5, 2])
        >>> inside = steering @ steering.mH
        >>> leakage = subspace_leakage(inside, steering, num_sources)
        >>> bool(leakage[0] < 1e-5), bool(leakage[1] > 0.1)
        (True, True)
    """
    # What the operator of this name is composed of, without the way through its composition.
    return _composite(cov, steering, num_sources, ridge)
