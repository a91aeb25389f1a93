# SPDX-License-Identifier: Apache-2.0
"""The covariance terms in plain PyTorch, as a careful user would write them without riskernels.

Vectorised over scenes and snapshots, push-through solves, K x K projections, eigenvalues from the
small Gram matrices of the factors, real coefficients on real views, gradients by autograd.
``ris profile`` measures the operators against this; nothing in training or inference uses it.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from .configs import CovarianceConfig, LossConfig, SystemConfig
from .covariance import require_channel
from .inference import Inference
from .loss import EPS, LocalizationLoss
from .simulate import Scenes


def energy(x: Tensor) -> Tensor:
    """Sum of ``|x|^2`` of every scene, [B] from [B, ., .]."""
    return torch.view_as_real(x).square().sum((1, 2, 3))


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """x [B, ., .] times a real number a scene: PyTorch would make it a complex one."""
    return torch.view_as_complex(torch.view_as_real(x) * factor[:, None, None, None])


def trace(x: Tensor) -> Tensor:
    """Real trace, [B]."""
    return x.diagonal(dim1=1, dim2=2).real.sum(1)


def back_projected_snapshots(scenes: Scenes, config: CovarianceConfig) -> Tensor:
    """a_l [B, L, N] by push-through; the M x M matrices of a scene are one product."""
    require_channel(scenes)
    y, h, codes = scenes.y, scenes.h, scenes.codes
    batch, count, antennas = y.shape
    weights = torch.view_as_real(codes).square().sum(-1)
    weighted = (h.unsqueeze(1) * weights.unsqueeze(2)).reshape(batch, count * antennas, -1)
    gram = (weighted @ h.mH).reshape(batch, count, antennas, antennas)
    identity = torch.eye(antennas, dtype=y.dtype, device=y.device)
    loading: float | Tensor = config.alpha
    if config.relative:
        power = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        loading = (config.alpha / h.shape[-1] * power)[..., None, None]
    factor, _ = torch.linalg.cholesky_ex(gram + loading * identity)
    z = torch.cholesky_solve(y.unsqueeze(-1), factor).squeeze(-1)
    snapshots = (z @ h.conj()) * codes.conj()
    return snapshots - snapshots.mean(1, keepdim=True) if config.center else snapshots


def blend_coefficients(
    trace_pred: Tensor, trace_samp: Tensor, elements: int, config: CovarianceConfig
) -> tuple[Tensor, Tensor, float]:
    """R_blend = c_p R_pred + c_s R_samp + d I, for positive traces."""
    target = elements if config.target_trace is None else config.target_trace
    keep = (1 - config.shrinkage) / (1 + config.loading) * target
    diagonal = (keep * config.loading + config.shrinkage * target) / elements
    return keep * (1 - config.beta) / trace_pred, keep * config.beta / trace_samp, diagonal


def blend(r_pred: Tensor, r_samp: Tensor, config: CovarianceConfig) -> Tensor:
    """R_blend [B, N, N]."""
    c_pred, c_samp, diagonal = blend_coefficients(
        trace(r_pred), trace(r_samp), r_pred.shape[1], config
    )
    half = scale(r_pred, 0.5 * c_pred) + scale(r_samp.detach(), 0.5 * c_samp)
    whole = half + half.mH
    if diagonal:
        whole.diagonal(dim1=1, dim2=2).add_(diagonal)
    return whole


def blend_factor(
    factor: Tensor, snapshots: Tensor, config: CovarianceConfig
) -> tuple[Tensor, Tensor]:
    """(X, rho) with R_blend = X X^H + rho I."""
    sample, count = snapshots.detach().mT, snapshots.shape[1]
    traces = energy(factor), energy(sample) / count
    c_pred, c_samp, diagonal = blend_coefficients(*traces, factor.shape[1], config)
    parts = [scale(factor, c_pred.sqrt()), scale(sample, (c_samp / count).sqrt())]
    return torch.cat(parts, dim=2), torch.full_like(c_samp, diagonal)


def nmse(estimate: Tensor, target: Tensor, lam_diag: float, lam_off: float) -> Tensor:
    """Diagonal/off-diagonal NMSE [B]; norms of real views are the fastest eager form."""
    estimate, target = torch.view_as_real(estimate), torch.view_as_real(target)

    def energies(x: Tensor) -> tuple[Tensor, Tensor]:
        diagonal = x.diagonal(dim1=1, dim2=2).square().sum((1, 2))
        return diagonal, torch.linalg.vector_norm(x, dim=(1, 2, 3)).square()

    (error_diag, error), (target_diag, power) = energies(estimate - target), energies(target)
    diagonal = error_diag / (target_diag + EPS)
    off = (error - error_diag) / (power - target_diag + EPS)
    return (lam_diag * diagonal + lam_off * off) / (lam_diag + lam_off)


def leakage_basis(steering: Tensor, num_sources: Tensor, ridge: float) -> Tensor:
    """Q [B, N, K] with Q Q^H = 2P - P^2."""
    counted = torch.arange(steering.shape[2], device=steering.device) < num_sources[:, None]
    columns = steering * counted[:, None]
    identity = torch.eye(columns.shape[2], dtype=columns.dtype, device=columns.device)
    gram = columns.mH @ columns + torch.diag_embed((~counted).to(columns.dtype))
    root = torch.linalg.cholesky_ex(gram + 2 * ridge * identity)[0]
    lower = torch.linalg.cholesky_ex(gram + ridge * identity)[0]
    return columns @ torch.cholesky_solve(root, lower)


def subspace_leakage(
    covariance: Tensor, steering: Tensor, num_sources: Tensor, ridge: float
) -> Tensor:
    """Energy outside the span of the steering vectors, [B]."""
    basis = leakage_basis(steering, num_sources, ridge)
    inside = basis.mH @ covariance
    total = energy(covariance)
    return (total - 2 * energy(inside) + energy(inside @ basis)) / total


def spectrum(factor: Tensor, rho: Tensor | None = None) -> Tensor:
    """Descending eigenvalues [B, r] of X X^H + rho I from X^H X."""
    values: Tensor = torch.linalg.eigvalsh(factor.mH @ factor).flip(1)
    return values if rho is None else values + rho[:, None]


class EagerInference(Inference):
    """The covariances of a pass in plain PyTorch.

    R_samp is made from the snapshots that the network saw: one solve a step.
    """

    @cached_property
    def r_samp(self) -> Tensor:
        sample = self.prediction.snapshots.mT / math.sqrt(self.prediction.snapshots.shape[1])
        return sample @ sample.mH

    @cached_property
    def r_blend(self) -> Tensor:
        return blend(self.r_pred, self.r_samp, self.config)

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        return blend_factor(self.prediction.factor, self.prediction.snapshots, self.config)


class EagerLoss(LocalizationLoss):
    """The dense loss with its covariance terms in plain PyTorch."""

    def __init__(
        self, system: SystemConfig, loss: LossConfig, covariance: CovarianceConfig
    ) -> None:
        super().__init__(system, loss, covariance, "dense")

    def per_scene(self, inference: Inference, scenes: Scenes) -> dict[str, Tensor]:
        plain = EagerInference(inference.prediction, inference.scenes, inference.config)
        return super().per_scene(plain, scenes)

    def _spectrum(self, factor: Tensor, rho: Tensor | None = None) -> Tensor:
        return spectrum(factor, rho)

    def _nmse(self, estimate: Tensor, target: Tensor) -> Tensor:
        return nmse(estimate, target, self.loss.lam_diag, self.loss.lam_off)

    def _leakage(self, covariance: Tensor, steering: Tensor, num_sources: Tensor) -> Tensor:
        return subspace_leakage(covariance, steering, num_sources, self.loss.ridge)
