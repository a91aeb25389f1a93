# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
"""Triton implementation of ``tikhonov_covariance``: two launches forward, four backward.

Forward: the estimates a [B, L, N], then their outer products, every pair of mirrored tiles of R
computed once. Keeping a on chip instead would repeat the projection for every tile of R, as much
arithmetic as the outer product itself, to save a tenth of the bytes of R. Backward: z and a
again, then dL/da = (1/L) (G + G^H) a, then the two launches of the snapshots' gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.ops._checks import check_grad, check_tikhonov
from riskernels.triton_kernels._complex import load_tile, product, product_conj, store_tile
from riskernels.triton_kernels._launch import (
    ALL_REGISTERS,
    OPTIONS,
    blocks,
    on_device,
    padded,
    pairs,
)
from riskernels.triton_kernels._solve import estimate
from riskernels.triton_kernels.tikhonov_snapshots import empty_gradients, gradients

TILE = 32
"""Edge of a tile of R in complex64, and width of a block of elements."""


@triton.jit
def snapshot_mean(a, n, snapshots, elements, BL: tl.constexpr):
    """Mean over l of a_l at the elements n, [1, C]."""
    re = tl.zeros([1, n.shape[0]], a.dtype.element_ty)
    im = tl.zeros([1, n.shape[0]], a.dtype.element_ty)
    for start in range(0, snapshots, BL):
        rows = start + tl.arange(0, BL)
        ar, ai = load_tile(a, rows, elements, snapshots, n, 1, elements)
        re += tl.sum(ar, 0)[None, :]
        im += tl.sum(ai, 0)[None, :]
    return re / snapshots, im / snapshots


@triton.jit
def subtract_mean(ar, ai, mean_re, mean_im, rows, snapshots):
    """Rows of snapshots less their mean; rows past the last snapshot stay 0."""
    real = (rows < snapshots)[:, None]
    return tl.where(real, ar - mean_re, 0.0), tl.where(real, ai - mean_im, 0.0)


@triton.jit(do_not_specialize=["snapshots"])
def outer_product_kernel(
    a,  # [B, L, N]
    r_out,  # [B, N, N]
    snapshots, elements,
    CENTER: tl.constexpr, TILE: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """R = (1/L) sum_l a_l a_l^H in pairs of mirrored tiles; grid (B * T * (T // 2 + 1)).

    With T tiles along an edge, row i takes the columns i, i + 1, ..., i + T // 2 modulo T: every
    unordered pair once, except that for even T the last offset meets every pair twice.
    """
    dtype: tl.constexpr = a.dtype.element_ty
    tiles = (elements + TILE - 1) // TILE
    offsets = tiles // 2 + 1
    item = tl.program_id(0) % (tiles * offsets)
    scene = (tl.program_id(0) // (tiles * offsets)).to(tl.int64)
    i = item // offsets
    j = (i + item % offsets) % tiles
    if (2 * (item % offsets) < tiles) | (i < j):
        a += 2 * scene * snapshots * elements
        r_out += 2 * scene * elements * elements
        n = i * TILE + tl.arange(0, TILE)
        k = j * TILE + tl.arange(0, TILE)
        re, im = tl.zeros([TILE, TILE], dtype), tl.zeros([TILE, TILE], dtype)
        if CENTER:
            n_re, n_im = snapshot_mean(a, n, snapshots, elements, BL)
            k_re, k_im = snapshot_mean(a, k, snapshots, elements, BL)
        for start in range(0, snapshots, BL):
            rows = start + tl.arange(0, BL)
            nr, ni = load_tile(a, rows, elements, snapshots, n, 1, elements)
            kr, ki = load_tile(a, rows, elements, snapshots, k, 1, elements)
            if CENTER:
                nr, ni = subtract_mean(nr, ni, n_re, n_im, rows, snapshots)
                kr, ki = subtract_mean(kr, ki, k_re, k_im, rows, snapshots)
            pr, pi = product_conj(tl.trans(nr), tl.trans(ni), kr, ki)
            re += pr
            im += pi
        re, im = re / snapshots, im / snapshots
        mirror_re, mirror_im = tl.trans(re), -tl.trans(im)
        if i == j:
            # Entries (n, k) and (k, n) need not round alike; their average is exactly Hermitian.
            re, im = (re + mirror_re) * 0.5, (im + mirror_im) * 0.5
        else:
            store_tile(r_out, k, elements, n, elements, mirror_re, mirror_im)
        store_tile(r_out, n, elements, k, elements, re, im)


@triton.jit(do_not_specialize=["snapshots"])
def estimate_gradient_kernel(
    grad, g_stride,  # [B, N, N]
    a,  # [B, L, N]
    g_out,  # [B, L, N]
    snapshots, elements,
    CENTER: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """dL/da_l = (1/L) (G + G^H) a_l; grid (B * tiles over N, blocks over L).

    Of centred estimates it has no mean over l, so the projection of the reference is the identity.
    """
    dtype: tl.constexpr = a.dtype.element_ty
    tiles = (elements + TILE - 1) // TILE
    scene = (tl.program_id(0) // tiles).to(tl.int64)
    n = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    rows = tl.program_id(1) * BL + tl.arange(0, BL)
    grad += 2 * scene * g_stride[0]
    a += 2 * scene * snapshots * elements
    g_out += 2 * scene * snapshots * elements
    re, im = tl.zeros([BL, TILE], dtype), tl.zeros([BL, TILE], dtype)
    for start in range(0, elements, BK):
        k = start + tl.arange(0, BK)
        ar, ai = load_tile(a, rows, elements, snapshots, k, 1, elements)
        if CENTER:
            k_re, k_im = snapshot_mean(a, k, snapshots, elements, BL)
            ar, ai = subtract_mean(ar, ai, k_re, k_im, rows, snapshots)
        across_re, across_im = load_tile(grad, n, g_stride[1], elements, k, g_stride[2], elements)
        down_re, down_im = load_tile(grad, k, g_stride[1], elements, n, g_stride[2], elements)
        # [k, n] holds G_nk + conj(G_kn)
        sr, si = tl.trans(across_re) + down_re, tl.trans(across_im) - down_im
        re += product(ar, sr) - product(ai, si)
        im += product(ar, si) + product(ai, sr)
    store_tile(g_out, rows, snapshots, n, elements, re / snapshots, im / snapshots)


def launch_options(y: Tensor) -> dict[str, Any]:
    """Single precision fits into half of the registers, so that two programs share them."""
    return OPTIONS if y.dtype == torch.complex64 else {**OPTIONS, **ALL_REGISTERS}


def tikhonov_covariance(
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    alpha: float = 1e-3,
    *,
    relative: bool = False,
    center: bool = False,
) -> Tensor:
    """[B, N, N] sample covariance; see :func:`riskernels.tikhonov_covariance`."""
    check_tikhonov("tikhonov_covariance", y, h, codes, alpha)
    scenes, snapshots, _ = y.shape
    elements = codes.shape[2]
    r = torch.empty((scenes, elements, elements), dtype=y.dtype, device=y.device)
    if scenes == 0:
        return r
    # Of doubles, a larger tile would not fit into the registers.
    tile, warps = (TILE, 8) if y.dtype == torch.complex64 else (TILE // 2, 2)
    tiles = blocks(elements, tile)
    with on_device(y):
        a = estimate(y, h, codes, alpha, relative, need_a=True, need_z=False)[1]
        outer_product_kernel[(scenes * tiles * (tiles // 2 + 1),)](
            pairs(a), pairs(r), snapshots, elements,
            CENTER=center, TILE=tile, BL=16, num_warps=warps, **launch_options(y),
        )  # fmt: skip
    return r


def tikhonov_covariance_backward(
    grad: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    alpha: float,
    *,
    relative: bool,
    center: bool,
    need_y: bool = True,
    need_h: bool = True,
    need_codes: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to y, h and codes; one that is not needed comes back empty."""
    op = "tikhonov_covariance_backward"
    check_tikhonov(op, y, h, codes, alpha)
    scenes, snapshots, _ = y.shape
    elements = codes.shape[2]
    check_grad(op, grad, (scenes, elements, elements), y)
    need = (need_y, need_h, need_codes)
    if scenes == 0 or not any(need):
        return empty_gradients(y, h, codes, need)
    with on_device(y):
        z, a, solution = estimate(y, h, codes, alpha, relative, need_a=True, need_z=True)
        g = torch.empty_like(a)
        grad = grad.resolve_conj().resolve_neg()
        rows = padded(snapshots, 16, 32)
        estimate_gradient_kernel[(scenes * blocks(elements, TILE), blocks(snapshots, rows))](
            pairs(grad), grad.stride(), pairs(a), pairs(g), snapshots, elements,
            CENTER=center, TILE=TILE, BK=16, BL=rows, num_warps=4, **launch_options(y),
        )  # fmt: skip
        return gradients(g, y, h, codes, alpha, relative, z, solution, need)
