# SPDX-License-Identifier: Apache-2.0
"""The covariance terms of a training step: the weighted sum of a scene from its parts.

Weights and constants are the defaults of the trainer's loss. The sum over terms is the same for
every implementation; what differs is how NMSE, leakage and eigenvalues come about.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.operators import _covariance as covariance
from ris_pytorch_pipeline.configs import CovarianceConfig, LossConfig

DEFAULTS = LossConfig()
BETA = CovarianceConfig().beta
WEIGHTS = {
    name: getattr(DEFAULTS, name)
    for name in ("nmse_blend", "nmse_pred", "subspace", "eigengap", "margin")
}
EIGENGAP_RATIO, MARGIN_FLOOR = DEFAULTS.eigengap_ratio, DEFAULTS.margin_floor


def target_factor(steering: Tensor, powers: Tensor, num_sources: Tensor) -> Tensor:
    """W [B, N, K] with R_true = W W^H of trace N; padded columns are zero."""
    counted = torch.arange(powers.shape[1], device=powers.device) < num_sources[:, None]
    scaled = steering * (powers.sqrt() * counted)[:, None]
    return covariance.with_trace(scaled, steering.shape[1])


def eigengap(values: Tensor, num_sources: Tensor) -> Tensor:
    """relu(lambda_{K+1} / lambda_K - ratio), [B], from descending eigenvalues of R_blend."""
    last, following = (
        values.gather(1, index[:, None])[:, 0] for index in (num_sources - 1, num_sources)
    )
    return torch.relu(following / last - EIGENGAP_RATIO)


def margin(values: Tensor, num_sources: Tensor) -> Tensor:
    """mean_{i <= K} relu(1 - lambda_i / (floor tr R_pred)), [B], from eigenvalues of R_pred."""
    share = values / (MARGIN_FLOOR * values.sum(1, keepdim=True))
    counted = torch.arange(values.shape[1], device=values.device) < num_sources[:, None]
    return (torch.relu(1 - share) * counted).sum(1) / num_sources


def total(
    nmse_blend: Tensor,
    nmse_pred: Tensor,
    leakage: Tensor,
    values_blend: Tensor,
    values_pred: Tensor,
    num_sources: Tensor,
) -> Tensor:
    """The weighted sum of the five terms, [B]."""
    return (
        WEIGHTS["nmse_blend"] * nmse_blend
        + WEIGHTS["nmse_pred"] * nmse_pred
        + WEIGHTS["subspace"] * leakage
        + WEIGHTS["eigengap"] * eigengap(values_blend, num_sources)
        + WEIGHTS["margin"] * margin(values_pred, num_sources)
    )
