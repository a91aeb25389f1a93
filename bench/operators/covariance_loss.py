# SPDX-License-Identifier: Apache-2.0
"""The covariance mathematics of a training step, from the network's factor A to the loss and back.

Snapshots a_l from y, H and codes, the blend of R_pred = A A^H and R_samp, NMSE of the blend and of
R_pred against R_true, subspace leakage, eigengap and margin, summed with the trainer's weights;
the gradient reaches A. The kernel is the factored path of the library; its dense path is a peer.
"""

from __future__ import annotations

import torch
from torch import Tensor

import riskernels
from bench.operators import _covariance as covariance
from bench.operators import _losses as losses
from bench.operators import _tikhonov as tikhonov
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.operators.hermitian_nmse import exact_nmse
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "covariance_loss"
ARGUMENTS = ("factor", "y", "h", "codes", "steering", "powers", "num_sources")
SOURCES = 5


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Scenes with 1 to 5 sources, seen through H at 10 dB, and a network half way there."""
    b, length, _, n = (case.sizes[name] for name in "BLMN")
    values = tikhonov.inputs(case, generator)
    steering = covariance.steering_vectors(b, n, SOURCES, generator)
    powers = 0.5 + torch.rand(b, SOURCES, generator=generator)
    num_sources = covariance.source_counts(b, SOURCES, generator)
    target = losses.target_factor(steering, powers, num_sources)
    symbols = covariance.random_complex((b, SOURCES, length), generator)
    seen = (values["h"] @ (values["codes"].mT * (target @ symbols))).mT
    values["y"] = seen + 0.3 * values["y"] * seen.abs().square().mean().sqrt()
    noise = covariance.random_complex((b, n, SOURCES), generator)
    values["factor"] = covariance.with_trace(target + 0.3 * noise, n)
    values.update(steering=steering, powers=powers, num_sources=num_sources)
    values["upstream"] = torch.full((b,), 1 / b)
    return covariance.chosen(case, values, ARGUMENTS)


def factored(
    factor: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    steering: Tensor,
    powers: Tensor,
    num_sources: Tensor,
) -> Tensor:
    """The loss of every scene, [B], without an N x N matrix."""
    target = losses.target_factor(steering, powers, num_sources)
    snapshots = riskernels.tikhonov_snapshots(y, h, codes, tikhonov.ALPHA)
    blend, rho = riskernels.factored_blend(factor, snapshots, losses.BETA)
    return losses.total(
        riskernels.factored_nmse(blend, rho, target),
        riskernels.factored_nmse(factor, None, target),
        riskernels.factored_leakage(blend, rho, steering, num_sources, covariance.RIDGE),
        riskernels.factored_spectrum(blend, rho),
        riskernels.factored_spectrum(factor),
        num_sources,
    )


def _kernel(case: Case, inputs: Inputs):
    return torch_call(factored, case, inputs, ARGUMENTS)


def _exact(
    factor: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    steering: Tensor,
    powers: Tensor,
    num_sources: Tensor,
) -> Tensor:
    """Dense matrices and N x N solves; eigenvalues from singular values of the blended factors."""
    target = covariance.dense(losses.target_factor(steering, powers, num_sources))
    snapshots = tikhonov.oracle_snapshots(y, h, codes)
    pred, samp = covariance.dense(factor), covariance.dense(snapshots.mT) / snapshots.shape[1]
    blend = covariance.exact_blend(pred, samp, losses.BETA, 0.0, 0.0)
    n = factor.shape[1]
    columns = torch.cat(
        [
            covariance.with_trace(factor, (1 - losses.BETA) * n),
            covariance.with_trace(snapshots.mT, losses.BETA * n),
        ],
        dim=2,
    )
    return losses.total(
        exact_nmse(blend, target),
        exact_nmse(pred, target),
        covariance.exact_leakage(blend, steering, num_sources),
        covariance.exact_spectrum(columns),
        covariance.exact_spectrum(factor),
        num_sources,
    )


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(_exact, case, inputs, ARGUMENTS, covariance.oracle_scenes(case))


def _cost(case: Case) -> Cost:
    """The steering vectors span R_true: one Gram matrix of A, snapshots and steering has it all."""
    b, length, n = (case.sizes[name] for name in "BLN")
    r = SOURCES + length
    solves, _ = tikhonov.solve_multiply_adds(case)
    back = covariance.back_flops(n, r + SOURCES, SOURCES)
    eigen = covariance.eigen_flops(r, True) + covariance.eigen_flops(SOURCES, True)
    read = 8.0 * (tikhonov.input_elements(case) + 2 * b * n * SOURCES)
    written = 8.0 * b * n * SOURCES
    return Cost(
        flops=b * (2 * solves + back),
        double_flops=b * (covariance.gram_flops(n, r + SOURCES) + eigen),
        bytes_read=read,
        bytes_written=written,
        footprint=read + written,
        formula=(
            "FLOPs: B(2 solves + 8N(r + K)K); float64 FLOPs: B(4N(r + K)² + 40(r³ + K³)/3), "
            "r = K + L, K = 5; bytes: 8(inputs + BNK)"
        ),
    )


OPERATOR = Operator(
    name=NAME,
    cases=tuple(
        Case(
            NAME,
            "step",
            "loss + backward to A",
            {**tikhonov.DEFAULT, "N": n},
            ("factor",),
            tolerance=5e-6,
            verified_scenes=covariance.verified_scenes(n),
        )
        for n in (144, 400)
    ),
    outputs=("loss",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
    uses=(
        "tikhonov_snapshots",
        "factored_blend",
        "factored_nmse",
        "factored_leakage",
        "factored_spectrum",
    ),
)
