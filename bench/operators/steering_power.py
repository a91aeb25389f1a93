# SPDX-License-Identifier: Apache-2.0
"""Benchmark of ``steering_power``: [B,G] powers at G points that all scenes share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import riskernels
from bench.operators._calls import oracle_by_scenes, torch_call
from bench.registry import Case, Cost, Inputs, Operator, Outputs

NAME = "steering_power"
ARGUMENTS = ("factor",)
WAVELENGTH = 0.3
ENTRY_FLOPS = 40.0
"""Of one entry of a steering vector: path difference, sine and cosine."""


def grid(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """phi, theta and r [G] over the field of view, and a square array [N, 3] at half a wavelength.

    Float64, and the same on every device.
    """
    points, edge = case.sizes["G"], math.isqrt(case.sizes["N"])
    if edge**2 != case.sizes["N"]:
        raise ValueError(f"steering_power: N={case.sizes['N']} is not the square of an integer")
    # Additive recurrences with the powers of the plastic number fill the cube evenly.
    step = torch.arange(1, points + 1, dtype=torch.float64)
    spread = [(0.5 + step * 1.324717957244746**-power) % 1 for power in (1, 2, 3)]
    phi, theta, inverse = 2 * spread[0] - 1, spread[1] - 0.5, 0.1 + 1.9 * spread[2]
    half = WAVELENGTH / 2 * (torch.arange(edge, dtype=torch.float64) - (edge - 1) / 2)
    z, y = torch.meshgrid(half, half, indexing="ij")
    positions = torch.stack([torch.zeros_like(y), y, z], -1).reshape(-1, 3)
    phi, theta, r, positions = (t.to(device) for t in (phi, theta, 1 / inverse, positions))
    return phi, theta, r, positions


def steering(case: Case, device: torch.device) -> Tensor:
    """Steering vectors [G, N] in complex128, from the distances themselves."""
    phi, theta, r, positions = grid(case, device)
    level = torch.cos(theta)
    u = torch.stack([level * torch.cos(phi), level * torch.sin(phi), torch.sin(theta)], -1)
    distance = torch.linalg.vector_norm(r[:, None, None] * u[:, None] - positions, dim=-1)
    phase = 2 * math.pi / WAVELENGTH * (r[:, None] - distance)
    return torch.polar(torch.full_like(phase, case.sizes["N"] ** -0.5), phase)


def power_along(vectors: Tensor, factor: Tensor) -> Tensor:
    """[B, G]: one matrix product for all scenes."""
    b, n, k = factor.shape
    columns = factor.permute(1, 0, 2).reshape(n, b * k)
    product = torch.view_as_real(vectors.conj() @ columns).square().sum(-1)
    return product.reshape(-1, b, k).sum(-1).mT


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    b, n, k, g = (case.sizes[name] for name in "BNkG")
    parts = torch.randn(b, n, k, 2, generator=generator)
    values = {"factor": torch.view_as_complex(parts) * (n * k) ** -0.5}
    if case.gradients:
        values["upstream"] = torch.randn(b, g, generator=generator)
    return values


def _kernel(case: Case, inputs: Inputs):
    points = grid(case, inputs["factor"].device)

    def power(factor: Tensor) -> Tensor:
        return riskernels.steering_power(factor, *points, WAVELENGTH)

    return torch_call(power, case, inputs, ARGUMENTS)


def _oracle(case: Case, inputs: Inputs) -> Outputs:
    vectors = steering(case, inputs["factor"].device)
    return oracle_by_scenes(
        lambda factor: power_along(vectors, factor), case, inputs, ARGUMENTS, scenes=4
    )


def _cost(case: Case) -> Cost:
    b, n, k, g = (case.sizes[name] for name in "BNkG")
    products, entries = 8.0 * b * n * k * g, ENTRY_FLOPS * n * g
    read, written = 8.0 * b * n * k + 24.0 * g, 4.0 * b * g
    if not case.gradients:
        return Cost(
            flops=products + entries,
            bytes_read=read,
            bytes_written=written,
            footprint=read + written,
            formula="FLOPs: 8BNkG + 40NG; bytes: 8BNk + 24G read + 4BG written",
        )
    return Cost(
        flops=3 * products + 2 * entries,
        bytes_read=2 * read + written,
        bytes_written=written + 8.0 * b * n * k,
        footprint=2 * read + 2 * written,
        formula=(
            "FLOPs: 24BNkG + 80NG (a^H X once more backward); bytes: 16BNk + 48G + 4BG read + "
            "4BG + 8BNk written"
        ),
    )


def _case(
    variant: str, title: str, sizes: tuple[int, int, int, int], gradients: tuple[str, ...] = ()
) -> Case:
    # A phase is wrong by a few ulps of the aperture in wavelengths.
    tolerance = 5e-6 if sizes[1] <= 144 else 2e-5
    named = dict(zip("BNkG", sizes, strict=True))
    return Case(NAME, variant, title, named, gradients, tolerance=tolerance)


OPERATOR = Operator(
    name=NAME,
    cases=(
        _case("forward", "forward", (64, 144, 5, 8192)),
        _case("forward", "forward", (64, 144, 16, 8192)),
        _case("forward", "forward", (4, 1024, 21, 8192)),
        _case("gradient", "forward + backward to X", (64, 144, 5, 8192), ("factor",)),
    ),
    outputs=("power",),
    inputs=_inputs,
    kernel=_kernel,
    oracle=_oracle,
    cost=_cost,
)
