# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``hermitian_nmse``: weighted NMSE of [B,N,N] matrices, memory-bound."""

from __future__ import annotations

import torch
from torch import Tensor

import riskernels
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "hermitian_nmse"
ARGUMENTS = ("estimate", "target")
LAM_DIAG, LAM_OFF, EPS = 0.2, 0.8, 1e-12


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    """A covariance of 16 snapshots, and one that differs from it by a tenth."""
    b, n = case.sizes["B"], case.sizes["N"]
    factor = torch.randn(b, n, 16, dtype=torch.complex64, generator=generator) / 4
    error = torch.randn(b, n, n, dtype=torch.complex64, generator=generator) / 10
    target = factor @ factor.mH
    values = {"estimate": target + error, "target": target}
    if case.gradients:
        values["upstream"] = torch.rand(b, generator=generator) + 0.5
    return values


def exact_nmse(estimate: Tensor, target: Tensor) -> Tensor:
    """The definition, [B]."""
    diagonal = torch.eye(estimate.shape[-1], dtype=torch.bool, device=estimate.device)

    def part(selection: Tensor) -> Tensor:
        error = ((estimate - target).abs().square() * selection).sum((-2, -1))
        return error / ((target.abs().square() * selection).sum((-2, -1)) + EPS)

    return (LAM_DIAG * part(diagonal) + LAM_OFF * part(~diagonal)) / (LAM_DIAG + LAM_OFF)


def _kernel(case: Case, inputs: Inputs):
    def function(estimate: Tensor, target: Tensor) -> Tensor:
        return riskernels.hermitian_nmse(estimate, target, LAM_DIAG, LAM_OFF, EPS)

    return torch_call(function, case, inputs, ARGUMENTS)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    return oracle_by_scenes(exact_nmse, case, inputs, ARGUMENTS, scenes=64)


def _cost(case: Case) -> Cost:
    entries = case.sizes["B"] * case.sizes["N"] ** 2
    gradients = len(case.gradients)
    reads = 2 if gradients else 1
    return Cost(
        flops=(10.0 + (2 + 4 * gradients if gradients else 0)) * entries,
        bytes_read=16.0 * reads * entries,
        bytes_written=8.0 * gradients * entries,
        footprint=(16.0 + 8.0 * gradients) * entries,
        formula=(
            f"FLOPs: {10 + (2 + 4 * gradients if gradients else 0)}BN²; bytes: "
            f"{16 * reads}BN² read" + (f" + {8 * gradients}BN² written" if gradients else "")
        ),
    )


def _case(variant: str, title: str, b: int, gradients: tuple[str, ...] = ()) -> Case:
    return Case(NAME, variant, title, {"B": b, "N": 144}, gradients)


OPERATOR = Operator(
    name=NAME,
    cases=(
        _case("forward", "forward", 64),
        _case("forward", "forward", 512),
        _case("gradient", "forward + backward to estimate", 64, ("estimate",)),
        _case("gradient", "forward + backward to estimate", 512, ("estimate",)),
        _case("gradient-both", "forward + backward to both", 64, ARGUMENTS),
    ),
    outputs=("nmse",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
