# SPDX-License-Identifier: Apache-2.0
"""Eager PyTorch of the operators on covariances and their factors, and of the whole loss.

``torch_eager_dense`` is the covariance part of a vectorised training step without these kernels:
push-through solves batched over scenes and snapshots, N x N covariances, blend and NMSE as
expressions, K x K projections, eigenvalues from the small Gram matrices of the factors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.operators import _losses as losses
from bench.operators import covariance_loss, factored_nmse
from bench.operators._calls import torch_call
from bench.peers import _covariance as covariance
from bench.peers import torch_eager, torch_push_through
from bench.registry import Case, Inputs, Peer
from ris_pytorch_pipeline import eager


def loss_dense(
    factor: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    steering: Tensor,
    powers: Tensor,
    num_sources: Tensor,
) -> Tensor:
    root = losses.target_factor(steering, powers, num_sources)
    snapshots = torch_push_through.snapshots_blocked(y, h, codes)
    sample = snapshots.mT * snapshots.shape[1] ** -0.5
    target, pred = root @ root.mH, factor @ factor.mH
    blend = eager.blend(pred, sample @ sample.mH, covariance.STEP)
    return losses.total(
        torch_eager.nmse_norms(blend, target),
        torch_eager.nmse_norms(pred, target),
        covariance.leakage(blend, steering, num_sources),
        eager.spectrum(eager.blend_factor(factor, snapshots, covariance.STEP)[0]),
        eager.spectrum(factor),
        num_sources,
    )


def _prepare(case: Case, inputs: Inputs) -> Any:
    function, arguments = covariance.call(case)
    return torch_call(function, case, inputs, arguments)


def _prepare_dense(case: Case, inputs: Inputs) -> Any:
    return torch_call(loss_dense, case, inputs, covariance_loss.ARGUMENTS)


def _prepare_double(case: Case, inputs: Inputs) -> Any:
    return torch_call(covariance.nmse_double, case, inputs, factored_nmse.ARGUMENTS)


def _plain(case: Case) -> bool:
    return covariance.serves(case) and not _composed(case) and not covariance.decomposes(case)


def _dense(case: Case) -> bool:
    return case.operator == covariance_loss.NAME and case.sizes["N"] <= 144


def _dense_large(case: Case) -> bool:
    return case.operator == covariance_loss.NAME and case.sizes["N"] > 144


def _composed(case: Case) -> bool:
    return case.operator in ("covariance_loss", "factored_terms")


_DENSE = ("torch_eager_dense", "PyTorch eager, dense, push-through")

PEERS = (
    Peer("torch_eager", "PyTorch eager", _plain, _prepare),
    Peer(
        "torch_eager",
        "PyTorch eager",
        lambda case: covariance.decomposes(case) and not _composed(case),
        _prepare,
        capturable=False,
    ),
    Peer(
        "torch_eager_double",
        "PyTorch eager, float64 Gram",
        lambda case: case.operator == factored_nmse.NAME,
        _prepare_double,
        tolerance=2e-6,
    ),
    Peer(
        "torch_eager_factored",
        "PyTorch eager, factored",
        _composed,
        _prepare,
        capturable=False,
        measure_memory=True,
    ),
    Peer(*_DENSE, _dense, _prepare_dense, capturable=False, measure_memory=True),
    # Seconds a call for all scenes, and linear in them.
    Peer(*_DENSE, _dense_large, _prepare_dense, scenes=16, capturable=False, measure_memory=True),
)
