# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``tikhonov_snapshots``: the estimates a_l, [B,L,N]."""

from __future__ import annotations

import torch

import riskernels
from bench.operators import _tikhonov as tikhonov
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "tikhonov_snapshots"


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    values = tikhonov.inputs(case, generator)
    if case.gradients:
        shape = values["codes"].shape
        values["upstream"] = torch.randn(shape, dtype=torch.complex64, generator=generator)
    return values


def _kernel(case: Case, inputs: Inputs):
    def function(y: torch.Tensor, h: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return riskernels.tikhonov_snapshots(y, h, codes, tikhonov.ALPHA)

    return torch_call(function, case, inputs, tikhonov.ARGUMENTS)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(tikhonov.oracle_snapshots, case, inputs, tikhonov.ARGUMENTS)


def _cost(case: Case) -> Cost:
    b, snapshots, m, n = (case.sizes[name] for name in "BLMN")
    output = b * snapshots * n
    forward = tikhonov.forward_cost(case, 0, "", output, "BLN")
    if not case.gradients:
        return forward
    # The backward is an operator of its own and recomputes the estimates from the inputs.
    adds, formula = tikhonov.solve_multiply_adds(case)
    backward = adds + 4 * snapshots * (m * m + 4 * m * n + 4 * n)
    return Cost(
        flops=forward.flops + 2 * b * backward,
        bytes_read=2 * forward.bytes_read + 8 * output,
        bytes_written=forward.bytes_written + forward.bytes_read,
        footprint=2 * forward.bytes_read + 16 * output,
        formula=f"FLOPs: 2B(2({formula}) + 4L(M² + 4MN + 4N)); bytes: 8(3 inputs + 2BLN)",
    )


OPERATOR = Operator(
    name=NAME,
    cases=(
        Case(NAME, "forward", "forward, shared H, unit modulus", tikhonov.DEFAULT),
        Case(
            NAME,
            "gradient",
            "forward + backward to y, h, codes",
            tikhonov.DEFAULT,
            gradients=tikhonov.ARGUMENTS,
        ),
    ),
    outputs=("snapshots",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
