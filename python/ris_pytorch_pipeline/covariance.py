# SPDX-License-Identifier: Apache-2.0
"""The one path from the predicted and the sample covariance to the covariance that is used.

``R_samp`` comes from the snapshots alone, ``R_pred = A A^H`` from the network's factor alone, and
:func:`effective_covariance` turns the two into ``R_blend``, the matrix that the loss sees in
training and the estimator sees in inference. The true covariance is no argument of anything here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import riskernels

from .configs import CovarianceConfig

if TYPE_CHECKING:
    from .simulate import Scenes

COEFFICIENT_FLOOR = 1e-30
"""Below any coefficient in use; keeps the gradient of a root at zero finite."""


def _reciprocal(trace: Tensor) -> Tensor:
    """1 / trace, and 0 for the zero trace: a zero covariance stays zero."""
    positive = trace > 0
    return positive / torch.where(positive, trace, 1)


def covariance_trace(covariance: Tensor) -> Tensor:
    """Real trace, [...] from [..., N, N]."""
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    return (diagonal.real if diagonal.is_complex() else diagonal).sum(-1)


def hermitize(covariance: Tensor) -> Tensor:
    """Hermitian part ``(R + R^H) / 2`` of [..., N, N]; its diagonal is exactly real."""
    return 0.5 * (covariance + covariance.mH)


def normalise_trace(covariance: Tensor, target_trace: float | None = None) -> Tensor:
    """``R * target_trace / tr R`` for [..., N, N]; ``target_trace`` is N when left out.

    >>> covariance_trace(normalise_trace(torch.eye(4, dtype=torch.complex64) * 7))
    tensor(4.)
    """
    target = covariance.shape[-1] if target_trace is None else target_trace
    scale = target * _reciprocal(covariance_trace(covariance))
    return covariance * scale[..., None, None]


def predicted_covariance(factor: Tensor) -> Tensor:
    """``R_pred = A A^H``, [..., N, N] from the factor [..., N, K]."""
    return factor @ factor.mH


def require_channel(scenes: Scenes) -> None:
    """Raise :class:`ValueError` unless ``y``, ``h`` and ``codes`` are there and fit each other.

    Without the channel there is no sample covariance, and nothing can stand in for it.
    """
    missing = [name for name in ("y", "h", "codes") if getattr(scenes, name, None) is None]
    if missing:
        raise ValueError(
            f"scenes without {', '.join(missing)}: the sample covariance is made from the "
            "snapshots y, the channel h and the codes, and from nothing else"
        )
    (batch, snapshots, antennas), elements = scenes.y.shape, scenes.codes.shape[-1]
    fits = scenes.codes.shape == (batch, snapshots, elements)
    if not fits or scenes.h.shape != (batch, antennas, elements):
        raise ValueError(
            f"scenes with y {list(scenes.y.shape)}, h {list(scenes.h.shape)}, codes "
            f"{list(scenes.codes.shape)}; expected y [B,L,M], h [B,M,N], codes [B,L,N]"
        )


def back_projected_snapshots(scenes: Scenes, config: CovarianceConfig) -> Tensor:
    """The snapshots seen at the surface, ``a_l`` [B, L, N]: ``R_samp = (1/L) sum_l a_l a_l^H``."""
    require_channel(scenes)
    snapshots = riskernels.tikhonov_snapshots(
        scenes.y, scenes.h, scenes.codes, config.alpha, relative=config.relative
    )
    return snapshots - snapshots.mean(1, keepdim=True) if config.center else snapshots


def sample_covariance(scenes: Scenes, config: CovarianceConfig) -> Tensor:
    """``R_samp`` [B, N, N] from the snapshots, the channel and the codes of ``scenes``."""
    require_channel(scenes)
    return riskernels.tikhonov_covariance(
        scenes.y,
        scenes.h,
        scenes.codes,
        config.alpha,
        relative=config.relative,
        center=config.center,
    )


def blend_coefficients(
    trace_pred: Tensor, trace_samp: Tensor, elements: int, config: CovarianceConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Real [...] coefficients of ``R_blend = c_p R_pred + c_s R_samp + d I``.

    Trace normalisation, blend, loading, shrinkage and the final normalisation are all affine in
    the two matrices, and each trace along the way follows from the two traces given. With
    N = ``elements``, b = beta, e = loading, s = shrinkage::

        B = (1-b) N R_pred / tr R_pred + b N R_samp / tr R_samp       t_B = tr B
        C = B + e (t_B / N) I                                         t_C = (1+e) t_B
        D = (1-s) C + s (t_C / N) I                                   R_blend = D target / t_C
    """
    target = float(elements if config.target_trace is None else config.target_trace)
    weight_pred = (1 - config.beta) * elements * _reciprocal(trace_pred)
    weight_samp = config.beta * elements * _reciprocal(trace_samp)
    trace_blend = weight_pred * trace_pred + weight_samp * trace_samp
    trace_loaded = (1 + config.loading) * trace_blend
    scale = target * _reciprocal(trace_loaded)
    keep = (1 - config.shrinkage) * scale
    diagonal = keep * config.loading * trace_blend + config.shrinkage * scale * trace_loaded
    return keep * weight_pred, keep * weight_samp, diagonal / elements


