# SPDX-License-Identifier: Apache-2.0
"""Operator ``tikhonov_snapshots``: schema, rules and public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._checks import check_grad, check_tikhonov
from riskernels.ops._registration import (
    define,
    fold_vmap,
    refuse_autograd,
    register_autograd,
    register_fake,
    register_full_precision_autocast,
    register_vmap,
    unfold_needed,
    unfold_vmap,
)
from riskernels.reference import tikhonov_snapshots as reference


def _check(
    y: Tensor, h: Tensor, codes: Tensor, alpha: float = 1e-3, *, relative: bool = False
) -> None:
    check_tikhonov("tikhonov_snapshots", y, h, codes, alpha)


def _check_backward(
    grad: Tensor, y: Tensor, h: Tensor, codes: Tensor, alpha: float, **options: bool
) -> None:
    op = "tikhonov_snapshots_backward"
    check_tikhonov(op, y, h, codes, alpha)
    check_grad(op, grad, (y.shape[0], y.shape[1], codes.shape[2]), y)


FORWARD = define(
    "tikhonov_snapshots(Tensor y, Tensor h, Tensor codes, float alpha=0.001, *, "
    "bool relative=False) -> Tensor",
    reference.tikhonov_snapshots,
    _check,
)
BACKWARD = define(
    "tikhonov_snapshots_backward(Tensor grad, Tensor y, Tensor h, Tensor codes, float alpha, *, "
    "bool relative, bool need_y=True, bool need_h=True, bool need_codes=True) "
    "-> (Tensor, Tensor, Tensor)",
    reference.tikhonov_snapshots_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _fake(
    y: Tensor, h: Tensor, codes: Tensor, alpha: float = 1e-3, *, relative: bool = False
) -> Tensor:
    _check(y, h, codes, alpha)
    return y.new_empty((y.shape[0], y.shape[1], codes.shape[2]))


def fake_gradients(
    y: Tensor, h: Tensor, codes: Tensor, need_y: bool, need_h: bool, need_codes: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of a Tikhonov backward operator; a gradient that is not needed is empty."""
    return (
        y.new_empty(y.shape if need_y else (0,)),
        h.new_empty(h.shape if need_h else (0,)),
        codes.new_empty(codes.shape if need_codes else (0,)),
    )


def _fake_backward(
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
    _check_backward(grad, y, h, codes, alpha)
    return fake_gradients(y, h, codes, need_y, need_h, need_codes)


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    y, h, codes, ctx.alpha = inputs
    ctx.options = dict(keyword_only_inputs)
    ctx.save_for_backward(y, h, codes)


def autograd_rule(backward_op: Any) -> Any:
    """Backward of a Tikhonov operator: recompute from the inputs, skip what nobody asked for."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, h, codes = ctx.saved_tensors
        need_y, need_h, need_codes = ctx.needs_input_grad[:3]
        grad_y, grad_h, grad_codes = backward_op(
            grad,
            y,
            h,
            codes,
            ctx.alpha,
            **ctx.options,
            need_y=need_y,
            need_h=need_h,
            need_codes=need_codes,
        )
        return (
            grad_y if need_y else None,
            grad_h if need_h else None,
            grad_codes if need_codes else None,
            None,
        )

    return backward


def vmap_rule(forward_op: Any) -> Any:
    """Mapped scenes join the batch."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any, **options: Any) -> tuple[Any, int]:
        size = info.batch_size
        tensors = [fold_vmap(size, t, d) for t, d in zip(args[:3], in_dims[:3], strict=True)]
        return unfold_vmap(size, forward_op(*tensors, *args[3:], **options)), 0

    return rule


def vmap_rule_backward(backward_op: Any) -> Any:
    """Mapped gradients join the batch; a gradient that is not needed stays empty."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any, **options: Any) -> tuple[Any, Any]:
        size = info.batch_size
        tensors = [fold_vmap(size, t, d) for t, d in zip(args[:4], in_dims[:4], strict=True)]
        outputs = backward_op(*tensors, *args[4:], **options)
        return unfold_needed(size, outputs, options, ("need_y", "need_h", "need_codes"))

    return rule


register_autograd(FORWARD, autograd_rule(_call_backward), _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, vmap_rule(torch.ops.riskernels.tikhonov_snapshots))
register_vmap(BACKWARD, vmap_rule_backward(torch.ops.riskernels.tikhonov_snapshots_backward))
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def tikhonov_snapshots(
    y: Tensor, h: Tensor, codes: Tensor, alpha: float = 1e-3, *, relative: bool = False
) -> Tensor:
    r"""Tikhonov estimate of the surface's signal in every snapshot.

    .. math:: a_\ell = (\Phi_\ell^H \Phi_\ell + \alpha I_N)^{-1} \Phi_\ell^H y_\ell
        = \Phi_\ell^H (\Phi_\ell \Phi_\ell^H + \alpha I_M)^{-1} y_\ell,
        \qquad \Phi_\ell = H_\ell \, \mathrm{diag}(c_\ell)

    The estimates are the factor of the sample covariance: with ``V = a.mT``,
    :func:`tikhonov_covariance` is ``V @ V.mH / L``.

    Args:
        y: [B, L, M] snapshots at the base station, complex64 or complex128.
        h: [B, M, N] channel of each scene, or [B, L, M, N] one channel per snapshot.
        codes: [B, L, N] phase codes, any complex amplitudes.
        alpha: Tikhonov parameter > 0, in the units of :math:`|\Phi|^2` (linear, not dB).
        relative: use :math:`\alpha \, \mathrm{tr}(\Phi_\ell^H \Phi_\ell) / N` in its place.

    Returns:
        [B, L, N] estimates in the dtype of ``y``.

    Gradients reach ``y``, ``h`` and ``codes`` (PyTorch's convention, dL/dRe + i dL/dIm). To learn
    alpha, pass ``y / s`` and ``h / s`` with ``alpha=1.0`` for s = sqrt(alpha): the estimate is
    the same and differentiable in s.

    Any strides and stride-0 batches are read in place; conjugated views are resolved by a copy. The
    result is bitwise the same on every run. Non-finite input stays in its scene. torch.compile
    specialises on the value of alpha: one that changes belongs into the scaling above.

    Cost per scene, with ``|c_ln|`` independent of l and one H: 2 M^2 N + 4 L M N + 4 L M^2 real
    multiply-adds; otherwise the first term is paid for each snapshot.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, alpha not finite and > 0.

    Source: push-through identity, e.g. S. M. Kay, *Fundamentals of Statistical Signal
    Processing: Estimation Theory*, chapter 10.

    Example:
        >>> y = torch.randn(2, 16, 16, dtype=torch.complex64)
        >>> h = torch.randn(2, 16, 144, dtype=torch.complex64) / 12
        >>> codes = torch.polar(torch.ones(2, 16, 144), torch.rand(2, 16, 144) * 6.2832)
        >>> tikhonov_snapshots(y, h, codes).shape
        torch.Size([2, 16, 144])
    """
    # As in tikhonov_covariance.
    options = {} if relative is False else {"relative": relative}
    result: Tensor = _call(y, h, codes, alpha, **options)
    return result
