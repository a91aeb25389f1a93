# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``blend_covariance``: R_blend from R_pred and R_samp, [B,N,N], memory-bound."""

from __future__ import annotations

import torch
from torch import Tensor

import riskernels
from bench.operators import _covariance as covariance
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "blend_covariance"
ARGUMENTS = ("pred", "samp")
PRED_RANK, SAMP_RANK = 5, 16


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    b, n = case.sizes["B"], case.sizes["N"]
    factors = [covariance.random_complex((b, n, k), generator) for k in (PRED_RANK, SAMP_RANK)]
    values = dict(zip(ARGUMENTS, map(covariance.dense, factors), strict=True))
    values["upstream"] = covariance.random_complex((b, n, n), generator)
    return covariance.chosen(case, values, ARGUMENTS)


def _kernel(case: Case, inputs: Inputs):
    def function(pred: Tensor, samp: Tensor) -> Tensor:
        return riskernels.blend_covariance(
            pred,
            samp,
            covariance.BETA,
            loading=covariance.LOADING,
            shrinkage=covariance.SHRINKAGE,
        )

    return torch_call(function, case, inputs, ARGUMENTS)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(covariance.exact_blend, case, inputs, ARGUMENTS)


def _cost(case: Case) -> Cost:
    entries = float(case.sizes["B"] * case.sizes["N"] ** 2)
    backward = bool(case.gradients)
    return Cost(
        flops=(14.0 if backward else 6.0) * entries,
        bytes_read=(32.0 if backward else 16.0) * entries,
        bytes_written=(16.0 if backward else 8.0) * entries,
        footprint=(40.0 if backward else 24.0) * entries,
        formula=(
            "FLOPs: 14BN²; bytes: 32BN² read + 16BN² written"
            if backward
            else "FLOPs: 6BN²; bytes: 16BN² read + 8BN² written"
        ),
    )


def _case(variant: str, title: str, gradients: tuple[str, ...] = ()) -> Case:
    return Case(NAME, variant, title, {"B": 64, "N": 144}, gradients)


OPERATOR = Operator(
    name=NAME,
    cases=(
        _case("forward", "forward"),
        _case("gradient", "forward + backward to R_pred", ("pred",)),
    ),
    outputs=("covariance",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
