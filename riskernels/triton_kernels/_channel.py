# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""Gradient to the channel: a sum over the snapshots of two outer products each.

    dL/dH_mn = sum_l [ z_lm conj(c q)_ln - w_lm conj(c a)_ln ] + H_mn sum_l t_l |c_ln|^2

with the sums over the snapshots that share the channel, t_l = 2 (alpha / N) dL/dalpha_l for a
relative alpha and 0 otherwise.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.triton_kernels._complex import load_tile, product_conj, store_tile
from riskernels.triton_kernels._launch import OPTIONS, blocks, pairs
from riskernels.triton_kernels._solve import channel_strides


@triton.jit(do_not_specialize=["snapshots", "antennas"])
def channel_gradient_kernel(
    z, w,  # [B, L, M]
    q, a,  # [B, L, N] c q and c a
    t,  # [B, L], only where RELATIVE
    h, h_stride, codes, c_stride,
    h_grad,  # [B, M, N] or [B, L, M, N]
    snapshots, antennas, elements,
    H_PER_SNAPSHOT: tl.constexpr, RELATIVE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient to H; grid (B (or B * L) * tiles over M * tiles over N)."""
    dtype: tl.constexpr = h.dtype.element_ty
    columns = (elements + BN - 1) // BN
    tiles = columns * ((antennas + BM - 1) // BM)
    item = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    m = (tile // columns) * BM + tl.arange(0, BM)
    n = (tile % columns) * BN + tl.arange(0, BN)
    if H_PER_SNAPSHOT:
        scene = (item // snapshots).to(tl.int64)
        low = item % snapshots
        high = low + 1
    else:
        scene = item.to(tl.int64)
        low = 0
        high = snapshots
    z += 2 * scene * snapshots * antennas
    w += 2 * scene * snapshots * antennas
    q += 2 * scene * snapshots * elements
    a += 2 * scene * snapshots * elements
    codes += 2 * scene * c_stride[0]
    re, im = tl.zeros([BM, BN], dtype), tl.zeros([BM, BN], dtype)
    weight = tl.zeros([BN], dtype)
    for start in range(low, high, BL):
        rows = start + tl.arange(0, BL)
        # [BM, BL] and [BL, BN]
        zr, zi = load_tile(z, m, 1, antennas, rows, antennas, high)
        wr, wi = load_tile(w, m, 1, antennas, rows, antennas, high)
        qr, qi = load_tile(q, rows, elements, high, n, 1, elements)
        ar, ai = load_tile(a, rows, elements, high, n, 1, elements)
        if BL == 1:
            re += zr * qr + zi * qi - (wr * ar + wi * ai)
            im += zi * qr - zr * qi - (wi * ar - wr * ai)
        else:
            pr, pi = product_conj(zr, zi, qr, qi)
            sr, si = product_conj(wr, wi, ar, ai)
            re += pr - sr
            im += pi - si
        if RELATIVE:
            term = tl.load(t + scene * snapshots + rows, mask=rows < high, other=0.0)
            cr, ci = load_tile(codes, rows, c_stride[1], high, n, c_stride[2], elements)
            weight += tl.sum(term[:, None] * (cr * cr + ci * ci), 0)
    if RELATIVE:
        h += 2 * scene * h_stride[0]
        if H_PER_SNAPSHOT:
            h += 2 * low.to(tl.int64) * h_stride[1]
        hr, hi = load_tile(h, m, h_stride[2], antennas, n, h_stride[3], elements)
        re += hr * weight[None, :]
        im += hi * weight[None, :]
    h_grad += 2 * item.to(tl.int64) * antennas * elements
    store_tile(h_grad, m, antennas, n, elements, re, im)


def channel_gradient(
    z: Tensor, w: Tensor, q: Tensor, a: Tensor, t: Tensor, h: Tensor, codes: Tensor, relative: bool
) -> Tensor:
    """Gradient to h, contiguous in its shape."""
    scenes, snapshots, antennas = z.shape
    elements = codes.shape[2]
    per_snapshot = h.dim() == 4
    h, codes = (tensor.resolve_conj().resolve_neg() for tensor in (h, codes))
    h_grad = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    height, width = 16, 32
    items = scenes * snapshots if per_snapshot else scenes
    channel_gradient_kernel[(items * blocks(antennas, height) * blocks(elements, width),)](
        pairs(z), pairs(w), pairs(q), pairs(a), t, pairs(h), channel_strides(h),
        pairs(codes), codes.stride(), pairs(h_grad), snapshots, antennas, elements,
        H_PER_SNAPSHOT=per_snapshot, RELATIVE=relative,
        BM=height, BN=width, BL=1 if per_snapshot else 16, num_warps=4, **OPTIONS,
    )  # fmt: skip
    return h_grad
