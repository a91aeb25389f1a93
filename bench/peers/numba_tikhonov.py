# SPDX-License-Identifier: Apache-2.0
"""Numba loops of the sample covariance, forward: push-through, a scene from inputs to R in cache.

The algebra of the kernel on real and imaginary parts apart, the innermost loops along N or L so
that LLVM vectorises them: a Gram matrix and a Cholesky factor for each scene, or for each snapshot
where the moduli vary, all right-hand sides at once, half of R computed and mirrored in blocks.
Parallel over scenes. Sums may be reassociated, which is the faster setting.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from bench.operators._tikhonov import ALPHA, one_factorisation, per_snapshot
from bench.registry import Case, Inputs, Outputs, Peer


@functools.cache
def _function() -> Any:
    import numba
    import numpy

    options = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}}
    inlined = numba.njit(inline="always", **options)

    @inlined
    def factorise(h_re, h_im, weights, alpha, g_re, g_im, pivots):
        """g = L of H diag(weights) H^H + alpha I, below the diagonal; pivots hold 1 / L_jj."""
        m, n = h_re.shape
        for i in range(m):
            for j in range(i + 1):
                re, im = numpy.float32(0), numpy.float32(0)
                for k in range(n):
                    x_re, x_im = h_re[i, k] * weights[k], h_im[i, k] * weights[k]
                    re += x_re * h_re[j, k] + x_im * h_im[j, k]
                    im += x_im * h_re[j, k] - x_re * h_im[j, k]
                g_re[i, j], g_im[i, j] = re, im
        for j in range(m):
            diagonal = g_re[j, j] + alpha
            for k in range(j):
                diagonal -= g_re[j, k] * g_re[j, k] + g_im[j, k] * g_im[j, k]
            pivots[j] = 1 / numpy.sqrt(diagonal)
            for i in range(j + 1, m):
                re, im = g_re[i, j], g_im[i, j]
                for k in range(j):
                    re -= g_re[i, k] * g_re[j, k] + g_im[i, k] * g_im[j, k]
                    im -= g_im[i, k] * g_re[j, k] - g_re[i, k] * g_im[j, k]
                g_re[i, j], g_im[i, j] = re * pivots[j], im * pivots[j]

    @inlined
    def solve(g_re, g_im, pivots, z_re, z_im, first, last):
        """z := (L L^H)^{-1} z in the columns from first to last, z [M,L]."""
        m = g_re.shape[0]
        for i in range(m):
            for k in range(i):
                for c in range(first, last):
                    z_re[i, c] -= g_re[i, k] * z_re[k, c] - g_im[i, k] * z_im[k, c]
                    z_im[i, c] -= g_re[i, k] * z_im[k, c] + g_im[i, k] * z_re[k, c]
            for c in range(first, last):
                z_re[i, c] *= pivots[i]
                z_im[i, c] *= pivots[i]
        for i in range(m - 1, -1, -1):
            for k in range(i + 1, m):
                for c in range(first, last):
                    z_re[i, c] -= g_re[k, i] * z_re[k, c] + g_im[k, i] * z_im[k, c]
                    z_im[i, c] -= g_re[k, i] * z_im[k, c] - g_im[k, i] * z_re[k, c]
            for c in range(first, last):
                z_re[i, c] *= pivots[i]
                z_im[i, c] *= pivots[i]

    @inlined
    def back_project(h_re, h_im, z_re, z_im, rows, a_re, a_im):
        """a [L,N] = conj(h)^T z, four snapshots at a time; rows [8,N] is scratch."""
        m, n = h_re.shape
        length = a_re.shape[0]
        for c in range(0, length, 4):
            rows[:, :n] = 0
            for i in range(m):
                p_re, q_re, r_re, s_re = z_re[i, c], z_re[i, c + 1], z_re[i, c + 2], z_re[i, c + 3]
                p_im, q_im, r_im, s_im = z_im[i, c], z_im[i, c + 1], z_im[i, c + 2], z_im[i, c + 3]
                for k in range(n):
                    x_re, x_im = h_re[i, k], h_im[i, k]
                    rows[0, k] += x_re * p_re + x_im * p_im
                    rows[1, k] += x_re * p_im - x_im * p_re
                    rows[2, k] += x_re * q_re + x_im * q_im
                    rows[3, k] += x_re * q_im - x_im * q_re
                    rows[4, k] += x_re * r_re + x_im * r_im
                    rows[5, k] += x_re * r_im - x_im * r_re
                    rows[6, k] += x_re * s_re + x_im * s_im
                    rows[7, k] += x_re * s_im - x_im * s_re
            for row in range(min(4, length - c)):
                for k in range(n):
                    a_re[c + row, k], a_im[c + row, k] = rows[2 * row, k], rows[2 * row + 1, k]

    @inlined
    def outer(a_re, a_im, rows, out):
        """out [N,2N] = sum_l a_l a_l^H: four rows at a time up to the diagonal, then mirrored."""
        length, n = a_re.shape[0], out.shape[0]
        for i in range(0, n, 4):
            rows[:, : i + 4] = 0
            for c in range(length):
                p_re, q_re, r_re, s_re = a_re[c, i], a_re[c, i + 1], a_re[c, i + 2], a_re[c, i + 3]
                p_im, q_im, r_im, s_im = a_im[c, i], a_im[c, i + 1], a_im[c, i + 2], a_im[c, i + 3]
                for j in range(i + 4):
                    x_re, x_im = a_re[c, j], a_im[c, j]
                    rows[0, j] += p_re * x_re + p_im * x_im
                    rows[1, j] += p_im * x_re - p_re * x_im
                    rows[2, j] += q_re * x_re + q_im * x_im
                    rows[3, j] += q_im * x_re - q_re * x_im
                    rows[4, j] += r_re * x_re + r_im * x_im
                    rows[5, j] += r_im * x_re - r_re * x_im
                    rows[6, j] += s_re * x_re + s_im * x_im
                    rows[7, j] += s_im * x_re - s_re * x_im
            for row in range(min(4, n - i)):
                for j in range(i + row):
                    out[i + row, 2 * j] = rows[2 * row, j]
                    out[i + row, 2 * j + 1] = rows[2 * row + 1, j]
                out[i + row, 2 * (i + row)] = rows[2 * row, i + row]
                out[i + row, 2 * (i + row) + 1] = 0
        for rows_from in range(0, n, 16):
            for columns in range(rows_from, n, 16):
                for i in range(rows_from, min(rows_from + 16, n)):
                    for j in range(max(columns, i + 1), min(columns + 16, n)):
                        out[i, 2 * j], out[i, 2 * j + 1] = out[j, 2 * i], -out[j, 2 * i + 1]

    @numba.njit(parallel=True, **options)
    def covariance(y, h, codes, alpha, shared, out):
        """y [B,L,2M], h [B,M,2N], codes [B,L,2N] and out [B,N,2N] are real views."""
        scenes, length, m = y.shape[0], y.shape[1], y.shape[2] // 2
        n = h.shape[2] // 2
        # Rounded up to the four that are worked on at a time.
        columns, width = (length + 3) // 4 * 4, (n + 3) // 4 * 4
        scale = numpy.float32(1 / numpy.sqrt(length))
        for b in numba.prange(scenes):
            h_re, h_im = numpy.empty((m, n), numpy.float32), numpy.empty((m, n), numpy.float32)
            z_re = numpy.zeros((m, columns), numpy.float32)
            z_im = numpy.zeros((m, columns), numpy.float32)
            a_re = numpy.zeros((length, width), numpy.float32)
            a_im = numpy.zeros((length, width), numpy.float32)
            rows = numpy.empty((8, width), numpy.float32)
            g_re, g_im = numpy.empty((m, m), numpy.float32), numpy.empty((m, m), numpy.float32)
            pivots, weights = numpy.empty(m, numpy.float32), numpy.empty(n, numpy.float32)
            for i in range(m):
                for k in range(n):
                    h_re[i, k], h_im[i, k] = h[b, i, 2 * k], h[b, i, 2 * k + 1]
                for c in range(length):
                    z_re[i, c], z_im[i, c] = y[b, c, 2 * i] * scale, y[b, c, 2 * i + 1] * scale
            for c in range(1 if shared else length):
                for k in range(n):
                    weights[k] = codes[b, c, 2 * k] ** 2 + codes[b, c, 2 * k + 1] ** 2
                factorise(h_re, h_im, weights, alpha, g_re, g_im, pivots)
                first, last = (0, length) if shared else (c, c + 1)
                solve(g_re, g_im, pivots, z_re, z_im, first, last)
            back_project(h_re, h_im, z_re, z_im, rows, a_re, a_im)
            for c in range(length):
                for k in range(n):
                    re, im = a_re[c, k], a_im[c, k]
                    a_re[c, k] = codes[b, c, 2 * k] * re + codes[b, c, 2 * k + 1] * im
                    a_im[c, k] = codes[b, c, 2 * k] * im - codes[b, c, 2 * k + 1] * re
            outer(a_re, a_im, rows, out[b])

    return covariance


def prepare(case: Case, inputs: Inputs):
    import numba
    import numpy

    numba.set_num_threads(torch.get_num_threads())
    function, shared = _function(), one_factorisation(case)
    y, h, codes = (inputs[name].numpy().view(numpy.float32) for name in ("y", "h", "codes"))
    alpha = numpy.float32(ALPHA)

    def run() -> tuple[Any]:
        out = numpy.empty((*h.shape[:1], h.shape[2] // 2, h.shape[2]), numpy.float32)
        function(y, h, codes, alpha, shared, out)
        return (out.view(numpy.complex64),)

    return run


def _to_torch(outputs: tuple[Any, ...]) -> Outputs:
    return tuple(torch.from_numpy(array) for array in outputs)


def _serves(case: Case) -> bool:
    forward = case.operator == "tikhonov_covariance" and not case.gradients
    return forward and not per_snapshot(case)


PEERS = (
    Peer(
        "numba_tikhonov",
        "Numba, fused loops",
        _serves,
        prepare,
        requires=("numba",),
        to_torch=_to_torch,
    ),
)
