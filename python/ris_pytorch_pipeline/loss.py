# SPDX-License-Identifier: Apache-2.0
"""The training loss, as named terms.

Every term is a mean over scenes of a value per scene, so that gradients of several batches,
weighted by their sizes, are those of one large batch. Terms are computed in float32/complex64 or
better, also under autocast, and denominators have a floor. ``R_true`` enters here as a target and
nowhere else. No term takes an N x N eigendecomposition or inverse: eigenvalues come from the Gram
matrices of the factors, the subspace projector from K x K solves on the true steering vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import riskernels

from .assignment import assign_slots
from .configs import CovarianceConfig, LossConfig, SystemConfig
from .covariance import blend_factor
from .geometry import wrap_angle
from .model import Inference, Prediction
from .simulate import Scenes, true_covariance, true_steering

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


def _energy(x: Tensor) -> Tensor:
    """Sum of |x|^2 over all but the first dimension."""
    return torch.view_as_real(x).square().flatten(1).sum(1)


def subspace_leakage(covariance: Tensor, steering: Tensor, mask: Tensor, ridge: float) -> Tensor:
    r"""Energy of R outside the span of the true steering vectors, ``|P' R P'|^2 / |R|^2``, [B].

    With P = A G^-1 A^H, G = A^H A + ridge I and P' = I - P, the projector never appears:
    Q Q^H = 2P - P^2 = A G^-1 (A^H A + 2 ridge I) G^-1 A^H gives, for Hermitian R, the numerator
    ``|R|^2 - 2 |Q^H R|^2 + |Q^H R Q|^2``. It lies in [0, 1].

    Args:
        covariance: [B, N, N] Hermitian.
        steering: [B, N, K]; no gradient reaches it.
        mask: [B, K] bool, the columns that count.
        ridge: of the K x K solve, relative to unit-norm columns.
    """
    columns = steering.detach() * mask[:, None, :]
    gram = columns.mH @ columns
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    # A masked column is zero: a one on its diagonal keeps the solve regular without any effect.
    gram = gram + torch.diag_embed((~mask).to(gram.dtype))
    root, _ = torch.linalg.cholesky_ex(gram + 2 * ridge * identity)
    lower, _ = torch.linalg.cholesky_ex(gram + ridge * identity)
    basis = columns @ torch.cholesky_solve(root, lower)
    leaked = basis.mH @ covariance
    total = _energy(covariance)
    numerator = total - 2 * _energy(leaked) + _energy(leaked @ basis)
    return numerator.clamp_min(0) / total.clamp_min(EPS)


def _leading_eigenvalues(factor: Tensor) -> Tensor:
    """Eigenvalues of X X^H in descending order, [B, r] from X [B, N, r].

    They are |X u_i|^2 with u_i the eigenvectors of X^H X held constant: their gradient u^H dG u is
    exact for simple eigenvalues and no derivative of an eigenvector, with its 1/(gap), is formed.
    A scene with non-finite entries gives non-finite values instead of failing the decomposition.
    On CUDA ``eigh`` reads its status back and so waits for the device, once per call.
    """
    gram = (factor.mH @ factor).detach()
    finite = torch.isfinite(gram).all(-1).all(-1)[:, None, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    vectors = torch.linalg.eigh(torch.where(finite, gram, identity))[1]
    return torch.view_as_real(factor @ vectors).square().sum((1, 3)).flip(1)


def eigengap_hinge(
    factor: Tensor,
    snapshots: Tensor,
    num_sources: Tensor,
    covariance: CovarianceConfig,
    ratio: float,
) -> Tensor:
    """``relu(lambda_{K+1} / lambda_K - ratio)`` of R_blend, [B], from its factors.

    Args:
        factor: A [B, N, K_max].
        snapshots: a_l [B, L, N].
        num_sources: K [B], at least 1 and below K_max + L.
    """
    combined, rho = blend_factor(factor, snapshots, covariance)
    values = _leading_eigenvalues(combined) + rho[:, None]
    last, following = (
        values.gather(1, index[:, None])[:, 0] for index in (num_sources - 1, num_sources)
    )
    return torch.relu(following / last.clamp_min(EPS) - ratio)


def margin_hinge(factor: Tensor, num_sources: Tensor, floor: float) -> Tensor:
    """``mean_{i <= K} relu(1 - lambda_i / (floor tr R_pred))``, [B], of R_pred = A A^H.

    Zero where each of the K leading eigenvalues holds at least the fraction ``floor`` of the trace.
    """
    values = _leading_eigenvalues(factor)
    share = values / (floor * values.sum(1, keepdim=True)).clamp_min(EPS)
    counted = torch.arange(values.shape[1], device=values.device) < num_sources[:, None]
    return (torch.relu(1 - share) * counted).sum(1) / num_sources.clamp_min(1)


def angle_error(estimate: Tensor, target: Tensor) -> Tensor:
    """Pseudo-Huber of the wrapped difference: quadratic below :data:`ANGLE_KNEE`, then linear."""
    return ANGLE_KNEE * (((wrap_angle(estimate - target) / ANGLE_KNEE).square() + 1).sqrt() - 1)


class LocalizationLoss:
    """The loss of a batch; a term of weight 0 is not computed.

    Args:
        system: makes the targets R_true and the true steering vectors from the scenes' parameters.
        loss: weights and constants.
        covariance: the blend that the eigengap term follows.
    """

    def __init__(
        self, system: SystemConfig, loss: LossConfig, covariance: CovarianceConfig
    ) -> None:
        self.system, self.loss, self.covariance = system, loss, covariance
        self.weights = {name: getattr(loss, name) for name in TERMS if getattr(loss, name) > 0}

    def __call__(self, inference: Inference, scenes: Scenes) -> dict[str, Tensor]:
        """Mean over the scenes of every term by name, and their weighted sum as ``total``."""
        with torch.autocast(scenes.y.device.type, enabled=False):
            terms = {k: v.mean() for k, v in self.per_scene(inference, scenes).items()}
            weighted = [self.weights[name] * term for name, term in terms.items()]
            terms["total"] = (
                torch.stack(weighted).sum() if weighted else inference.r_blend.real.sum() * 0
            )
        return terms

    def per_scene(self, inference: Inference, scenes: Scenes) -> dict[str, Tensor]:
        """Every term with a weight, [B] each, by name."""
        prediction, loss, weights = inference.prediction, self.loss, self.weights
        terms: dict[str, Tensor] = {}
        if "nmse_blend" in weights or "nmse_pred" in weights:
            terms.update(self._nmse(inference, scenes))
        if "subspace" in weights:
            steering = true_steering(self.system, scenes)
            terms["subspace"] = subspace_leakage(
                inference.r_blend, steering, scenes.mask, loss.ridge
            )
        if "eigengap" in weights:
            terms["eigengap"] = eigengap_hinge(
                prediction.factor,
                prediction.snapshots,
                scenes.num_sources,
                self.covariance,
                loss.eigengap_ratio,
            )
        if "margin" in weights:
            terms["margin"] = margin_hinge(prediction.factor, scenes.num_sources, loss.margin_floor)
        if weights.keys() & {"angle", "range_log", "existence"}:
            terms.update(self._positions(prediction, scenes))
        return terms

    def _nmse(self, inference: Inference, scenes: Scenes) -> dict[str, Tensor]:
        target = true_covariance(self.system, scenes)
        lam_diag, lam_off = self.loss.lam_diag, self.loss.lam_off
        terms = {}
        if "nmse_blend" in self.weights:
            trace = self.covariance.target_trace
            scaled = target if trace is None else target * (trace / self.system.elements)
            terms["nmse_blend"] = riskernels.hermitian_nmse(
                inference.r_blend, scaled, lam_diag, lam_off
            )
        if "nmse_pred" in self.weights:
            # R_true and R_pred both have trace N (Prediction.factor).
            terms["nmse_pred"] = riskernels.hermitian_nmse(
                inference.r_pred, target, lam_diag, lam_off
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
