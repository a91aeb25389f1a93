# SPDX-License-Identifier: Apache-2.0
"""Numba loops of the NMSE: one fused pass a scene forward, another backward, parallel over scenes.

Sums may be reassociated (otherwise nothing vectorises), and are kept one a row, which also keeps
the rounding of float32 small.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from bench.operators.hermitian_nmse import EPS, LAM_DIAG, LAM_OFF
from bench.registry import Case, Inputs, Outputs, Peer


@functools.cache
def _functions() -> tuple[Any, Any]:
    import numba

    compile_loop = numba.njit(parallel=True, fastmath={"reassoc", "contract", "nsz", "arcp"})

    @compile_loop
    def sums(estimate, target, out):
        """out [B,4] = error and target energies, diagonal and total, of [B,N,2N] real views."""
        n = estimate.shape[1]
        for b in numba.prange(estimate.shape[0]):
            totals = (0.0, 0.0, 0.0, 0.0)
            for i in range(n):
                row_error = estimate[b, i, 0] * 0
                row_target = row_error * 0
                for j in range(2 * n):
                    t = target[b, i, j]
                    e = estimate[b, i, j] - t
                    row_error += e * e
                    row_target += t * t
                t_re, t_im = target[b, i, 2 * i], target[b, i, 2 * i + 1]
                e_re, e_im = estimate[b, i, 2 * i] - t_re, estimate[b, i, 2 * i + 1] - t_im
                totals = (
                    totals[0] + e_re * e_re + e_im * e_im,
                    totals[1] + row_error,
                    totals[2] + t_re * t_re + t_im * t_im,
                    totals[3] + row_target,
                )
            for k in range(4):
                out[b, k] = totals[k]

    @compile_loop
    def gradients(estimate, target, scales, ratios, out_estimate, out_target):
        """scales and ratios [B,2], diagonal and off-diagonal; an empty output is not written."""
        n = estimate.shape[1]
        both = out_target.shape[0] > 0
        for b in numba.prange(estimate.shape[0]):
            scale, ratio = scales[b, 1], ratios[b, 1]
            for i in range(n):
                for j in range(2 * n):
                    out_estimate[b, i, j] = scale * (estimate[b, i, j] - target[b, i, j])
                for j in (2 * i, 2 * i + 1):
                    out_estimate[b, i, j] = scales[b, 0] * (estimate[b, i, j] - target[b, i, j])
                if both:
                    for j in range(2 * n):
                        out_target[b, i, j] = -out_estimate[b, i, j] - ratio * target[b, i, j]
                    for j in (2 * i, 2 * i + 1):
                        out_target[b, i, j] = (
                            -out_estimate[b, i, j] - ratios[b, 0] * target[b, i, j]
                        )

    return sums, gradients


def prepare(case: Case, inputs: Inputs):
    import numba
    import numpy

    numba.set_num_threads(torch.get_num_threads())
    sums, gradients = _functions()
    estimate, target = (inputs[name].numpy() for name in ("estimate", "target"))
    estimate, target = (matrix.view(numpy.float32) for matrix in (estimate, target))
    upstream = inputs["upstream"].numpy() if case.gradients else None
    weights = numpy.array([LAM_DIAG, LAM_OFF]) / (LAM_DIAG + LAM_OFF)

    def run() -> tuple[Any, ...]:
        energies = numpy.empty((estimate.shape[0], 4))
        sums(estimate, target, energies)
        error, power = energies[:, :2], energies[:, 2:]
        error[:, 1] -= error[:, 0]
        power[:, 1] -= power[:, 0]
        power += EPS
        result = (weights * error / power).sum(1).astype(numpy.float32)
        if upstream is None:
            return (result,)
        scales = 2 * weights * upstream[:, None] / power
        ratios = scales * error / power
        grad_estimate = numpy.empty_like(estimate)
        both = "target" in case.gradients
        grad_target = numpy.empty_like(target) if both else estimate[:0]
        single = (scales.astype(numpy.float32), ratios.astype(numpy.float32))
        gradients(estimate, target, *single, grad_estimate, grad_target)
        computed = (grad_estimate, grad_target) if both else (grad_estimate,)
        return (result, *(gradient.view(numpy.complex64) for gradient in computed))

    return run


def _to_torch(outputs: tuple[Any, ...]) -> Outputs:
    return tuple(torch.from_numpy(array) for array in outputs)


PEERS = (
    Peer(
        "numba_loops",
        "Numba, fused loops",
        lambda case: case.operator == "hermitian_nmse",
        prepare,
        requires=("numba",),
        to_torch=_to_torch,
    ),
)
