# SPDX-License-Identifier: Apache-2.0
"""Factored against dense at a large array: NMSE + leakage, with and without the spectrum.

The kernel works on the factors X and Y. Its rivals hold the N x N matrices R = X X^H + rho I and
T = Y Y^H, and the spectrum costs them an eigendecomposition of R, which dwarfs all the rest: hence
the case without it. Each scene gives one number, with a gradient to X.
"""

from __future__ import annotations

import torch
from torch import Tensor

import riskernels
from bench.operators import _covariance as covariance
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.operators.hermitian_nmse import EPS, LAM_DIAG, LAM_OFF, exact_nmse
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "factored_terms"
SPECTRUM = "terms-and-spectrum"
ARGUMENTS = ("factor", "rho", "target_factor", "steering", "num_sources", "weights")


def with_spectrum(case: Case) -> bool:
    return case.variant == SPECTRUM


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    b, r, n = (case.sizes[name] for name in "BrN")
    values = covariance.factored_inputs(case, generator)
    # Distinct weights: the sum of all eigenvalues alone would be a trace.
    values["weights"] = torch.rand(b, r, generator=generator) / n
    values["upstream"] = torch.rand(b, generator=generator) + 0.5
    return covariance.chosen(case, values, ARGUMENTS)


def _kernel(case: Case, inputs: Inputs):
    def function(
        factor: Tensor,
        rho: Tensor,
        target_factor: Tensor,
        steering: Tensor,
        num_sources: Tensor,
        weights: Tensor,
    ) -> Tensor:
        nmse = riskernels.factored_nmse(factor, rho, target_factor, LAM_DIAG, LAM_OFF, EPS)
        leakage = riskernels.factored_leakage(factor, rho, steering, num_sources, covariance.RIDGE)
        if not with_spectrum(case):
            return nmse + leakage
        values = riskernels.factored_spectrum(factor, rho)
        return nmse + leakage + (weights * values).sum(1)

    return torch_call(function, case, inputs, ARGUMENTS)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    def function(
        factor: Tensor,
        rho: Tensor,
        target_factor: Tensor,
        steering: Tensor,
        num_sources: Tensor,
        weights: Tensor,
    ) -> Tensor:
        matrix, target = covariance.dense(factor, rho), covariance.dense(target_factor)
        terms = exact_nmse(matrix, target)
        terms = terms + covariance.exact_leakage(matrix, steering, num_sources)
        if not with_spectrum(case):
            return terms
        return terms + (weights * covariance.exact_spectrum(factor, rho)).sum(1)

    return oracle_by_scenes(function, case, inputs, ARGUMENTS, covariance.oracle_scenes(case))


def _cost(case: Case) -> Cost:
    """One Gram matrix of X, Y and the steering vectors, and one product back to X."""
    b, n, r, k = (case.sizes[name] for name in "BNrk")
    columns = r + 2 * k
    read, written = 8.0 * b * n * columns, 8.0 * b * n * r
    eigen = covariance.eigen_flops(r, True) if with_spectrum(case) else 0.0
    return Cost(
        flops=b * covariance.back_flops(n, columns, r),
        double_flops=b * (covariance.gram_flops(n, columns) + eigen),
        bytes_read=2 * read,
        bytes_written=written,
        footprint=read + written,
        formula=(
            "float64 FLOPs: B(4N(r + 2k)²"
            + (" + 40r³/3" if eigen else "")
            + "); FLOPs: 8BN(r + 2k)r; bytes: 16BN(r + 2k) read + 8BNr written"
        ),
    )


def _case(variant: str, title: str) -> Case:
    sizes = {"B": 64, "N": 1024, "r": 26, "k": 5}
    return Case(
        NAME,
        variant,
        f"{title}, forward + backward to X",
        sizes,
        ("factor",),
        verified_scenes=covariance.verified_scenes(sizes["N"]),
    )


OPERATOR = Operator(
    name=NAME,
    cases=(
        _case(SPECTRUM, "NMSE + leakage + spectrum"),
        _case("terms", "NMSE + leakage"),
    ),
    outputs=("terms",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
    uses=("factored_nmse", "factored_leakage", "factored_spectrum"),
)
