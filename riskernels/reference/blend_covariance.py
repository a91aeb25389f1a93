# SPDX-License-Identifier: Apache-2.0
r"""Blend of a predicted and a sample covariance at given energy shares, in plain PyTorch.

Step by step, with herm(X) = (X + X^H)/2 and a trace target t:

    P_1 = N herm(P) / tr P,   S_1 = N herm(S) / tr S      trace normalisation,
    R_1 = (1 - beta) P_1 + beta S_1                       blend: beta is an energy share,
    R_2 = R_1 + loading tr(R_1)/N I                       loading relative to the mean eigenvalue,
    R_3 = (1 - shrinkage) R_2 + shrinkage tr(R_2)/N I     shrinkage,
    R   = t R_3 / tr R_3.

Every step is affine in the two matrices and every trace along the way follows from
t_P = Re tr P and t_S = Re tr S, so all of it is one expression,

    R = c_P herm(P) + c_S herm(S) + d I,

whose coefficients are functions of the two traces. A trace <= 0 leaves its matrix out, and the
other one has all the energy. S is a constant.

Of the three, only c_P depends on P, as 1/t_P. For G = dL/dR, H = herm(G) and
s = Re<G, herm(P)> = Re sum_ij conj(H_ij) P_ij,

    dL/dP = c_P H - (c_P / t_P) s I,   0 where t_P <= 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _hermitian(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT.conj_physical()) / 2


def _trace(matrix: Tensor) -> Tensor:
    """Real part of the trace, in float64 [B]."""
    return torch.diagonal(torch.view_as_real(matrix)[..., 0], dim1=1, dim2=2).double().sum(-1)


def blend_coefficients(
    trace_pred: Tensor,
    trace_samp: Tensor,
    elements: int,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """c_P, c_S, d of R = c_P herm(P) + c_S herm(S) + d I, from two float64 traces [B].

    A trace that is NaN makes its coefficient NaN.
    """
    target = float(elements) if target_trace is None else target_trace
    zero = trace_pred.new_zeros(())
    has_pred, has_samp = ~(trace_pred <= 0), ~(trace_samp <= 0)
    # Booleans times Python numbers would be float32.
    share = has_pred.double() * (1 - beta) + has_samp.double() * beta
    # R_1 has the trace N share, and loading multiplies it by 1 + loading.
    scale = torch.where(share > 0, target / (elements * share * (1 + loading)), zero)
    keep = (1 - shrinkage) * scale
    return (
        torch.where(has_pred, keep * (1 - beta) * (elements / trace_pred), zero),
        torch.where(has_samp, keep * beta * (elements / trace_samp), zero),
        keep * loading * share + shrinkage * scale * (1 + loading) * share,
    )


def blend_covariance(
    pred: Tensor,
    samp: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> Tensor:
    """R [B, N, N] from pred and samp [B, N, N]."""
    n, real = pred.shape[-1], pred.real.dtype
    coefficients = blend_coefficients(
        _trace(pred), _trace(samp), n, beta, target_trace, loading, shrinkage
    )
    of_pred, of_samp, diagonal = (c.to(real)[:, None, None] for c in coefficients)
    identity = torch.eye(n, dtype=real, device=pred.device)
    return of_pred * _hermitian(pred) + of_samp * _hermitian(samp) + diagonal * identity


def blend_covariance_backward(
    grad: Tensor,
    pred: Tensor,
    samp: Tensor,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> Tensor:
    """Gradient to pred."""
    n, real = pred.shape[-1], pred.real.dtype
    trace = _trace(pred)
    of_pred = blend_coefficients(trace, _trace(samp), n, beta, target_trace, loading, shrinkage)[0]
    hermitian = _hermitian(grad)
    inner = torch.view_as_real(hermitian).mul(torch.view_as_real(pred)).double().sum((1, 2, 3))
    zero = trace.new_zeros(())
    excluded = trace <= 0
    on_diagonal = torch.where(excluded, zero, -(of_pred / trace) * inner).to(real)
    identity = torch.eye(n, dtype=real, device=pred.device)
    result = of_pred.to(real)[:, None, None] * hermitian + on_diagonal[:, None, None] * identity
    # Selected rather than multiplied by the zero coefficient: the gradient may hold infinities.
    return torch.where(excluded[:, None, None], result.new_zeros(()), result)
