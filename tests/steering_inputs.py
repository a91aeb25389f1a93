# SPDX-License-Identifier: Apache-2.0
"""Inputs of the tests of steering_power."""

from __future__ import annotations

import tikhonov_inputs as ti
import torch
from torch import Tensor

C64, C128 = torch.complex64, torch.complex128
WAVELENGTH = 0.3


def case(
    b: int,
    n: int,
    k: int,
    g: int,
    dtype: torch.dtype = C128,
    device: str = "cpu",
    seed: int = 0,
    *,
    own_points: bool = False,
) -> tuple[Tensor, ...]:
    """X, phi, theta, r (float64) and positions within 0.6 m of the centre; points from 1 m on."""
    generator = torch.Generator().manual_seed(seed)
    factor = ti.complex_normal(b, n, k, dtype=C128, seed=generator).to(dtype)
    shape = (b, g) if own_points else (g,)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, dtype=torch.float64, generator=generator)

    phi, theta = 3 * (uniform(*shape) - 0.5), 2 * (uniform(*shape) - 0.5)
    r = 1 + 9 * uniform(*shape)
    positions = 0.7 * (uniform(n, 3) - 0.5)
    return tuple(t.to(device) for t in (factor, phi, theta, r, positions))
