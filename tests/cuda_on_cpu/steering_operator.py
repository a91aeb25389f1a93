# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of steering_power as Python functions, run on the block executor.

Options of both functions: those of :mod:`cuda_on_cpu.operators`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from cuda_on_cpu.harness import Call
from torch import Tensor


class Points(NamedTuple):
    """Points [G] or [B, G], the elements [N, 3], and how waves meet them."""

    phi: Tensor
    theta: Tensor
    r: Tensor
    positions: Tensor
    wavelength: float = 0.3
    taper: bool = False


def _call(backward: bool, factor: Tensor, points: Points, options: dict[str, int]) -> Call:
    call = Call("steering_power", factor.dtype, backward, **options)
    for name, size in zip(("scenes", "elements", "columns"), factor.shape, strict=True):
        call.integer(name, size)
    call.array("factor", factor)
    call.integer("points", points.phi.shape[-1])
    coordinates = (points.phi, points.theta, points.r)
    call.integer("shared", all(x.dim() == 1 or x.stride(0) == 0 for x in coordinates))
    for name in ("phi", "theta", "r", "positions"):
        tensor = getattr(points, name)
        call.array(name, tensor, tensor.stride() if tensor.dim() == 2 else (0, tensor.stride(0)))
        call.integer(f"{name}_wide", tensor.dtype == torch.float64)
    call.real("wavelength", points.wavelength)
    call.integer("taper", points.taper)
    return call


class Plan(NamedTuple):
    """What the host made of the sizes."""

    own_points: int
    """P and C of the tile of a thread."""
    own_columns: int
    scenes: int
    """Of a column tile."""
    windows: int
    """Column tiles of a scene."""
    group: int
    """Forward: column tiles of a block, and whether it keeps its steering tile."""
    kept: int
    parts: int
    """Backward: blocks that share a column tile, and point tiles of each."""
    part_tiles: int


def _run(call: Call, name: str) -> tuple[Tensor, Plan]:
    call.output("plan", (len(Plan._fields),), torch.int64)
    results = call.run()
    return results[name], Plan(*results["plan"].tolist())


def power_forward(factor: Tensor, points: Points, **options: int) -> tuple[Tensor, Plan]:
    """P [B, G]."""
    call = _call(False, factor, points, options)
    call.output("power", (factor.shape[0], points.phi.shape[-1]), factor.dtype.to_real())
    return _run(call, "power")


def power_backward(
    grad: Tensor, factor: Tensor, points: Points, **options: int
) -> tuple[Tensor, Plan]:
    """Gradient to the factor, contiguous."""
    call = _call(True, factor, points, options)
    call.array("grad", grad)
    call.output("grad_factor", tuple(factor.shape), factor.dtype)
    return _run(call, "grad_factor")