def effective_covariance(r_pred: Tensor, r_samp: Tensor, config: CovarianceConfig) -> Tensor:
    """The covariance that training, validation, inference and tuning all use, ``R_blend``.

    Hermitize and trace-normalise each input, ``(1-beta) R_pred + beta R_samp``, add diagonal
    loading relative to the mean eigenvalue, shrink towards ``(tr/N) I``, Hermitize and normalise
    to ``config.target_trace``. ``beta`` is therefore the energy fraction of the sample covariance.
    No gradient reaches ``r_samp``.

    Args:
        r_pred: [B, N, N] complex, from :func:`predicted_covariance`.
        r_samp: [B, N, N] complex, from :func:`sample_covariance`.
        config: the blend; :func:`blend_coefficients` holds its equation.

    Returns:
        R_blend [B, N, N], exactly Hermitian with a real diagonal.

    >>> r = torch.eye(3, dtype=torch.complex64)[None]
    >>> torch.equal(effective_covariance(r, r, CovarianceConfig(beta=0.0)), r)
    True
    """
    if r_pred.shape != r_samp.shape or r_pred.ndim != 3 or r_pred.shape[-1] != r_pred.shape[-2]:
        raise ValueError(
            f"effective_covariance: got r_pred {list(r_pred.shape)} and r_samp "
            f"{list(r_samp.shape)}; expected two [B, N, N] of the same size"
        )
    r_samp = r_samp.detach()
    elements = r_pred.shape[-1]
    c_pred, c_samp, diagonal = blend_coefficients(
        covariance_trace(r_pred), covariance_trace(r_samp), elements, config
    )
    # The Hermitian part of the sum; the factor 1/2 rides on the coefficients to save a pass.
    half = r_pred * (0.5 * c_pred)[:, None, None] + r_samp * (0.5 * c_samp)[:, None, None]
    blend = half + half.mH
    if config.loading == 0 and config.shrinkage == 0:
        return blend
    identity = torch.eye(elements, dtype=blend.dtype, device=blend.device)
    return blend + diagonal[:, None, None] * identity


def blend_factor(
    factor: Tensor, snapshots: Tensor, config: CovarianceConfig
) -> tuple[Tensor, Tensor]:
    """``(X, rho)`` with ``R_blend = X X^H + rho I`` (no dense matrix is formed).

    ``X = [sqrt(c_p) A, sqrt(c_s / L) (a_1 ... a_L)]`` is [B, N, K+L] for the predicted factor
    [B, N, K] and the back-projected snapshots [B, L, N]; ``rho`` is [B]. It is the same blend as
    :func:`effective_covariance`, for eigenvalues and ranks at the cost of a (K+L) x (K+L) Gram
    matrix. No gradient reaches the snapshots.
    """
    sample = snapshots.detach().mT / snapshots.shape[1] ** 0.5
    trace_pred, trace_samp = (
        torch.view_as_real(x).square().sum((1, 2, 3)) for x in (factor, sample)
    )
    c_pred, c_samp, rho = blend_coefficients(trace_pred, trace_samp, factor.shape[1], config)
    # A coefficient of zero (beta or shrinkage 0 or 1) has no gradient through its root.
    root_pred, root_samp = (
        c.clamp_min(COEFFICIENT_FLOOR).sqrt()[:, None, None] for c in (c_pred, c_samp)
    )
    return torch.cat([factor * root_pred, sample * root_samp], dim=2), rho
