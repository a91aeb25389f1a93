# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``subspace_leakage``: energy of R outside the span of the sources, [B]."""

from __future__ import annotations

import torch
from torch import Tensor

import riskernels
from bench.operators import _covariance as covariance
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "subspace_leakage"
ARGUMENTS = ("cov", "steering", "num_sources")
RANK = 21


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    sizes = {**case.sizes, "r": RANK, "k": case.sizes["K"]}
    values = covariance.factored_inputs(Case(NAME, "", "", sizes), generator)
    values["cov"] = covariance.dense(values["factor"])
    values["upstream"] = torch.rand(case.sizes["B"], generator=generator) + 0.5
    return covariance.chosen(case, values, ARGUMENTS)


def _kernel(case: Case, inputs: Inputs):
    def function(cov: Tensor, steering: Tensor, num_sources: Tensor) -> Tensor:
        return riskernels.subspace_leakage(cov, steering, num_sources, covariance.RIDGE)

    return torch_call(function, case, inputs, ARGUMENTS)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(covariance.exact_leakage, case, inputs, ARGUMENTS)


def _cost(case: Case) -> Cost:
    b, n, k = (case.sizes[name] for name in "BNK")
    entries = float(b * n * n)
    passes = 2 if case.gradients else 1
    return Cost(
        # |R|^2 and Q^H R forward; the difference of R and Q V backward.
        flops=passes * (8 * k + 4) * entries,
        bytes_read=passes * (8 * entries + 8 * b * n * k),
        bytes_written=8 * entries * (passes - 1),
        footprint=passes * 8 * entries,
        formula=f"FLOPs: {passes}BN²(8K + 4); bytes: {passes}·8B(N² + NK) read"
        + (" + 8BN² written" if case.gradients else ""),
    )


def _case(variant: str, title: str, gradients: tuple[str, ...] = ()) -> Case:
    return Case(NAME, variant, title, {"B": 64, "N": 144, "K": 5}, gradients)


OPERATOR = Operator(
    name=NAME,
    cases=(
        _case("forward", "forward"),
        _case("gradient", "forward + backward to R", ("cov",)),
    ),
    outputs=("leakage",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
