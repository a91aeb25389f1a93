# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``steering_power``: the power of a factor on a grid of points, [B,G].

The forward is the spectrum of one scene on 361 x 181 x 8 points; the gradient is that of eight
scenes on the grid of a localization; times B and N, as along the scaling curves, they would take
minutes a call. The floor counts the 8 N k FLOPs of the products alone.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import riskernels
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "steering_power"
ARGUMENTS = ("factor",)
WAVELENGTH = 0.3
_ORACLE_POINTS = 4096


@functools.lru_cache(maxsize=4)
def points(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuth, elevation and range of points over the field of view, float64 [G]."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(3, count, dtype=torch.float64, generator=generator)
    phi, theta = 2.1 * (share[0] - 0.5), 1.05 * (share[1] - 0.5)
    return phi.to(device), theta.to(device), (1 / (0.1 + 1.9 * share[2])).to(device)


@functools.lru_cache(maxsize=4)
def positions(elements: int, device: torch.device) -> Tensor:
    """A centred array in the y-z plane at half a wavelength, as square as ``elements`` allows."""
    width = next(w for w in range(int(elements**0.5), 0, -1) if elements % w == 0)
    place = torch.stack([torch.arange(elements) % width, torch.arange(elements) // width], -1)
    place = (WAVELENGTH / 2) * (place - place.double().mean(0))
    return torch.nn.functional.pad(place, (1, 0)).to(device)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    b, n, k, g = (case.sizes[name] for name in "BNkG")
    values = {"factor": torch.randn(b, n, k, dtype=torch.complex64, generator=generator)}
    if case.gradients:
        values["upstream"] = torch.rand(b, g, generator=generator)
    return values


def _kernel(case: Case, inputs: Inputs):
    device = inputs["factor"].device
    grid, array = points(case.sizes["G"], device), positions(case.sizes["N"], device)

    def power(factor: Tensor) -> Tensor:
        return riskernels.steering_power(factor, *grid, array, WAVELENGTH)

    return torch_call(power, case, inputs, ARGUMENTS)


def _exact(factor: Tensor, count: int) -> Tensor:
    """From the distances of points and elements."""
    array = positions(factor.shape[1], factor.device)
    parts = []
    grid = (t.split(_ORACLE_POINTS) for t in points(count, factor.device))
    for phi, theta, r in zip(*grid, strict=True):
        level = theta.cos()
        u = torch.stack([level * phi.cos(), level * phi.sin(), theta.sin()], -1)
        advance = r[:, None] - torch.cdist(r[:, None] * u, array)
        a = torch.polar(
            torch.full_like(advance, len(array) ** -0.5), 2 * torch.pi / WAVELENGTH * advance
        )
        parts.append(torch.view_as_real(a.conj() @ factor).square().sum((-2, -1)))
    return torch.cat(parts, 1)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    function = functools.partial(_exact, count=case.sizes["G"])
    return oracle_by_scenes(function, case, inputs, ARGUMENTS)


def _cost(case: Case) -> Cost:
    b, n, k, g = (float(case.sizes[name]) for name in "BNkG")
    passes = 3 if case.gradients else 1
    return Cost(
        flops=passes * 8 * b * n * k * g,
        bytes_read=8 * b * n * k + 24 * g + (4 * b * g if case.gradients else 0.0),
        bytes_written=4 * b * g + (8 * b * n * k if case.gradients else 0.0),
        footprint=8 * b * n * k + 24 * g + 4 * b * g,
        formula="FLOPs: 3 x 8BNkG; bytes: 8BNk + 4BG + 24G read, 4BG + 8BNk written"
        if case.gradients
        else "FLOPs: 8BNkG; bytes: 8BNk + 24G read, 4BG written",
    )


OPERATOR = Operator(
    name=NAME,
    cases=(
        Case(NAME, "grid", "forward", {"B": 1, "N": 144, "k": 21, "G": 361 * 181 * 8}),
        Case(
            NAME,
            "grid-gradient",
            "forward + backward to X",
            {"B": 8, "N": 144, "k": 21, "G": 52 * 27 * 12},
            ("factor",),
        ),
    ),
    outputs=("power",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
