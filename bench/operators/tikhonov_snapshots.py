# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``tikhonov_snapshots``: the estimates a_l, [B,L,N]."""

from __future__ import annotations

import torch

import riskernels
from bench.operators import _tikhonov as tikhonov
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "tikhonov_snapshots"


def _kernel(case: Case, inputs: Inputs):
    def function(y: torch.Tensor, h: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return riskernels.tikhonov_snapshots(y, h, codes, tikhonov.ALPHA)

    return torch_call(function, case, inputs, tikhonov.ARGUMENTS)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(tikhonov.oracle_snapshots, case, inputs, tikhonov.ARGUMENTS)


def _cost(case: Case) -> Cost:
    b, snapshots, n = (case.sizes[name] for name in "BLN")
    return tikhonov.forward_cost(case, 0, "", b * snapshots * n, "BLN")


OPERATOR = Operator(
    name=NAME,
    cases=(Case(NAME, "forward", "forward, shared H, unit modulus", tikhonov.DEFAULT),),
    outputs=("snapshots",),
    inputs=tikhonov.inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
