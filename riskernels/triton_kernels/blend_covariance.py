# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""Triton implementation of ``blend_covariance``: memory-bound, one pass over its matrices.

A small launch sums the traces. Then every program takes a tile (I, J) together with (J, I), so the
Hermitian parts need nothing but what it has read. Backward, for H = (G + G^H) / 2,

    dL/dP = c_p H - (c_p / t_P) s I,   s = Re sum conj(H_ij) P_ij:

off the diagonal s does not enter. The tiles write c_p H and their share of s; a last small launch
adds the shares in a fixed order and finishes the N diagonal entries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.ops._checks import check_grad
from riskernels.ops._covariance_checks import check_blend
from riskernels.triton_kernels._blend import blend_coefficients
from riskernels.triton_kernels._complex import load_tile, store_complex, store_tile
from riskernels.triton_kernels._launch import OPTIONS, blocks, on_device, padded, pairs

DIAGONAL = 1024
"""Largest block of diagonal entries that a program reads at once."""


@triton.jit
def mirrored_tiles(item, tiles):
    """Tile (i, j) of an item below T * (T // 2 + 1), and whether it is one to work on.

    With T tiles along an edge, row i takes the columns i, i + 1, ..., i + T // 2 modulo T: every
    unordered pair once, except that for even T the last offset meets every pair twice.
    """
    offsets = tiles // 2 + 1
    i = item // offsets
    j = (i + item % offsets) % tiles
    return i, j, (2 * (item % offsets) < tiles) | (i < j)


