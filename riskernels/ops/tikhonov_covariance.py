# SPDX-License-Identifier: Apache-2.0
"""Operator ``tikhonov_covariance``: schema, rules and public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._checks import check_grad, check_tikhonov
from riskernels.ops._registration import (
    define,
    refuse_autograd,
    register_autograd,
    register_fake,
    register_full_precision_autocast,
    register_vmap,
)
from riskernels.ops.tikhonov_snapshots import (
    autograd_rule,
    fake_gradients,
    vmap_rule,
    vmap_rule_backward,
)
from riskernels.reference import tikhonov_covariance as reference


def _check(y: Tensor, h: Tensor, codes: Tensor, alpha: float = 1e-3, **options: bool) -> None:
    check_tikhonov("tikhonov_covariance", y, h, codes, alpha)


def _check_backward(
    grad: Tensor, y: Tensor, h: Tensor, codes: Tensor, alpha: float, **options: bool
) -> None:
    op = "tikhonov_covariance_backward"
    check_tikhonov(op, y, h, codes, alpha)
    check_grad(op, grad, (y.shape[0], codes.shape[2], codes.shape[2]), y)


FORWARD = define(
    "tikhonov_covariance(Tensor y, Tensor h, Tensor codes, float alpha=0.001, *, "
    "bool relative=False, bool center=False) -> Tensor",
    reference.tikhonov_covariance,
    _check,
)
BACKWARD = define(
    "tikhonov_covariance_backward(Tensor grad, Tensor y, Tensor h, Tensor codes, float alpha, *, "
    "bool relative, bool center, bool need_y=True, bool need_h=True, bool need_codes=True) "
    "-> (Tensor, Tensor, Tensor)",
    reference.tikhonov_covariance_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _fake(y: Tensor, h: Tensor, codes: Tensor, alpha: float = 1e-3, **options: bool) -> Tensor:
    _check(y, h, codes, alpha)
    return y.new_empty((y.shape[0], codes.shape[2], codes.shape[2]))


def _fake_backward(
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
    _check_backward(grad, y, h, codes, alpha)
    return fake_gradients(y, h, codes, need_y, need_h, need_codes)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    y, h, codes, ctx.alpha = inputs
    ctx.options = dict(keyword_only_inputs)
    ctx.save_for_backward(y, h, codes)


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)
register_autograd(FORWARD, autograd_rule(_call_backward), _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, vmap_rule(torch.ops.riskernels.tikhonov_covariance))
register_vmap(BACKWARD, vmap_rule_backward(torch.ops.riskernels.tikhonov_covariance_backward))
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def tikhonov_covariance(
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    alpha: float = 1e-3,
    *,
    relative: bool = False,
    center: bool = False,
) -> Tensor:
    r"""Sample covariance of the per-snapshot Tikhonov estimates, in one call.

    .. math:: R = \frac{1}{L} \sum_{\ell=1}^{L} a_\ell a_\ell^H, \qquad
        a_\ell = (\Phi_\ell^H \Phi_\ell + \alpha I_N)^{-1} \Phi_\ell^H y_\ell, \qquad
        \Phi_\ell = H_\ell \, \mathrm{diag}(c_\ell)

    Args:
        y: [B, L, M] snapshots at the base station, complex64 or complex128.
        h: [B, M, N] channel of each scene, or [B, L, M, N] one channel per snapshot.
        codes: [B, L, N] phase codes, any complex amplitudes.
        alpha: Tikhonov parameter > 0, in the units of :math:`|\Phi|^2` (linear, not dB).
        relative: use :math:`\alpha \, \mathrm{tr}(\Phi_\ell^H \Phi_\ell) / N` in its place.
        center: subtract the mean of the :math:`a_\ell` over :math:`\ell` first.

    Returns:
        [B, N, N] in the dtype of ``y``: exactly Hermitian, with a real diagonal, positive
        semidefinite, of rank min(N, L), or min(N, L - 1) with ``center``. It is not
        trace-normalised.

    Gradients reach ``y``, ``h`` and ``codes`` (PyTorch's convention, dL/dRe + i dL/dIm), and are
    recomputed from the inputs: no N x N intermediate is kept. See :func:`tikhonov_snapshots` for
    a differentiable alpha.

    Any strides and stride-0 batches are read in place; conjugated views are resolved by a copy. The
    result is bitwise the same on every run. Non-finite input stays in its scene. torch.compile
    specialises on the value of alpha: one that changes belongs into that scaling.

    Cost per scene, with ``|c_ln|`` independent of l and one H: 2 M^2 N + 4 L M N + 4 L M^2 +
    2 L N^2 real multiply-adds and, in complex64, 8 N^2 bytes written; otherwise the first term is
    paid for each snapshot.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, alpha not finite and > 0.

    Source: push-through identity, e.g. S. M. Kay, *Fundamentals of Statistical Signal
    Processing: Estimation Theory*, chapter 10.

    Example:
        >>> y = torch.randn(2, 16, 16, dtype=torch.complex64)
        >>> h = torch.randn(2, 16, 144, dtype=torch.complex64) / 12
        >>> codes = torch.polar(torch.ones(2, 16, 144), torch.rand(2, 16, 144) * 6.2832)
        >>> covariance = tikhonov_covariance(y, h, codes)
        >>> covariance.shape, torch.equal(covariance, covariance.mH)
        (torch.Size([2, 144, 144]), True)
    """
    # What is passed and compared for nothing would take a twentieth of the time of a small scene.
    plain = relative is False and center is False
    options = {} if plain else {"relative": relative, "center": center}
    result: Tensor = _call(y, h, codes, alpha, **options)
    return result
