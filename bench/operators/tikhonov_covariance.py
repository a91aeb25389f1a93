# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``tikhonov_covariance``: R = (1/L) sum_l a_l a_l^H, [B,N,N]."""

from __future__ import annotations

from dataclasses import replace

import torch

import riskernels
from bench.operators import _tikhonov as tikhonov
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs, reshape

NAME = "tikhonov_covariance"


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    values = tikhonov.inputs(case, generator)
    if case.gradients:
        b, n = case.sizes["B"], case.sizes["N"]
        values["upstream"] = torch.randn(b, n, n, dtype=torch.complex64, generator=generator)
    return values


def _kernel(case: Case, inputs: Inputs):
    def function(y: torch.Tensor, h: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return riskernels.tikhonov_covariance(y, h, codes, tikhonov.ALPHA)

    return torch_call(function, case, inputs, tikhonov.ARGUMENTS)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(tikhonov.oracle_covariance, case, inputs, tikhonov.ARGUMENTS)


def _cost(case: Case) -> Cost:
    b, snapshots, m, n = (case.sizes[name] for name in "BLMN")
    outer = 2 * snapshots * n * n
    forward = tikhonov.forward_cost(case, outer, " + 2LN²", b * n * n, "BN²")
    if not case.gradients:
        return forward
    # The backward is an operator of its own and recomputes the estimates from the inputs.
    adds, formula = tikhonov.solve_multiply_adds(case)
    backward = adds + 4 * snapshots * (n * n + m * m + 4 * m * n + 4 * n)
    read = 2 * forward.bytes_read + 8 * b * n * n
    written = forward.bytes_written + forward.bytes_read
    return Cost(
        flops=forward.flops + 2 * b * backward,
        bytes_read=read,
        bytes_written=written,
        footprint=2 * forward.bytes_read + 16 * b * n * n,
        formula=(
            f"FLOPs: 2B(2({formula}) + 2LN² + 4L(N² + M² + 4MN + 4N)); bytes: 8(3 inputs + 2BN²)"
        ),
    )


FORWARD = Case(NAME, "forward", "forward, shared H, unit modulus", tikhonov.DEFAULT)
GRADIENT = Case(
    NAME,
    "gradient",
    "forward + backward to y, h, codes",
    tikhonov.DEFAULT,
    gradients=tikhonov.ARGUMENTS,
)


def _small(case: Case, b: int) -> Case:
    return replace(case, sizes={**tikhonov.SMALL, "B": b})


OPERATOR = Operator(
    name=NAME,
    cases=(
        FORWARD,
        Case(NAME, "forward-varying-modulus", "forward, varying modulus", tikhonov.DEFAULT),
        Case(NAME, "forward-per-snapshot", "forward, one H per snapshot", tikhonov.DEFAULT),
        GRADIENT,
        reshape(FORWARD, "B=1"),
        reshape(GRADIENT, "B=1"),
        *(_small(FORWARD, b) for b in (1, 64, 1024)),
        _small(GRADIENT, 64),
        replace(FORWARD, sizes=tikhonov.LARGE),
        replace(GRADIENT, sizes=tikhonov.LARGE),
    ),
    outputs=("covariance",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
