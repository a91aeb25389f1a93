# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``factored_spectrum``: the r leading eigenvalues of X X^H + rho I, [B,r]."""

from __future__ import annotations

import torch

import riskernels
from bench.operators import _covariance as covariance
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "factored_spectrum"
ARGUMENTS = ("factor", "rho")


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    sizes = {**case.sizes, "k": min(5, case.sizes["r"])}
    values = covariance.factored_inputs(Case(NAME, "", "", sizes), generator)
    values["upstream"] = torch.randn(case.sizes["B"], case.sizes["r"], generator=generator)
    return covariance.chosen(case, values, ARGUMENTS)


def _kernel(case: Case, inputs: Inputs):
    return torch_call(riskernels.factored_spectrum, case, inputs, ARGUMENTS)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(covariance.exact_spectrum, case, inputs, ARGUMENTS)


def _cost(case: Case) -> Cost:
    b, n, r = (case.sizes[name] for name in "BNr")
    read = 8.0 * b * n * r
    backward = bool(case.gradients)
    double = b * (covariance.gram_flops(n, r) + covariance.eigen_flops(r, vectors=backward))
    if not backward:
        return Cost(
            flops=0.0,
            double_flops=double,
            bytes_read=read,
            bytes_written=4.0 * b * r,
            footprint=read,
            formula="float64 FLOPs: B(4Nr² + 16r³/3); bytes: 8BNr",
        )
    return Cost(
        flops=b * (covariance.back_flops(n, r, r) + 4.0 * r**3),
        double_flops=double,
        bytes_read=2 * read,
        bytes_written=read,
        footprint=2 * read,
        formula=(
            "float64 FLOPs: B(4Nr² + 40r³/3); FLOPs: B(8Nr² + 4r³); "
            "bytes: 16BNr read + 8BNr written"
        ),
    )


def _case(variant: str, title: str, n: int, r: int, gradients: tuple[str, ...] = ()) -> Case:
    return Case(NAME, variant, title, {"B": 64, "N": n, "r": r}, gradients)


OPERATOR = Operator(
    name=NAME,
    cases=tuple(
        case
        for n, r in ((144, 21), (1024, 26))
        for case in (
            _case("forward", "forward", n, r),
            _case("gradient", "forward + backward to X", n, r, ("factor",)),
        )
    ),
    outputs=("eigenvalues",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
