# SPDX-License-Identifier: Apache-2.0
"""``steering_power`` in JAX: a chunk of points at a time inside one compiled loop."""

from __future__ import annotations

import math
from typing import Any

import torch

from bench.operators.steering_power import NAME, WAVELENGTH
from bench.peers.torch_steering import CHUNK, lanes
from bench.registry import Case


def serves(case: Case) -> bool:
    return case.operator == NAME


def call(case: Case, device: torch.device, array: Any) -> tuple[Any, tuple[str, ...]]:
    """The function of the factor (and of the upstream gradient), and the names of its inputs."""
    import jax
    from jax import numpy

    doubled, inverse, place, square = map(array, lanes(case, device))
    count = case.sizes["G"]
    chunk = min(CHUNK, count)
    pad = -count % chunk
    u = numpy.pad(doubled, ((0, pad), (0, 0))).reshape(-1, chunk, 3)
    q = numpy.pad(inverse, ((0, pad), (0, 0))).reshape(-1, chunk, 1)

    def power(factor: Any) -> Any:
        def at(points: Any) -> Any:
            m = points[0] @ place - points[1] * square
            phase = (2 * math.pi / WAVELENGTH) * m / (1 + numpy.sqrt(1 - points[1] * m))
            wave = jax.lax.complex(numpy.cos(phase), -numpy.sin(phase))
            product = wave @ factor
            return (product.real**2 + product.imag**2).sum(-1) / len(square)

        parts = jax.lax.map(at, (u, q))
        return numpy.moveaxis(parts, 0, 1).reshape(factor.shape[0], -1)[:, :count]

    if not case.gradients:
        return power, ("factor",)

    def with_gradient(factor: Any, upstream: Any) -> Any:
        result, pull = jax.vjp(power, factor)
        return result, pull(upstream)[0].conj()

    return with_gradient, ("factor", "upstream")