@triton.jit
def real_trace(matrix, stride_i, stride_j, elements, BLOCK: tl.constexpr):
    """Re tr of a matrix in float64."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, elements, BLOCK):
        i = start + tl.arange(0, BLOCK)
        at = 2 * i.to(tl.int64) * (stride_i + stride_j)
        total += tl.load(matrix + at, mask=i < elements, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def blend_traces_kernel(
    pred, p_stride, samp, s_stride,  # [B, N, N]
    coefficients,  # [B, 4]: c_p, c_s, d, t_P
    beta: tl.float64, target_trace: tl.float64, loading: tl.float64, shrinkage: tl.float64,
    elements, BLOCK: tl.constexpr,
):  # fmt: skip
    """The coefficients of a scene; grid (B)."""
    scene = tl.program_id(0).to(tl.int64)
    pred += 2 * scene * p_stride[0]
    samp += 2 * scene * s_stride[0]
    trace_pred = real_trace(pred, p_stride[1], p_stride[2], elements, BLOCK)
    trace_samp = real_trace(samp, s_stride[1], s_stride[2], elements, BLOCK)
    on_pred, on_samp, diagonal = blend_coefficients(
        trace_pred, trace_samp, elements, beta, target_trace, loading, shrinkage
    )
    coefficients += 4 * scene
    tl.store(coefficients, on_pred)
    tl.store(coefficients + 1, on_samp)
    tl.store(coefficients + 2, diagonal)
    tl.store(coefficients + 3, trace_pred)


@triton.jit
def hermitian_tile(matrix, stride_i, stride_j, rows, columns, elements):
    """Tile [rows, columns] of (M + M^H) / 2; both tiles of M are read along their rows."""
    ar, ai = load_tile(matrix, rows, stride_i, elements, columns, stride_j, elements)
    br, bi = load_tile(matrix, columns, stride_i, elements, rows, stride_j, elements)
    return (ar + tl.trans(br)) * 0.5, (ai - tl.trans(bi)) * 0.5


@triton.jit
def blend_kernel(
    pred, p_stride, samp, s_stride,  # [B, N, N]
    coefficients,  # [B, 4]
    blend,  # [B, N, N]
    elements, TILE: tl.constexpr,
):  # fmt: skip
    """A pair of mirrored tiles of the blend; grid (B * T * (T // 2 + 1))."""
    dtype: tl.constexpr = pred.dtype.element_ty
    tiles = (elements + TILE - 1) // TILE
    items = tiles * (tiles // 2 + 1)
    scene = (tl.program_id(0) // items).to(tl.int64)
    i, j, wanted = mirrored_tiles(tl.program_id(0) % items, tiles)
    if wanted:
        pred += 2 * scene * p_stride[0]
        samp += 2 * scene * s_stride[0]
        blend += 2 * scene * elements * elements
        coefficients += 4 * scene
        on_pred = tl.load(coefficients).to(dtype)
        on_samp = tl.load(coefficients + 1).to(dtype)
        diagonal = tl.load(coefficients + 2).to(dtype)
        rows = i * TILE + tl.arange(0, TILE)
        columns = j * TILE + tl.arange(0, TILE)
        pr, pi = hermitian_tile(pred, p_stride[1], p_stride[2], rows, columns, elements)
        sr, si = hermitian_tile(samp, s_stride[1], s_stride[2], rows, columns, elements)
        re = on_pred * pr + on_samp * sr
        im = on_pred * pi + on_samp * si
        re = tl.where(rows[:, None] == columns[None, :], re + diagonal, re)
        store_tile(blend, rows, elements, columns, elements, re, im)
        if i != j:
            store_tile(blend, columns, elements, rows, elements, tl.trans(re), -tl.trans(im))


@triton.jit
def blend_gradient_kernel(
    grad, g_stride, pred, p_stride,  # [B, N, N]
    coefficients,  # [B, 4]
    pred_grad,  # [B, N, N]
    shares,  # [B, T * (T // 2 + 1)]
    elements, TILE: tl.constexpr,
):  # fmt: skip
    """c_p H on a pair of mirrored tiles, and their share of s; grid as above."""
    dtype: tl.constexpr = pred.dtype.element_ty
    tiles = (elements + TILE - 1) // TILE
    items = tiles * (tiles // 2 + 1)
    scene = (tl.program_id(0) // items).to(tl.int64)
    i, j, wanted = mirrored_tiles(tl.program_id(0) % items, tiles)
    share = tl.full((), 0.0, tl.float64)
    if wanted:
        grad += 2 * scene * g_stride[0]
        pred += 2 * scene * p_stride[0]
        pred_grad += 2 * scene * elements * elements
        coefficients += 4 * scene
        on_pred = tl.load(coefficients).to(dtype)
        excluded = tl.load(coefficients + 3) <= 0
        rows = i * TILE + tl.arange(0, TILE)
        columns = j * TILE + tl.arange(0, TILE)
        gr, gi = hermitian_tile(grad, g_stride[1], g_stride[2], rows, columns, elements)
        pr, pi = hermitian_tile(pred, p_stride[1], p_stride[2], rows, columns, elements)
        product = gr.to(tl.float64) * pr + gi.to(tl.float64) * pi
        share = tl.sum(tl.sum(product, 1), 0) * tl.where(i == j, 1.0, 2.0)
        # Selected, not multiplied by the zero coefficient: the gradient may hold infinities.
        re = tl.where(excluded, 0.0, on_pred * gr)
        im = tl.where(excluded, 0.0, on_pred * gi)
        store_tile(pred_grad, rows, elements, columns, elements, re, im)
        if i != j:
            store_tile(pred_grad, columns, elements, rows, elements, tl.trans(re), -tl.trans(im))
    tl.store(shares + tl.program_id(0), share)


@triton.jit
def blend_diagonal_kernel(
    grad, g_stride,  # [B, N, N]
    coefficients, shares,  # [B, 4], [B, items]
    pred_grad,  # [B, N, N]
    elements, items, BLOCK: tl.constexpr,
):  # fmt: skip
    """The diagonal of the gradient, c_p (Re G_ii - s / t_P); grid (B)."""
    dtype: tl.constexpr = grad.dtype.element_ty
    scene = tl.program_id(0).to(tl.int64)
    grad += 2 * scene * g_stride[0]
    pred_grad += 2 * scene * elements * elements
    shares += scene * items
    coefficients += 4 * scene
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, items, BLOCK):
        item = start + tl.arange(0, BLOCK)
        total += tl.load(shares + item, mask=item < items, other=0.0)
    on_pred = tl.load(coefficients)
    trace = tl.load(coefficients + 3)
    pull = (on_pred * (tl.sum(total, 0) / tl.where(trace == 0, 1.0, trace))).to(dtype)
    for start in range(0, elements, BLOCK):
        i = start + tl.arange(0, BLOCK)
        wide = i.to(tl.int64)
        g = tl.load(grad + 2 * wide * (g_stride[1] + g_stride[2]), mask=i < elements, other=0.0)
        re = tl.where(trace <= 0, 0.0, on_pred.to(dtype) * g - pull)[:, None]
        store_complex(
            pred_grad, (wide * (elements + 1))[:, None], re, tl.zeros_like(re),
            (i < elements)[:, None],
        )  # fmt: skip


def _tile(matrix: Tensor) -> tuple[int, int]:
    """Edge of a tile and the warps of a program: of doubles, half the entries fit."""
    return (32, 4) if matrix.dtype == torch.complex64 else (16, 2)


def _coefficients(
    pred: Tensor,
    samp: Tensor,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> Tensor:
    """[B, 4] float64: c_p, c_s, d and the trace of pred."""
    scenes, elements, _ = pred.shape
    coefficients = torch.empty((scenes, 4), dtype=torch.float64, device=pred.device)
    target = float(elements) if target_trace is None else target_trace
    blend_traces_kernel[(scenes,)](
        pairs(pred), pred.stride(), pairs(samp), samp.stride(), coefficients,
        beta, target, loading, shrinkage, elements,
        BLOCK=padded(elements, 32, DIAGONAL), num_warps=1, **OPTIONS,
    )  # fmt: skip
    return coefficients


def blend_covariance(
    pred: Tensor,
    samp: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> Tensor:
    """[B, N, N] blend; see :func:`riskernels.blend_covariance`."""
    check_blend("blend_covariance", pred, samp, beta, target_trace, loading, shrinkage)
    scenes, elements, _ = pred.shape
    blend = torch.empty((scenes, elements, elements), dtype=pred.dtype, device=pred.device)
    if scenes == 0:
        return blend
    tile, warps = _tile(pred)
    tiles = blocks(elements, tile)
    pred, samp = (matrix.resolve_conj().resolve_neg() for matrix in (pred, samp))
    with on_device(pred):
        coefficients = _coefficients(pred, samp, beta, target_trace, loading, shrinkage)
        blend_kernel[(scenes * tiles * (tiles // 2 + 1),)](
            pairs(pred), pred.stride(), pairs(samp), samp.stride(), coefficients, pairs(blend),
            elements, TILE=tile, num_warps=warps, **OPTIONS,
        )  # fmt: skip
    return blend


def blend_covariance_backward(
    grad: Tensor,
    pred: Tensor,
    samp: Tensor,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> Tensor:
    """Gradient to pred."""
    op = "blend_covariance_backward"
    check_blend(op, pred, samp, beta, target_trace, loading, shrinkage)
    check_grad(op, grad, tuple(pred.shape), pred)
    scenes, elements, _ = pred.shape
    pred_grad = torch.empty((scenes, elements, elements), dtype=pred.dtype, device=pred.device)
    if scenes == 0:
        return pred_grad
    tile, warps = _tile(pred)
    tiles = blocks(elements, tile)
    items = tiles * (tiles // 2 + 1)
    shares = torch.empty((scenes, items), dtype=torch.float64, device=pred.device)
    grad, pred, samp = (matrix.resolve_conj().resolve_neg() for matrix in (grad, pred, samp))
    with on_device(pred):
        coefficients = _coefficients(pred, samp, beta, target_trace, loading, shrinkage)
        blend_gradient_kernel[(scenes * items,)](
            pairs(grad), grad.stride(), pairs(pred), pred.stride(), coefficients,
            pairs(pred_grad), shares, elements, TILE=tile, num_warps=warps, **OPTIONS,
        )  # fmt: skip
        blend_diagonal_kernel[(scenes,)](
            pairs(grad), grad.stride(), coefficients, shares, pairs(pred_grad), elements, items,
            BLOCK=padded(elements, 32, DIAGONAL), num_warps=1, **OPTIONS,
        )  # fmt: skip
    return pred_grad
