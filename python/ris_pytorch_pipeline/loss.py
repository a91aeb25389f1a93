# SPDX-License-Identifier: Apache-2.0
"""The training loss, as named terms.

Every term is a mean over scenes of a value per scene, so that gradients of several batches,
weighted by their sizes, are those of one large batch. Terms are computed in float32/complex64 or
better, also under autocast, and denominators have a floor. ``R_true`` enters here as a target and
nowhere else. No term takes an N x N eigendecomposition or inverse: eigenvalues come from the Gram
matrices of the factors, the subspace projector from K x K solves on the true steering vectors.

The terms on covariances exist in two forms of the same value: on the N x N matrices, and on their
factors, where nothing of a step has N x N entries (:func:`.inference.covariance_form`).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import riskernels

from .assignment import assign_slots
from .configs import CovarianceConfig, LossConfig, SystemConfig
from .geometry import wrap_angle
from .inference import Inference, covariance_form
from .model import Prediction
from .simulate import Scenes, true_covariance, true_factor, true_steering

EPS = 1e-12
ANGLE_KNEE = 0.1
"""Radians at which the angle error turns from quadratic to linear."""
TERMS = (
    "nmse_blend",
    "nmse_pred",
    "subspace",
    "eigengap",
    "margin",
    "angle",
    "range_log",
    "existence",
)
"""Names of the terms, each with a weight of the same name in :class:`LossConfig`."""


def eigengap_hinge(eigenvalues: Tensor, num_sources: Tensor, ratio: float) -> Tensor:
    """``relu(lambda_{K+1} / lambda_K - ratio)``, [B].

    Args:
        eigenvalues: of R_blend in descending order, [B, r].
        num_sources: K [B], at least 1 and below r.
    """
    pair = eigenvalues.gather(1, torch.stack([num_sources - 1, num_sources], dim=1))
    return torch.relu(pair[:, 1] / pair[:, 0].clamp_min(EPS) - ratio)


def margin_hinge(eigenvalues: Tensor, num_sources: Tensor, floor: float) -> Tensor:
    """``mean_{i <= K} relu(1 - lambda_i / (floor tr R_pred))``, [B].

    Zero where each of the K leading eigenvalues holds at least the fraction ``floor`` of the trace.

    Args:
        eigenvalues: of R_pred in descending order, [B, K_max], all that are not 0.
        num_sources: K [B].
    """
    share = eigenvalues / (floor * eigenvalues.sum(1, keepdim=True)).clamp_min(EPS)
    counted = torch.arange(eigenvalues.shape[1], device=share.device) < num_sources[:, None]
    return (torch.relu(1 - share) * counted).sum(1) / num_sources.clamp_min(1)


def angle_error(estimate: Tensor, target: Tensor) -> Tensor:
    """Pseudo-Huber of the wrapped difference: quadratic below :data:`ANGLE_KNEE`, then linear."""
    return ANGLE_KNEE * (((wrap_angle(estimate - target) / ANGLE_KNEE).square() + 1).sqrt() - 1)


class LocalizationLoss:
    """The loss of a batch; a term of weight 0 is not computed.

    Args:
        system: makes the targets R_true and the true steering vectors from the scenes' parameters.
        loss: weights and constants.
        covariance: the blend of the inferences to come; its trace is that of their target.
        form: whether the terms on covariances are computed on matrices or on factors.
    """

    def __init__(
        self,
        system: SystemConfig,
        loss: LossConfig,
        covariance: CovarianceConfig,
        form: Literal["auto", "dense", "factored"] = "auto",
    ) -> None:
        self.system, self.loss, self.covariance = system, loss, covariance
        self.form = covariance_form(form, system)
        self.weights = {name: getattr(loss, name) for name in TERMS if getattr(loss, name) > 0}
        self.names = (*self.weights, "total")
        """What a call returns, in this order."""

    def __call__(self, inference: Inference, scenes: Scenes) -> dict[str, Tensor]:
        """Mean over the scenes of every term by name, and their weighted sum as ``total``."""
        with torch.autocast(scenes.y.device.type, enabled=False):
            terms = {k: v.mean() for k, v in self.per_scene(inference, scenes).items()}
            weighted = [self.weights[name] * term for name, term in terms.items()]
            terms["total"] = torch.stack(weighted).sum()
        return terms

    def per_scene(self, inference: Inference, scenes: Scenes) -> dict[str, Tensor]:
        """Every term with a weight, [B] each, by name."""
        prediction, loss, weights = inference.prediction, self.loss, self.weights
        terms: dict[str, Tensor] = {}
        if weights.keys() & {"nmse_blend", "nmse_pred", "subspace"}:
            steering = true_steering(self.system, scenes)
            on_covariances = self._dense if self.form == "dense" else self._factored
            terms.update(on_covariances(inference, scenes, steering))
        if "eigengap" in weights:
            terms["eigengap"] = eigengap_hinge(
                self._spectrum(*inference.factors), scenes.num_sources, loss.eigengap_ratio
            )
        if "margin" in weights:
            terms["margin"] = margin_hinge(
                self._spectrum(prediction.factor), scenes.num_sources, loss.margin_floor
            )
        if weights.keys() & {"angle", "range_log", "existence"}:
            terms.update(self._positions(prediction, scenes))
        return terms

    def _spectrum(self, factor: Tensor, rho: Tensor | None = None) -> Tensor:
        return riskernels.factored_spectrum(factor, rho)

    def _nmse(self, estimate: Tensor, target: Tensor) -> Tensor:
        return riskernels.hermitian_nmse(estimate, target, self.loss.lam_diag, self.loss.lam_off)

    def _leakage(self, covariance: Tensor, steering: Tensor, num_sources: Tensor) -> Tensor:
        return riskernels.subspace_leakage(covariance, steering, num_sources, self.loss.ridge)

    def _target_scale(self) -> float:
        """Trace of R_blend over that of R_true and R_pred, which is N."""
        trace = self.covariance.target_trace
        return 1.0 if trace is None else trace / self.system.elements

    def _dense(self, inference: Inference, scenes: Scenes, steering: Tensor) -> dict[str, Tensor]:
        scale = self._target_scale()
        terms = {}
        if self.weights.keys() & {"nmse_blend", "nmse_pred"}:
            target = true_covariance(self.system, scenes, steering=steering)
        if "nmse_blend" in self.weights:
            scaled = target if scale == 1 else target * scale
            terms["nmse_blend"] = self._nmse(inference.r_blend, scaled)
        if "nmse_pred" in self.weights:
            terms["nmse_pred"] = self._nmse(inference.r_pred, target)
        if "subspace" in self.weights:
            terms["subspace"] = self._leakage(inference.r_blend, steering, scenes.num_sources)
        return terms

    def _factored(
        self, inference: Inference, scenes: Scenes, steering: Tensor
    ) -> dict[str, Tensor]:
        loss, scale = self.loss, self._target_scale()
        terms = {}
        if self.weights.keys() & {"nmse_blend", "nmse_pred"}:
            target = true_factor(self.system, scenes, steering)
            weighting = loss.lam_diag, loss.lam_off
        if "nmse_blend" in self.weights:
            scaled = target if scale == 1 else target * scale**0.5
            terms["nmse_blend"] = riskernels.factored_nmse(*inference.factors, scaled, *weighting)
        if "nmse_pred" in self.weights:
            terms["nmse_pred"] = riskernels.factored_nmse(
                inference.prediction.factor, None, target, *weighting
            )
        if "subspace" in self.weights:
            terms["subspace"] = riskernels.factored_leakage(
                *inference.factors, steering, scenes.num_sources, loss.ridge
            )
        return terms

    def _positions(self, prediction: Prediction, scenes: Scenes) -> dict[str, Tensor]:
        """Angle, range and existence under the assignment of least weighted position error."""
        mask, weights = scenes.mask, self.weights
        # [B, slot, source]
        angle = angle_error(prediction.phi[:, :, None], scenes.phi[:, None]) + angle_error(
            prediction.theta[:, :, None], scenes.theta[:, None]
        )
        range_log = torch.log(prediction.r[:, :, None] / scenes.r[:, None]).square()
        w_angle, w_range = weights.get("angle", 0.0), weights.get("range_log", 0.0)
        if w_angle == w_range == 0:
            w_angle = w_range = 1.0
        slot = assign_slots(w_angle * angle + w_range * range_log, mask)
        count = mask.sum(1).clamp_min(1)

        def matched(errors: Tensor) -> Tensor:
            return (errors.gather(1, slot[:, None])[:, 0] * mask).sum(1) / count

        terms = {}
        if "angle" in weights:
            terms["angle"] = matched(angle)
        if "range_log" in weights:
            terms["range_log"] = matched(range_log)
        if "existence" in weights:
            exists = torch.zeros_like(prediction.existence).scatter(1, slot, mask.float())
            terms["existence"] = F.binary_cross_entropy_with_logits(
                prediction.existence, exists, reduction="none"
            ).mean(1)
        return terms
