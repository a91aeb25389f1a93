# SPDX-License-Identifier: Apache-2.0
"""The library's own dense path beside its factored one: the same terms on N x N matrices.

For ``factored_terms`` the dense path starts from the factors, as a training step does, or, more
kindly to it, from matrices given in advance (``riskernels_dense_given``), whose gradient stops at
R; with the spectrum, which dwarfs all the rest, that would be the same. A dense spectrum is
``torch.linalg.eigvalsh`` of R, timed on two scenes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import riskernels
from bench.operators import _covariance as covariance
from bench.operators import _losses as losses
from bench.operators import _tikhonov as tikhonov
from bench.operators import covariance_loss, factored_terms
from bench.operators._calls import torch_call
from bench.operators.hermitian_nmse import EPS, LAM_DIAG, LAM_OFF
from bench.registry import Case, Inputs, Outputs, Peer


def loss(
    factor: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    steering: Tensor,
    powers: Tensor,
    num_sources: Tensor,
) -> Tensor:
    root = losses.target_factor(steering, powers, num_sources)
    target, pred = root @ root.mH, factor @ factor.mH
    samp = riskernels.tikhonov_covariance(y, h, codes, tikhonov.ALPHA)
    blend = riskernels.blend_covariance(pred, samp, losses.BETA)
    # The eigenvalues come from the factors here too, as in the trainer.
    snapshots = riskernels.tikhonov_snapshots(y, h, codes, tikhonov.ALPHA)
    columns, rho = riskernels.factored_blend(factor, snapshots, losses.BETA)
    return losses.total(
        riskernels.hermitian_nmse(blend, target),
        riskernels.hermitian_nmse(pred, target),
        riskernels.subspace_leakage(blend, steering, num_sources, covariance.RIDGE),
        riskernels.factored_spectrum(columns, rho),
        riskernels.factored_spectrum(factor),
        num_sources,
    )


def _terms(
    case: Case, matrix: Tensor, target: Tensor, steering: Tensor, count: Tensor, weights: Tensor
) -> Tensor:
    terms = riskernels.hermitian_nmse(matrix, target, LAM_DIAG, LAM_OFF, EPS)
    terms = terms + riskernels.subspace_leakage(matrix, steering, count, covariance.RIDGE)
    if not factored_terms.with_spectrum(case):
        return terms
    leading = torch.linalg.eigvalsh(matrix)[:, -weights.shape[1] :].flip(1)
    return terms + (weights * leading).sum(1)


def _matrix(factor: Tensor, rho: Tensor) -> Tensor:
    matrix = factor @ factor.mH
    matrix.diagonal(dim1=1, dim2=2).add_(rho[:, None])
    return matrix


def _prepare_loss(case: Case, inputs: Inputs) -> Any:
    return torch_call(loss, case, inputs, covariance_loss.ARGUMENTS)


def _prepare_terms(case: Case, inputs: Inputs) -> Any:
    def function(
        factor: Tensor, rho: Tensor, root: Tensor, steering: Tensor, count: Tensor, weights: Tensor
    ) -> Tensor:
        return _terms(case, _matrix(factor, rho), root @ root.mH, steering, count, weights)

    return torch_call(function, case, inputs, factored_terms.ARGUMENTS)


def _prepare_given(case: Case, inputs: Inputs) -> Callable[[], Any]:
    factor, rho, root, steering, count, weights = (
        inputs[name] for name in factored_terms.ARGUMENTS
    )
    target = root @ root.mH
    matrix = _matrix(factor, rho).requires_grad_()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        terms = _terms(case, matrix, target, steering, count, weights)
        (gradient,) = torch.autograd.grad(terms, matrix, inputs["upstream"])
        return terms.detach(), gradient, factor

    return run


def _gradient_to_factor(outputs: tuple[Tensor, Tensor, Tensor]) -> Outputs:
    """Outside the time that is measured, for the comparison with complex128."""
    terms, gradient, factor = outputs
    return terms, gradient @ factor + gradient.mH @ factor


def _only_matrices(case: Case) -> bool:
    return case.variant == "terms"


def _with_spectrum(case: Case) -> bool:
    return case.variant == factored_terms.SPECTRUM


_DENSE = ("riskernels_dense", "riskernels, dense")

PEERS = (
    Peer(
        *_DENSE,
        lambda case: case.operator == covariance_loss.NAME,
        _prepare_loss,
        tolerance=1e-5,
        measure_memory=True,
    ),
    Peer(*_DENSE, _only_matrices, _prepare_terms, scenes=16, measure_memory=True),
    Peer(
        *_DENSE,
        _with_spectrum,
        _prepare_terms,
        scenes=2,
        capturable=False,
        measure_memory=True,
    ),
    Peer(
        "riskernels_dense_given",
        "riskernels, dense, R and T given",
        _only_matrices,
        _prepare_given,
        scenes=16,
        to_torch=_gradient_to_factor,
    ),
)
