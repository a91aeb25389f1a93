# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Coefficients of the blend R = c_p R_pred + c_s R_samp + d I, which dense and factored share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def blend_coefficients(
    trace_pred, trace_samp, elements, beta, target_trace, loading, shrinkage
):  # fmt: skip
    """c_p, c_s and d in float64 from the two traces and the options of the operator.

    Every step of the blend is affine in the matrices, and every trace along the way follows from
    the two given. A trace that is zero or negative leaves its matrix out; one that is NaN makes
    its coefficient NaN.
    """
    beta = tl.full((), beta, tl.float64)
    loading = tl.full((), loading, tl.float64)
    shrinkage = tl.full((), shrinkage, tl.float64)
    target_trace = tl.full((), target_trace, tl.float64)
    n = tl.full((), 1.0, tl.float64) * elements
    weight_pred = tl.where(trace_pred <= 0, 0.0, 1 - beta)
    weight_samp = tl.where(trace_samp <= 0, 0.0, beta)
    share = weight_pred + weight_samp
    # Of a trace of n * share before loading; loading multiplies it by 1 + loading.
    some = share > 0
    scale = tl.where(some, target_trace / (n * tl.where(some, share, 1.0) * (1 + loading)), 0.0)
    keep = (1 - shrinkage) * scale
    on_pred = keep * weight_pred * (n / tl.where(trace_pred <= 0, 1.0, trace_pred))
    on_samp = keep * weight_samp * (n / tl.where(trace_samp <= 0, 1.0, trace_samp))
    diagonal = keep * loading * share + shrinkage * scale * (1 + loading) * share
    return on_pred, on_samp, diagonal
