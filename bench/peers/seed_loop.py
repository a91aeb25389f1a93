# SPDX-License-Identifier: Apache-2.0
"""The covariance loss the way it is written before anyone measures it: the "before".

A loop over scenes, and inside it one over snapshots: an N x N solve for each snapshot, N x N
covariances and blend, the projector P = A (A^H A)^-1 A^H as an N x N matrix, eigenvalues of the
N x N matrices, and the terms appended to lists scene by scene. Nothing in it is slow on purpose:
every line is the equation that it computes. Two scenes are timed and scaled to the batch, for the
loop has no work that scenes share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.operators._calls import torch_call
from bench.operators._losses import BETA, EIGENGAP_RATIO, MARGIN_FLOOR, WEIGHTS
from bench.operators._tikhonov import ALPHA
from bench.operators.covariance_loss import ARGUMENTS, NAME
from bench.operators.hermitian_nmse import EPS, LAM_DIAG, LAM_OFF
from bench.registry import Case, Inputs, Peer


def sample_covariance(y: Tensor, h: Tensor, codes: Tensor) -> Tensor:
    """R_samp [N, N] from y [L, M], h [M, N] and codes [L, N]."""
    snapshots, n = codes.shape
    covariance = torch.zeros(n, n, dtype=y.dtype, device=y.device)
    identity = torch.eye(n, dtype=y.dtype, device=y.device)
    for snapshot in range(snapshots):
        phi = h * codes[snapshot]
        a = torch.linalg.solve(phi.mH @ phi + ALPHA * identity, phi.mH @ y[snapshot])
        covariance = covariance + torch.outer(a, a.conj())
    return covariance / snapshots


def normalised(covariance: Tensor) -> Tensor:
    """Hermitian and of trace N."""
    covariance = 0.5 * (covariance + covariance.mH)
    return covariance * (covariance.shape[0] / torch.trace(covariance).real)


def nmse(estimate: Tensor, target: Tensor) -> Tensor:
    diagonal = torch.eye(target.shape[0], dtype=torch.bool, device=target.device)
    error, power = (estimate - target).abs() ** 2, target.abs() ** 2
    on = error[diagonal].sum() / (power[diagonal].sum() + EPS)
    off = error[~diagonal].sum() / (power[~diagonal].sum() + EPS)
    return (LAM_DIAG * on + LAM_OFF * off) / (LAM_DIAG + LAM_OFF)


def leakage(covariance: Tensor, steering: Tensor) -> Tensor:
    projector = steering @ torch.linalg.inv(steering.mH @ steering) @ steering.mH
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    outside = (identity - projector) @ covariance @ (identity - projector)
    return (outside.abs() ** 2).sum() / (covariance.abs() ** 2).sum()


def scene_loss(
    factor: Tensor, r_samp: Tensor, steering: Tensor, powers: Tensor
) -> dict[str, Tensor]:
    """The five terms of one scene; steering [N, K] and powers [K] of its K sources."""
    sources = len(powers)
    r_true = normalised(steering @ torch.diag(powers).to(steering.dtype) @ steering.mH)
    r_pred = factor @ factor.mH
    r_blend = normalised((1 - BETA) * normalised(r_pred) + BETA * normalised(r_samp))
    of_blend = torch.linalg.eigvalsh(r_blend).flip(0)
    of_pred = torch.linalg.eigvalsh(r_pred).flip(0)
    gap = of_blend[sources] / of_blend[sources - 1]
    share = of_pred[:sources] / (MARGIN_FLOOR * of_pred.sum())
    return {
        "nmse_blend": nmse(r_blend, r_true),
        "nmse_pred": nmse(r_pred, r_true),
        "subspace": leakage(r_blend, steering),
        "eigengap": torch.relu(gap - EIGENGAP_RATIO),
        "margin": torch.relu(1 - share).mean(),
    }


def losses(
    factor: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    steering: Tensor,
    powers: Tensor,
    num_sources: Tensor,
) -> Tensor:
    totals = []
    for b in range(len(factor)):
        sources = int(num_sources[b])
        r_samp = sample_covariance(y[b], h[b], codes[b]).detach()
        terms = scene_loss(factor[b], r_samp, steering[b, :, :sources], powers[b, :sources])
        total = torch.zeros((), device=factor.device)
        for name, weight in WEIGHTS.items():
            total = total + weight * terms[name]
        totals.append(total)
    return torch.stack(totals)


def prepare(case: Case, inputs: Inputs) -> Any:
    return torch_call(losses, case, inputs, ARGUMENTS)


PEERS = (
    Peer(
        name="seed_loop",
        title="Python loops, N x N solves, projectors, eigvalsh",
        serves=lambda case: case.operator == NAME,
        prepare=prepare,
        tolerance=2e-2,
        scenes=2,
        capturable=False,
        measure_memory=True,
        note="float32 N-side solves lose three to five digits to conditioning, and P has no ridge",
    ),
)
