# SPDX-License-Identifier: Apache-2.0
"""Numba loops of ``steering_power``: one point at a time, columns innermost, parallel."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from bench.operators.steering_power import NAME, WAVELENGTH
from bench.peers.torch_steering import lanes
from bench.registry import Case, Inputs, Outputs, Peer


@functools.cache
def _function() -> Any:
    import numba
    import numpy

    @numba.njit(parallel=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
    def powers(factor, doubled, inverse, place, square, k0, out):
        """factor [B,N,2k] real parts and then imaginary ones."""
        scenes, elements, twice = factor.shape
        columns = twice // 2
        for g in numba.prange(out.shape[1]):
            wave = numpy.empty((elements, 2), numpy.float32)
            for n in range(elements):
                m = -inverse[g, 0] * square[n]
                for i in range(3):
                    m += doubled[g, i] * place[i, n]
                root = numpy.sqrt(numpy.float32(1) - inverse[g, 0] * m)
                phase = k0 * m / (numpy.float32(1) + root)
                wave[n, 0] = numpy.cos(phase)
                wave[n, 1] = numpy.sin(phase)
            for b in range(scenes):
                re = numpy.zeros(columns, numpy.float32)
                im = numpy.zeros(columns, numpy.float32)
                for n in range(elements):
                    c, s = wave[n, 0], wave[n, 1]
                    for j in range(columns):
                        x, y = factor[b, n, j], factor[b, n, columns + j]
                        re[j] += c * x + s * y
                        im[j] += c * y - s * x
                total = numpy.float32(0)
                for j in range(columns):
                    total += re[j] * re[j] + im[j] * im[j]
                out[b, g] = total / numpy.float32(elements)

    return powers


def prepare(case: Case, inputs: Inputs):
    import numba
    import numpy

    numba.set_num_threads(torch.get_num_threads())
    function = _function()
    factor = inputs["factor"]
    split = torch.cat([factor.real, factor.imag], -1).numpy()
    values = [t.numpy() for t in lanes(case, factor.device)]
    k0 = numpy.float32(2 * math.pi / WAVELENGTH)

    def run() -> tuple[Any, ...]:
        out = numpy.empty((case.sizes["B"], case.sizes["G"]), numpy.float32)
        function(split, *values, k0, out)
        return (out,)

    return run


def _to_torch(outputs: tuple[Any, ...]) -> Outputs:
    return tuple(torch.from_numpy(array) for array in outputs)


PEERS = (
    Peer(
        "numba_steering",
        "Numba loops",
        lambda case: case.operator == NAME and not case.gradients,
        prepare,
        requires=("numba",),
        to_torch=_to_torch,
    ),
)
