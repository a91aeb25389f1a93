# SPDX-License-Identifier: Apache-2.0
"""PyTorch of ``steering_power``: the steering matrix of a chunk of points, times the factor.

Phases by the same stable path difference in float32, directions from float64; the size of the
chunks is the fastest of 256 to 16384 measured. Points and their directions are prepared beside the
timing.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from bench.operators._calls import torch_call
from bench.operators.steering_power import ARGUMENTS, NAME, WAVELENGTH, points, positions
from bench.registry import Case, Inputs, Peer

CHUNK = 1024


def lanes(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """2 u [G, 3], 1/r [G, 1], p [3, N] and |p|^2 [N], float32."""
    phi, theta, r = points(case.sizes["G"], device)
    level = theta.cos()
    u = torch.stack([level * phi.cos(), level * phi.sin(), theta.sin()], -1)
    array = positions(case.sizes["N"], device)
    values = 2 * u, 1 / r[:, None], array.mT, array.square().sum(1)
    doubled, inverse, place, square = (t.float().contiguous() for t in values)
    return doubled, inverse, place, square


def phases(doubled: Tensor, inverse: Tensor, place: Tensor, square: Tensor) -> Tensor:
    """k0 (r - R), [G, N]."""
    m = doubled @ place - inverse * square
    return (2 * math.pi / WAVELENGTH) * m / (1 + torch.sqrt(1 - inverse * m))


def chunk_power(
    factor: Tensor, doubled: Tensor, inverse: Tensor, place: Tensor, square: Tensor
) -> Tensor:
    """Power [B, C] at one chunk of points."""
    phase = phases(doubled, inverse, place, square)
    a = torch.polar(phase.new_full((1, 1), len(square) ** -0.5).expand_as(phase), -phase)
    return torch.view_as_real(a @ factor).square().sum((-2, -1))


def power_in_chunks(
    factor: Tensor,
    values: tuple[Tensor, Tensor, Tensor, Tensor],
    function=chunk_power,
    chunk: int = CHUNK,
) -> Tensor:
    doubled, inverse, place, square = values
    parts = [
        function(factor, u, q, place, square)
        for u, q in zip(doubled.split(chunk), inverse.split(chunk), strict=True)
    ]
    return torch.cat(parts, 1)


def serves(case: Case) -> bool:
    return case.operator == NAME


def prepare(case: Case, inputs: Inputs, function=chunk_power):
    values = lanes(case, inputs["factor"].device)
    call = functools.partial(power_in_chunks, values=values, function=function)
    return torch_call(call, case, inputs, ARGUMENTS)


PEERS = (Peer("torch_steering", "PyTorch, steering matrix in chunks", serves, prepare),)
