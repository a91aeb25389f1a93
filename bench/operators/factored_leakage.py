# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``factored_leakage``: the subspace leakage of X X^H + rho I, [B]."""

from __future__ import annotations

import torch
from torch import Tensor

import riskernels
from bench.operators import _covariance as covariance
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Inputs, Operator, Outputs

NAME = "factored_leakage"
ARGUMENTS = ("factor", "rho", "steering", "num_sources")


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    values = covariance.factored_inputs(case, generator)
    values["upstream"] = torch.rand(case.sizes["B"], generator=generator) + 0.5
    return covariance.chosen(case, values, ARGUMENTS)


def _kernel(case: Case, inputs: Inputs):
    def function(factor: Tensor, rho: Tensor, steering: Tensor, num_sources: Tensor) -> Tensor:
        return riskernels.factored_leakage(factor, rho, steering, num_sources, covariance.RIDGE)

    return torch_call(function, case, inputs, ARGUMENTS)


def _dense_leakage(factor: Tensor, rho: Tensor, steering: Tensor, num_sources: Tensor) -> Tensor:
    return covariance.exact_leakage(covariance.dense(factor, rho), steering, num_sources)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(_dense_leakage, case, inputs, ARGUMENTS, covariance.oracle_scenes(case))


OPERATOR = Operator(
    name=NAME,
    cases=covariance.factored_cases(NAME),
    outputs=("leakage",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=covariance.joint_gram_cost,
)
