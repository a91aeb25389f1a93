# SPDX-License-Identifier: Apache-2.0
"""The one path from the predicted and the sample covariance to the covariance that is used.

``R_samp`` comes from the snapshots alone, ``R_pred = A A^H`` from the network's factor alone, and
:func:`effective_covariance` turns the two into ``R_blend``, the matrix that the loss sees in
training and the estimator sees in inference. :func:`blend_factor` is the same blend as a factor,
for losses that never form an N x N matrix. The true covariance is no argument of anything here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

import riskernels

from .configs import CovarianceConfig

if TYPE_CHECKING:
    from .simulate import Scenes


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


def effective_covariance(r_pred: Tensor, r_samp: Tensor, config: CovarianceConfig) -> Tensor:
    """The covariance that training, validation, inference and tuning all use, ``R_blend``.

    Hermitize and trace-normalise each input, ``(1-beta) R_pred + beta R_samp``, add diagonal
    loading relative to the mean eigenvalue, shrink towards ``(tr/N) I``, Hermitize and normalise
    to ``config.target_trace``. ``beta`` is therefore the energy fraction of the sample covariance.
    No gradient reaches ``r_samp``.

    Args:
        r_pred: [B, N, N] complex, from :func:`predicted_covariance`.
        r_samp: [B, N, N] complex, from :func:`sample_covariance`.
        config: the blend; ``riskernels.blend_covariance`` holds its equation.

    Returns:
        R_blend [B, N, N], exactly Hermitian with a real diagonal.

    >>> import torch
    >>> r = torch.eye(3, dtype=torch.complex64)[None]
    >>> torch.equal(effective_covariance(r, r, CovarianceConfig(beta=0.0)), r)
    True
    """
    return riskernels.blend_covariance(
        r_pred,
        r_samp,
        config.beta,
        config.target_trace,
        loading=config.loading,
        shrinkage=config.shrinkage,
    )


def blend_factor(
    factor: Tensor, snapshots: Tensor, config: CovarianceConfig
) -> tuple[Tensor, Tensor]:
    """``(X, rho)`` with ``R_blend = X X^H + rho I``: :func:`effective_covariance` without N x N.

    ``X = [sqrt(c_p) A, sqrt(c_s / L) (a_1 ... a_L)]`` is [B, N, K+L] for the predicted factor
    [B, N, K] and the back-projected snapshots [B, L, N]; ``rho`` is [B]. No gradient reaches the
    snapshots.
    """
    return riskernels.factored_blend(
        factor,
        snapshots,
        config.beta,
        config.target_trace,
        loading=config.loading,
        shrinkage=config.shrinkage,
    )
