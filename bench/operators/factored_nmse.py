# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``factored_nmse``: the weighted NMSE of X X^H + rho I against Y Y^H, [B]."""

from __future__ import annotations

import torch
from torch import Tensor

import riskernels
from bench.operators import _covariance as covariance
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.operators.hermitian_nmse import EPS, LAM_DIAG, LAM_OFF, exact_nmse
from bench.registry import Case, Inputs, Operator, Outputs

NAME = "factored_nmse"
ARGUMENTS = ("factor", "rho", "target_factor")


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    values = covariance.factored_inputs(case, generator)
    values["upstream"] = torch.rand(case.sizes["B"], generator=generator) + 0.5
    return covariance.chosen(case, values, ARGUMENTS)


def _kernel(case: Case, inputs: Inputs):
    def function(factor: Tensor, rho: Tensor, target_factor: Tensor) -> Tensor:
        return riskernels.factored_nmse(factor, rho, target_factor, LAM_DIAG, LAM_OFF, EPS)

    return torch_call(function, case, inputs, ARGUMENTS)


def _dense_nmse(factor: Tensor, rho: Tensor, target_factor: Tensor) -> Tensor:
    return exact_nmse(covariance.dense(factor, rho), covariance.dense(target_factor))


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(_dense_nmse, case, inputs, ARGUMENTS, covariance.oracle_scenes(case))


OPERATOR = Operator(
    name=NAME,
    cases=covariance.factored_cases(NAME),
    outputs=("nmse",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=covariance.joint_gram_cost,
)
