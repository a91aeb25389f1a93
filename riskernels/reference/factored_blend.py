# SPDX-License-Identifier: Apache-2.0
r"""Blend of the predicted and the sample covariance from their factors, in plain PyTorch.

R_pred = A A^H with A [N, K], R_samp = (1/L) sum_l a_l a_l^H = V V^H / L with the snapshots as the
columns of V [N, L]. Both are Hermitian as they are, and their traces are tP = |A|^2 and tS =
|V|^2 / L. Trace normalisation, blend, loading, shrinkage and the final normalisation of
``blend_covariance`` are affine in the two matrices, R = c_p R_pred + c_s R_samp + d I, where the
coefficients follow from the two traces (see its reference; a trace of 0 leaves its matrix out).
So R = X X^H + rho I with X = [sqrt(c_p) A, sqrt(c_s / L) V] and rho = d.

Backward. c_s and d do not depend on A, and sqrt(c_p) is a constant over |A|. For g = dL/dX_A, the
part of the incoming gradient at the columns of A,

    dL/dA = sqrt(c_p) (g - A Re<g, A> / tP),   <g, A> = sum conj(g_ij) A_ij.

Snapshots are a constant: their detachment is part of the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riskernels.reference.blend_covariance import blend_coefficients


def energy(x: Tensor) -> Tensor:
    """[B] sums of |x|^2 over all but the first dimension, in float64."""
    return torch.view_as_real(x).double().square().sum(tuple(range(1, x.dim() + 1)))


def factored_blend(
    factor: Tensor,
    snapshots: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """X [B, N, K + L] and rho [B] of the blend."""
    count = snapshots.shape[1]
    pred, samp, diagonal = blend_coefficients(
        energy(factor),
        energy(snapshots) / count,
        factor.shape[1],
        beta,
        target_trace,
        loading,
        shrinkage,
    )
    real = factor.dtype.to_real()
    scale_pred = pred.sqrt().to(real)[:, None, None]
    scale_samp = (samp / count).sqrt().to(real)[:, None, None]
    blend = torch.cat([scale_pred * factor, scale_samp * snapshots.mT], dim=-1)
    return blend, diagonal.to(real)


def factored_blend_backward(
    grad: Tensor,
    factor: Tensor,
    snapshots: Tensor,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> Tensor:
    """Gradient [B, N, K] to factor."""
    trace = energy(factor)
    pred, _, _ = blend_coefficients(
        trace,
        energy(snapshots) / snapshots.shape[1],
        factor.shape[1],
        beta,
        target_trace,
        loading,
        shrinkage,
    )
    real = factor.dtype.to_real()
    at_factor = grad[:, :, : factor.shape[2]]
    products = torch.view_as_real(at_factor).double() * torch.view_as_real(factor).double()
    present = trace != 0
    inner = products.sum((1, 2, 3)) / torch.where(present, trace, torch.ones_like(trace))
    scale = pred.sqrt()
    result = scale.to(real)[:, None, None] * at_factor
    result = result - (scale * inner).to(real)[:, None, None] * factor
    return torch.where(present[:, None, None], result, torch.zeros_like(result))
