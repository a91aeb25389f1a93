# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``factored_blend``: X and rho with R_blend = X X^H + rho I, memory-bound."""

from __future__ import annotations

import torch
from torch import Tensor

import riskernels
from bench.operators import _covariance as covariance
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "factored_blend"
ARGUMENTS = ("factor", "snapshots")


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    b, n, k, length = (case.sizes[name] for name in "BNKL")
    values = {
        "factor": covariance.random_complex((b, n, k), generator),
        "snapshots": covariance.random_complex((b, length, n), generator),
        "upstream": covariance.random_complex((b, n, k + length), generator),
    }
    return covariance.chosen(case, values, ARGUMENTS)


def _kernel(case: Case, inputs: Inputs):
    def function(factor: Tensor, snapshots: Tensor) -> tuple[Tensor, Tensor]:
        return riskernels.factored_blend(
            factor,
            snapshots,
            covariance.BETA,
            loading=covariance.LOADING,
            shrinkage=covariance.SHRINKAGE,
        )

    return torch_call(function, case, inputs, ARGUMENTS)


def exact_factor(factor: Tensor, snapshots: Tensor) -> tuple[Tensor, Tensor]:
    """X and rho step by step: a covariance scaled by s is a factor scaled by the root of s."""
    n = factor.shape[1]

    def scaled(x: Tensor) -> Tensor:
        return x * (n / trace_of(x)).sqrt()[:, None, None]

    def trace_of(x: Tensor) -> Tensor:
        return x.abs().square().sum((1, 2))

    beta, loading, shrinkage = covariance.BETA, covariance.LOADING, covariance.SHRINKAGE
    sample = scaled(snapshots.detach().mT) * beta**0.5
    blend = torch.cat([scaled(factor) * (1 - beta) ** 0.5, sample], dim=2)
    # Each step keeps tr(X X^H) + rho N known: N, then (1 + loading) N, which shrinkage keeps.
    rho = torch.full_like(trace_of(factor), loading)
    rho = (1 - shrinkage) * rho + shrinkage * (1 + loading)
    blend = blend * (1 - shrinkage) ** 0.5
    return blend / (1 + loading) ** 0.5, (rho / (1 + loading)).detach()


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(exact_factor, case, inputs, ARGUMENTS)


def _cost(case: Case) -> Cost:
    b, n, k, length = (case.sizes[name] for name in "BNKL")
    all_columns, trained = 8.0 * b * n * (k + length), 8.0 * b * n * k
    if not case.gradients:
        return Cost(
            flops=6 * all_columns / 8,
            bytes_read=all_columns,
            bytes_written=all_columns,
            footprint=2 * all_columns,
            formula="FLOPs: 6BN(K + L); bytes: 8BN(K + L) read and as many written",
        )
    return Cost(
        flops=6 * all_columns / 8 + 10 * trained / 8,
        bytes_read=all_columns + 2 * trained,
        bytes_written=all_columns + trained,
        footprint=2 * all_columns + 2 * trained,
        formula=(
            "FLOPs: 6BN(K + L) + 10BNK; bytes: 8BN(3K + L) read + 8BN(2K + L) written; "
            "of the upstream gradient only the K columns of A count"
        ),
    )


def _case(variant: str, title: str, n: int, gradients: tuple[str, ...] = ()) -> Case:
    length = 16 if n < 1024 else 21
    return Case(NAME, variant, title, {"B": 64, "N": n, "K": 5, "L": length}, gradients)


OPERATOR = Operator(
    name=NAME,
    cases=tuple(
        case
        for n in (144, 1024)
        for case in (
            _case("forward", "forward", n),
            _case("gradient", "forward + backward to A", n, ("factor",)),
        )
    ),
    outputs=("blend", "rho"),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
