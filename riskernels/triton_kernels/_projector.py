# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""T with Q = S T, Q Q^H = 2P - P^2, from the Gram matrix of the true steering vectors S.

With G = S^H S + ridge I, P = S G^{-1} S^H and L_2 L_2^H = S^H S + 2 ridge I, T = G^{-1} L_2. Masked
columns get a 1 on the diagonal of S^H S, which leaves the others as they are, and T has zero rows
there. The matrices [KP, KP] live in the registers of a program, in float64.

In exact arithmetic no pivot is below the ridge. Where the ridge is below the rounding errors of
nearly dependent columns, a floor keeps noise from being divided by less than itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.triton_kernels._complex import load_complex, store_tile
from riskernels.triton_kernels._gram import counted_sources
from riskernels.triton_kernels._launch import ALL_REGISTERS, OPTIONS, padded, pairs

MAX_SOURCES = 32
"""Largest K whose matrices a program keeps in its registers."""


@triton.jit
def entry(values, at):
    """The entry of a vector where ``at`` is on."""
    return tl.sum(tl.where(at, values, 0.0), 0)


@triton.jit
def factor_column(re, im, j, floor, KP: tl.constexpr):
    """Column j of the Cholesky factor of what is left of a matrix, and its diagonal entry."""
    index = tl.arange(0, KP)
    here = (index == j)[None, :]
    cr = tl.sum(tl.where(here, re, 0.0), 1)
    ci = tl.sum(tl.where(here, im, 0.0), 1)
    pivot = entry(cr, index == j)
    # Written so that NaN stays.
    root = tl.sqrt(tl.where(pivot < floor, floor, pivot))
    cr = tl.where(index > j, cr / root, tl.where(index == j, root, 0.0))
    ci = tl.where(index > j, ci / root, 0.0)
    return cr, ci, root


@triton.jit
def transform(gr, gi, sources, k, ridge, KP: tl.constexpr):
    """T [KP, KP] from S^H S [KP, KP], whose rows and columns from ``sources`` on are 0."""
    index = tl.arange(0, KP)
    diagonal = index[:, None] == index[None, :]
    ridge = tl.full((), ridge, tl.float64)
    largest = tl.max(tl.max(tl.where(diagonal, gr, 0.0), 1), 0)
    gr = tl.where(diagonal & (index >= sources)[:, None], 1.0, gr)
    floor = 8 * 2.220446049250313e-16 * k * largest
    floor = tl.where(floor > ridge, floor, ridge)
    # L_2
    tr, ti = tl.zeros([KP, KP], tl.float64), tl.zeros([KP, KP], tl.float64)
    ar, ai = gr + tl.where(diagonal, 2 * ridge, 0.0), gi
    for j in range(k):
        cr, ci, _root = factor_column(ar, ai, j, floor, KP)
        here = (index == j)[None, :]
        tr = tl.where(here, cr[:, None], tr)
        ti = tl.where(here, ci[:, None], ti)
        ar -= cr[:, None] * cr[None, :] + ci[:, None] * ci[None, :]
        ai -= ci[:, None] * cr[None, :] - cr[:, None] * ci[None, :]
    # G = L L^H, and L^{-1} L_2 as its columns come.
    lr, li = tl.zeros([KP, KP], tl.float64), tl.zeros([KP, KP], tl.float64)
    ar, ai = gr + tl.where(diagonal, ridge, 0.0), gi
    for j in range(k):
        cr, ci, root = factor_column(ar, ai, j, floor, KP)
        here = (index == j)[None, :]
        lr = tl.where(here, cr[:, None], lr)
        li = tl.where(here, ci[:, None], li)
        ar -= cr[:, None] * cr[None, :] + ci[:, None] * ci[None, :]
        ai -= ci[:, None] * cr[None, :] - cr[:, None] * ci[None, :]
        row = (index == j)[:, None]
        zr = tl.sum(tl.where(row, tr, 0.0), 0) / root
        zi = tl.sum(tl.where(row, ti, 0.0), 0) / root
        cr, ci = tl.where(index > j, cr, 0.0), tl.where(index > j, ci, 0.0)
        tr -= cr[:, None] * zr[None, :] - ci[:, None] * zi[None, :]
        ti -= cr[:, None] * zi[None, :] + ci[:, None] * zr[None, :]
        tr = tl.where(row, zr[None, :], tr)
        ti = tl.where(row, zi[None, :], ti)
    # L^{-H} from the last row up.
    for turn in range(k):
        j = k - 1 - turn
        row = (index == j)[:, None]
        # Row j of L, whose conjugate is column j of L^H.
        cr = tl.sum(tl.where(row, lr, 0.0), 0)
        ci = -tl.sum(tl.where(row, li, 0.0), 0)
        root = entry(cr, index == j)
        zr = tl.sum(tl.where(row, tr, 0.0), 0) / root
        zi = tl.sum(tl.where(row, ti, 0.0), 0) / root
        cr, ci = tl.where(index < j, cr, 0.0), tl.where(index < j, ci, 0.0)
        tr -= cr[:, None] * zr[None, :] - ci[:, None] * zi[None, :]
        ti -= cr[:, None] * zi[None, :] + ci[:, None] * zr[None, :]
        tr = tl.where(row, zr[None, :], tr)
        ti = tl.where(row, zi[None, :], ti)
    there = (index < sources)[:, None]
    return tl.where(there, tr, 0.0), tl.where(there, ti, 0.0)


@triton.jit
def load_corner(gram, first, k, c, KP: tl.constexpr):
    """The [KP, KP] corner from ``first`` on of a row-major complex [c, c] matrix."""
    index = tl.arange(0, KP)
    at = (first + index)[:, None] * c + (first + index)[None, :]
    return load_complex(gram, at, (index < k)[:, None] & (index < k)[None, :])


@triton.jit
def transform_kernel(
    gram,  # [B, c, c], whose last k rows and columns are S^H S
    num_sources, n_stride,  # [B]
    transforms,  # [B, k, k]
    ridge: tl.float64, r, k, KP: tl.constexpr,
):  # fmt: skip
    """T of a scene; grid (B)."""
    c = r + k
    scene = tl.program_id(0).to(tl.int64)
    sources = counted_sources(num_sources, n_stride, scene, k)
    gr, gi = load_corner(gram + 2 * scene * c * c, r, k, c, KP)
    tr, ti = transform(gr, gi, sources, k, ridge, KP)
    index = tl.arange(0, KP)
    store_tile(transforms + 2 * scene * k * k, index, k, index, k, tr, ti)


def transforms(gram: Tensor, r: int, num_sources: Tensor, ridge: float) -> Tensor:
    """T [B, k, k] in complex128, from the contiguous Gram matrix [B, c, c] of [X, S]."""
    scenes, c, _ = gram.shape
    k = c - r
    result = torch.empty((scenes, k, k), dtype=gram.dtype, device=gram.device)
    transform_kernel[(scenes,)](
        pairs(gram), num_sources, num_sources.stride(0), pairs(result), ridge, r, k,
        KP=padded(k, 16, MAX_SOURCES), num_warps=4, **ALL_REGISTERS, **OPTIONS,
    )  # fmt: skip
    return result
