# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
"""Triton implementation of ``factored_blend``: memory-bound, two launches each way.

The first adds up |A|^2 and |V|^2 (backward also Re<G, A>) over bands of rows; every program of the
second adds the bands of its scene in a fixed order, so the coefficients need no launch of their
own, and writes a band of the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.ops._checks import check_grad
from riskernels.ops._factored_checks import check_factored_blend
from riskernels.triton_kernels._blend import blend_coefficients
from riskernels.triton_kernels._complex import load_tile, store_complex, store_tile
from riskernels.triton_kernels._launch import (
    ALL_REGISTERS,
    OPTIONS,
    blocks,
    on_device,
    padded,
    pairs,
)

ROWS, COLUMNS = 32, 32
"""A program works on tiles of at most this many elements and columns."""
MOST_BANDS = 32
"""Bands of a scene whose sums are kept apart."""


@triton.jit
def energy(re, im):
    """Sum of |x|^2 in float64."""
    re, im = re.to(tl.float64), im.to(tl.float64)
    return tl.sum(tl.sum(re * re + im * im, 1), 0)


@triton.jit
def factor_sums_kernel(
    grad, g_stride,  # [B, N, K + L], only where BACKWARD
    factor, f_stride,  # [B, N, K]
    snapshots, s_stride,  # [B, L, N]
    parts,  # [B, bands, 3]: |A|^2, |V|^2, Re<G, A>
    elements, columns, count, height, bands,
    BACKWARD: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """The sums over a band of ``height`` elements; grid (B * bands)."""
    scene = (tl.program_id(0) // bands).to(tl.int64)
    first = (tl.program_id(0) % bands) * height
    end = tl.minimum(first + height, elements)
    factor += 2 * scene * f_stride[0]
    snapshots += 2 * scene * s_stride[0]
    of_factor = tl.full((), 0.0, tl.float64)
    of_snapshots = tl.full((), 0.0, tl.float64)
    inner = tl.full((), 0.0, tl.float64)
    if BACKWARD:
        grad += 2 * scene * g_stride[0]
    for row in range(first, end, ROWS):
        i = row + tl.arange(0, ROWS)
        for start in range(0, columns, C):
            j = start + tl.arange(0, C)
            ar, ai = load_tile(factor, i, f_stride[1], end, j, f_stride[2], columns)
            of_factor += energy(ar, ai)
            if BACKWARD:
                gr, gi = load_tile(grad, i, g_stride[1], end, j, g_stride[2], columns)
                product = ar.to(tl.float64) * gr + ai.to(tl.float64) * gi
                inner += tl.sum(tl.sum(product, 1), 0)
        for start in range(0, count, S):
            j = start + tl.arange(0, S)
            vr, vi = load_tile(snapshots, j, s_stride[1], count, i, s_stride[2], end)
            of_snapshots += energy(vr, vi)
    parts += 3 * tl.program_id(0).to(tl.int64)
    tl.store(parts, of_factor)
    tl.store(parts + 1, of_snapshots)
    tl.store(parts + 2, inner)


@triton.jit
def scene_sums(parts, scene, bands, BANDS: tl.constexpr):
    """The three sums of a scene."""
    band = tl.arange(0, BANDS)
    at = parts + 3 * (scene * bands + band)
    of_factor = tl.sum(tl.load(at, mask=band < bands, other=0.0), 0)
    of_snapshots = tl.sum(tl.load(at + 1, mask=band < bands, other=0.0), 0)
    inner = tl.sum(tl.load(at + 2, mask=band < bands, other=0.0), 0)
    return of_factor, of_snapshots, inner


@triton.jit
def factored_blend_kernel(
    factor, f_stride,  # [B, N, K]
    snapshots, s_stride,  # [B, L, N]
    parts,  # [B, bands, 3]
    blend,  # [B, N, K + L]
    rho,  # [B]
    beta: tl.float64, target_trace: tl.float64, loading: tl.float64, shrinkage: tl.float64,
    elements, columns, count, bands, tiles,
    BANDS: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """ROWS rows of [sqrt(c_p) A, sqrt(c_s / L) V^T]; grid (B * tiles)."""
    dtype: tl.constexpr = factor.dtype.element_ty
    scene = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    of_factor, of_snapshots, _inner = scene_sums(parts, scene, bands, BANDS)
    on_pred, on_samp, diagonal = blend_coefficients(
        of_factor, of_snapshots / count, elements, beta, target_trace, loading, shrinkage
    )
    if tile == 0:
        tl.store(rho + scene, diagonal.to(dtype))
    scale_pred = tl.sqrt(on_pred).to(dtype)
    scale_samp = tl.sqrt(on_samp / count).to(dtype)
    factor += 2 * scene * f_stride[0]
    snapshots += 2 * scene * s_stride[0]
    i = tile * ROWS + tl.arange(0, ROWS)
    row = (scene * elements + i) * (columns + count)
    for start in range(0, columns, C):
        j = start + tl.arange(0, C)
        ar, ai = load_tile(factor, i, f_stride[1], elements, j, f_stride[2], columns)
        inside = (i < elements)[:, None] & (j < columns)[None, :]
        at = row[:, None] + j[None, :]
        store_complex(blend, at, scale_pred * ar, scale_pred * ai, inside)
    for start in range(0, count, S):
        j = start + tl.arange(0, S)
        # Read along the elements, written along the columns.
        vr, vi = load_tile(snapshots, j, s_stride[1], count, i, s_stride[2], elements)
        inside = (i < elements)[:, None] & (j < count)[None, :]
        at = row[:, None] + (columns + j)[None, :]
        store_complex(
            blend, at, scale_samp * tl.trans(vr), scale_samp * tl.trans(vi), inside
        )  # fmt: skip


@triton.jit
def factored_blend_gradient_kernel(
    grad, g_stride,  # [B, N, K + L]
    factor, f_stride,  # [B, N, K]
    parts,  # [B, bands, 3]
    factor_grad,  # [B, N, K]
    beta: tl.float64, target_trace: tl.float64, loading: tl.float64, shrinkage: tl.float64,
    elements, columns, count, bands, tiles,
    BANDS: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """ROWS rows of sqrt(c_p) (G_A - A Re<G, A> / |A|^2); grid (B * tiles)."""
    dtype: tl.constexpr = factor.dtype.element_ty
    scene = (tl.program_id(0) // tiles).to(tl.int64)
    of_factor, of_snapshots, inner = scene_sums(parts, scene, bands, BANDS)
    on_pred, _on_samp, _diagonal = blend_coefficients(
        of_factor, of_snapshots / count, elements, beta, target_trace, loading, shrinkage
    )
    scale = tl.sqrt(on_pred)
    empty = of_factor == 0
    pull = (scale * (inner / tl.where(empty, 1.0, of_factor))).to(dtype)
    scale = scale.to(dtype)
    grad += 2 * scene * g_stride[0]
    factor += 2 * scene * f_stride[0]
    factor_grad += 2 * scene * elements * columns
    i = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    for start in range(0, columns, C):
        j = start + tl.arange(0, C)
        ar, ai = load_tile(factor, i, f_stride[1], elements, j, f_stride[2], columns)
        gr, gi = load_tile(grad, i, g_stride[1], elements, j, g_stride[2], columns)
        # Selected, not multiplied by the zero coefficient: the gradient may hold infinities.
        re = tl.where(empty, 0.0, scale * gr - pull * ar)
        im = tl.where(empty, 0.0, scale * gi - pull * ai)
        store_tile(factor_grad, i, elements, j, columns, re, im)


def _sums(grad: Tensor | None, factor: Tensor, snapshots: Tensor) -> tuple[Tensor, int]:
    """Sums of the bands [B, bands, 3] in float64, and the number of bands."""
    scenes, elements, columns = factor.shape
    count = snapshots.shape[1]
    height = ROWS * blocks(blocks(elements, ROWS), MOST_BANDS)
    bands = blocks(elements, height)
    parts = torch.empty((scenes, bands, 3), dtype=torch.float64, device=factor.device)
    of_grad = factor if grad is None else grad
    factor_sums_kernel[(scenes * bands,)](
        pairs(of_grad), of_grad.stride(), pairs(factor), factor.stride(),
        pairs(snapshots), snapshots.stride(), parts, elements, columns, count, height, bands,
        BACKWARD=grad is not None, ROWS=ROWS, C=padded(columns, 1, COLUMNS),
        S=padded(count, 1, COLUMNS), num_warps=4, **ALL_REGISTERS, **OPTIONS,
    )  # fmt: skip
    return parts, bands


def factored_blend(
    factor: Tensor,
    snapshots: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """X [B, N, K + L] and rho [B]; see :func:`riskernels.factored_blend`."""
    op = "factored_blend"
    check_factored_blend(op, factor, snapshots, beta, target_trace, loading, shrinkage)
    scenes, elements, columns = factor.shape
    count = snapshots.shape[1]
    device = factor.device
    blend = torch.empty((scenes, elements, columns + count), dtype=factor.dtype, device=device)
    rho = torch.empty((scenes,), dtype=factor.dtype.to_real(), device=device)
    if scenes == 0:
        return blend, rho
    target = float(elements) if target_trace is None else target_trace
    factor, snapshots = (x.resolve_conj().resolve_neg() for x in (factor, snapshots))
    tiles = blocks(elements, ROWS)
    with on_device(factor):
        parts, bands = _sums(None, factor, snapshots)
        factored_blend_kernel[(scenes * tiles,)](
            pairs(factor), factor.stride(), pairs(snapshots), snapshots.stride(), parts,
            pairs(blend), rho, beta, target, loading, shrinkage,
            elements, columns, count, bands, tiles,
            BANDS=triton.next_power_of_2(bands), ROWS=ROWS, C=padded(columns, 1, COLUMNS),
            S=padded(count, 1, COLUMNS), num_warps=4, **OPTIONS,
        )  # fmt: skip
    return blend, rho


def factored_blend_backward(
    grad: Tensor,
    factor: Tensor,
    snapshots: Tensor,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> Tensor:
    """Gradient [B, N, K] to factor."""
    op = "factored_blend_backward"
    check_factored_blend(op, factor, snapshots, beta, target_trace, loading, shrinkage)
    scenes, elements, columns = factor.shape
    count = snapshots.shape[1]
    check_grad(op, grad, (scenes, elements, columns + count), factor)
    factor_grad = torch.empty(factor.shape, dtype=factor.dtype, device=factor.device)
    if scenes == 0:
        return factor_grad
    target = float(elements) if target_trace is None else target_trace
    grad, factor, snapshots = (x.resolve_conj().resolve_neg() for x in (grad, factor, snapshots))
    tiles = blocks(elements, ROWS)
    with on_device(factor):
        parts, bands = _sums(grad, factor, snapshots)
        factored_blend_gradient_kernel[(scenes * tiles,)](
            pairs(grad), grad.stride(), pairs(factor), factor.stride(), parts,
            pairs(factor_grad), beta, target, loading, shrinkage,
            elements, columns, count, bands, tiles,
            BANDS=triton.next_power_of_2(bands), ROWS=ROWS, C=padded(columns, 1, COLUMNS),
            num_warps=4, **OPTIONS,
        )  # fmt: skip
    return factor_grad
