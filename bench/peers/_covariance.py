# SPDX-License-Identifier: Apache-2.0
"""PyTorch of the operators on covariances and their factors, for the eager and compiled peers.

The best algebra known: no N x N projector or eigendecomposition, real coefficients applied to real
views (PyTorch would multiply by complex numbers), one Gram matrix of all columns. Gram matrices are
complex64 unless the factors are widened first: that loses NMSEs below 1e-4, but is faster.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.operators import _covariance as covariance
from bench.operators import _losses as losses
from bench.operators import (
    blend_covariance,
    covariance_loss,
    factored_blend,
    factored_leakage,
    factored_nmse,
    factored_spectrum,
    factored_terms,
    subspace_leakage,
)
from bench.operators.hermitian_nmse import EPS, LAM_DIAG, LAM_OFF
from bench.peers import torch_shared_factorisation
from bench.registry import Case
from ris_pytorch_pipeline import eager
from ris_pytorch_pipeline.configs import CovarianceConfig
from ris_pytorch_pipeline.eager import energy, scale


def row_energies(x: Tensor) -> Tensor:
    return torch.view_as_real(x).square().sum((2, 3))


BLEND = CovarianceConfig(
    beta=covariance.BETA, loading=covariance.LOADING, shrinkage=covariance.SHRINKAGE
)
STEP = CovarianceConfig(beta=losses.BETA)


def blend(pred: Tensor, samp: Tensor) -> Tensor:
    return eager.blend(pred, samp, BLEND)


def leakage(cov: Tensor, steering: Tensor, num_sources: Tensor) -> Tensor:
    return eager.subspace_leakage(cov, steering, num_sources, covariance.RIDGE)


def blend_factors(factor: Tensor, snapshots: Tensor) -> tuple[Tensor, Tensor]:
    return eager.blend_factor(factor, snapshots, BLEND)


def gram_of(*factors: Tensor) -> Tensor:
    columns = torch.cat(factors, dim=2)
    return columns.mH @ columns


def nmse(factor: Tensor, rho: Tensor | None, target: Tensor) -> Tensor:
    r = factor.shape[2]
    gram = gram_of(factor, target)
    rows_target = row_energies(target)
    difference = row_energies(factor) - rows_target
    target_diag = rows_target.square().sum(1)
    target_off = energy(gram[:, r:, r:]) - target_diag
    # The diagonal of the difference holds all that rho changes.
    error_off = energy(gram[:, :r, :r]) - 2 * energy(gram[:, :r, r:]) + energy(gram[:, r:, r:])
    error_off = (error_off - difference.square().sum(1)).clamp_min(0)
    if rho is not None:
        difference = difference + rho[:, None]
    error_diag = difference.square().sum(1)
    diagonal, off = error_diag / (target_diag + EPS), error_off / (target_off + EPS)
    return (LAM_DIAG * diagonal + LAM_OFF * off) / (LAM_DIAG + LAM_OFF)


def nmse_double(factor: Tensor, rho: Tensor, target: Tensor) -> Tensor:
    """With sums in float64, as exact as the kernel."""
    wide = factor.to(torch.complex128), rho.double(), target.to(torch.complex128)
    return nmse(*wide).to(rho.dtype)


def leakage_of_factor(factor: Tensor, rho: Tensor, steering: Tensor, num_sources: Tensor) -> Tensor:
    columns = eager.leakage_basis(steering, num_sources, covariance.RIDGE)
    inside, gram, overlap = columns.mH @ factor, gram_of(factor), gram_of(columns)
    trace = covariance.trace(gram)[:, 0, 0]
    total = energy(gram) + 2 * rho * trace + rho.square() * factor.shape[1]
    crossed = (inside.conj() * (inside @ gram)).real.sum((1, 2)) + 2 * rho * energy(inside)
    crossed = crossed + rho.square() * covariance.trace(overlap)[:, 0, 0]
    both = energy(inside @ inside.mH + scale(overlap, rho))
    return (total - 2 * crossed + both) / total


def loss(
    factor: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    steering: Tensor,
    powers: Tensor,
    num_sources: Tensor,
) -> Tensor:
    """All of ``covariance_loss`` on factors, with one factorisation a scene."""
    target = losses.target_factor(steering, powers, num_sources)
    snapshots = torch_shared_factorisation.snapshots(y, h, codes)
    columns, rho = eager.blend_factor(factor, snapshots, STEP)
    return losses.total(
        nmse(columns, rho, target),
        nmse(factor, None, target),
        leakage_of_factor(columns, rho, steering, num_sources),
        eager.spectrum(columns),
        eager.spectrum(factor),
        num_sources,
    )


def terms(
    factor: Tensor,
    rho: Tensor,
    target: Tensor,
    steering: Tensor,
    num_sources: Tensor,
    weights: Tensor,
) -> Tensor:
    return nmse(factor, rho, target) + leakage_of_factor(factor, rho, steering, num_sources)


def terms_and_spectrum(
    factor: Tensor,
    rho: Tensor,
    target: Tensor,
    steering: Tensor,
    num_sources: Tensor,
    weights: Tensor,
) -> Tensor:
    others = terms(factor, rho, target, steering, num_sources, weights)
    return others + (weights * eager.spectrum(factor, rho)).sum(1)


FUNCTIONS: dict[str, tuple[Callable[..., object], tuple[str, ...]]] = {
    blend_covariance.NAME: (blend, blend_covariance.ARGUMENTS),
    subspace_leakage.NAME: (leakage, subspace_leakage.ARGUMENTS),
    factored_blend.NAME: (blend_factors, factored_blend.ARGUMENTS),
    factored_nmse.NAME: (nmse, factored_nmse.ARGUMENTS),
    factored_leakage.NAME: (leakage_of_factor, factored_leakage.ARGUMENTS),
    factored_spectrum.NAME: (eager.spectrum, factored_spectrum.ARGUMENTS),
    covariance_loss.NAME: (loss, covariance_loss.ARGUMENTS),
}


def call(case: Case) -> tuple[Callable[..., object], tuple[str, ...]]:
    """The function of a case and the names of its arguments."""
    if case.operator == factored_terms.NAME:
        function = terms_and_spectrum if factored_terms.with_spectrum(case) else terms
        return function, factored_terms.ARGUMENTS
    return FUNCTIONS[case.operator]


def serves(case: Case) -> bool:
    return case.operator in FUNCTIONS or case.operator == factored_terms.NAME


def decomposes(case: Case) -> bool:
    """Whether it calls ``eigvalsh``, which waits for a GPU and cannot be captured."""
    names = (factored_spectrum.NAME, covariance_loss.NAME)
    return case.operator in names or case.variant == factored_terms.SPECTRUM
