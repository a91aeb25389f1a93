# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803, SIM102  (upper case: a constant of the compilation, tested on its own)
r"""Gram matrix [B, c, c] of the columns of [X, Z], in complex128, and products with it.

Everything the factored operators compute rests on it. Products of complex64 entries are exact in
float64, which is what keeps differences of its entries right where X X^H and Z Z^H agree to many
digits. A program adds up one pair of mirrored tiles over a band of rows; where a scene has several
bands, they are added in a second step, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.triton_kernels._complex import load_complex, product, store_complex
from riskernels.triton_kernels._launch import OPTIONS, blocks, padded, pairs
from riskernels.triton_kernels.blend_covariance import mirrored_tiles
from riskernels.triton_kernels.hermitian_nmse import kept

ROWS = 16
"""Rows of the factors that a program reads at once."""
TILE = 32
"""Largest edge of a tile of the Gram matrix."""
HEIGHT = 64
"""A band has at least this many rows."""
ENOUGH_PROGRAMS = 1024
"""Programs that fill a device; scenes are cut into bands until there are as many."""


@triton.jit
def product_complex(ar, ai, br, bi):
    """a @ b in full precision."""
    return product(ar, br) - product(ai, bi), product(ar, bi) + product(ai, br)


@triton.jit
def product_adjoint(ar, ai, br, bi):
    """a^H @ b in full precision."""
    ar, ai = tl.trans(ar), tl.trans(ai)
    return product(ar, br) + product(ai, bi), product(ar, bi) - product(ai, br)


@triton.jit
def load_joint(x, x_i, x_j, z, z_i, z_j, r, end, rows, keep, columns):
    """Columns of [X, Z] in float64; 0 where a row is not kept, or a column is ``end`` or more."""
    wide = rows.to(tl.int64)[:, None]
    j = columns.to(tl.int64)[None, :]
    left = keep[:, None] & (columns < r)[None, :]
    right = keep[:, None] & ((columns >= r) & (columns < end))[None, :]
    # Masked loads keep non-finite values of what does not count out.
    xr, xi = load_complex(x, wide * x_i + j * x_j, left)
    zr, zi = load_complex(z, wide * z_i + (j - r) * z_j, right)
    return (xr + zr).to(tl.float64), (xi + zi).to(tl.float64)


@triton.jit
def load_square(matrix, rows, columns, size):
    """[R, C] entries of a row-major complex [size, size] matrix; 0 outside of it."""
    at = rows.to(tl.int64)[:, None] * size + columns.to(tl.int64)[None, :]
    return load_complex(matrix, at, (rows < size)[:, None] & (columns < size)[None, :])


@triton.jit
def counted_sources(num_sources, stride, scene, most):
    """The number of true sources of a scene, clamped to [0, most]."""
    count = tl.load(num_sources + scene * stride)
    return tl.minimum(tl.maximum(count, 0), most).to(tl.int32)


@triton.jit
def gram_kernel(
    x, x_stride,  # [B, N, r]
    z, z_stride,  # [B, N, k]
    rho, rho_stride,  # [B], only where HAS_RHO
    num_sources, sources_stride,  # [B], only where LIMITED
    mask, mask_stride,  # [N] (stride 0 over b) or [B, N], only where MASKED
    parts,  # [B, bands, c, c] float64 pairs
    row_parts,  # [B, bands, 4], only where ROW_SUMS
    r, k, elements, height, bands,
    HAS_RHO: tl.constexpr, LIMITED: tl.constexpr, MASKED: tl.constexpr,
    ROW_SUMS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Two mirrored tiles over a band of ``height`` rows; grid (B * items * bands).

    With ROW_SUMS, for u_i = |x_i|^2 - |z_i|^2, also the sums over the rows of (u_i + rho)^2,
    u_i^2, |z_i|^4 and 1.
    """
    c = r + k
    tiles = (c + TILE - 1) // TILE
    items = tiles * (tiles // 2 + 1)
    part = tl.program_id(0) // items
    scene = (part // bands).to(tl.int64)
    band = part % bands
    item = tl.program_id(0) % items
    tile_i, tile_j, wanted = mirrored_tiles(item, tiles)
    if wanted:
        x += 2 * scene * x_stride[0]
        z += 2 * scene * z_stride[0]
        mask += scene * mask_stride[0]
        end = c
        if LIMITED:
            end = r + counted_sources(num_sources, sources_stride, scene, k)
        loading = tl.full((), 0.0, tl.float64)
        if HAS_RHO:
            loading = tl.load(rho + scene * rho_stride).to(tl.float64)
        i = tile_i * TILE + tl.arange(0, TILE)
        j = tile_j * TILE + tl.arange(0, TILE)
        re, im = tl.zeros([TILE, TILE], tl.float64), tl.zeros([TILE, TILE], tl.float64)
        last = tl.minimum((band + 1) * height, elements)
        for first in range(band * height, last, ROWS):
            rows = first + tl.arange(0, ROWS)
            keep = kept(mask, mask_stride[1], rows, last, MASKED)
            ir, ii = load_joint(
                x, x_stride[1], x_stride[2], z, z_stride[1], z_stride[2], r, end, rows, keep, i
            )
            jr, ji = load_joint(
                x, x_stride[1], x_stride[2], z, z_stride[1], z_stride[2], r, end, rows, keep, j
            )
            pr, pi = product_adjoint(ir, ii, jr, ji)
            re += pr
            im += pi
        parts += 2 * part.to(tl.int64) * c * c
        at = i[:, None] * c + j[None, :]
        inside = (i < c)[:, None] & (j < c)[None, :]
        store_complex(parts, at, re, im, inside)
        if tile_i != tile_j:
            at = j[:, None] * c + i[None, :]
            inside = (j < c)[:, None] & (i < c)[None, :]
            store_complex(parts, at, tl.trans(re), -tl.trans(im), inside)
        if ROW_SUMS:
            # Only now, so that its values and those above are not in registers at once.
            if item == 0:
                loaded_sum, plain_sum = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
                power_sum, count = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
                for first in range(band * height, last, ROWS):
                    rows = first + tl.arange(0, ROWS)
                    keep = kept(mask, mask_stride[1], rows, last, MASKED)
                    of_x, of_z = row_energies(
                        x, x_stride[1], x_stride[2], z, z_stride[1], z_stride[2],
                        r, end, rows, keep, ROWS, TILE,
                    )  # fmt: skip
                    plain = of_x - of_z
                    # Rows that do not count have no loading either.
                    loaded = tl.where(keep, plain + loading, 0.0)
                    loaded_sum += loaded * loaded
                    plain_sum += plain * plain
                    power_sum += of_z * of_z
                    count += tl.where(keep, 1.0, 0.0)
                row_parts += 4 * part.to(tl.int64)
                tl.store(row_parts, tl.sum(loaded_sum, 0))
                tl.store(row_parts + 1, tl.sum(plain_sum, 0))
                tl.store(row_parts + 2, tl.sum(power_sum, 0))
                tl.store(row_parts + 3, tl.sum(count, 0))


@triton.jit
def row_energies(
    x, x_i, x_j, z, z_i, z_j, r, end, rows, keep, ROWS: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """|x_i|^2 and |z_i|^2 of rows, in float64."""
    of_x, of_z = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    for start in range(0, end, TILE):
        columns = start + tl.arange(0, TILE)
        re, im = load_joint(x, x_i, x_j, z, z_i, z_j, r, end, rows, keep, columns)
        squares = re * re + im * im
        left = (columns < r)[None, :]
        of_x += tl.sum(tl.where(left, squares, 0.0), 1)
        of_z += tl.sum(tl.where(left, 0.0, squares), 1)
    return of_x, of_z


def joint_gram(
    x: Tensor,
    z: Tensor,
    *,
    rho: Tensor | None = None,
    num_sources: Tensor | None = None,
    mask: Tensor | None = None,
    row_sums: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gram matrix [B, c, c] of [X, Z], and the sums over the rows [B, 4] where asked for.

    Args:
        x: [B, N, r], no lazy conjugation.
        z: [B, N, k], likewise.
        rho: [B], for the sums over the rows.
        num_sources: columns of Z from this one on count as 0, whatever they hold.
        mask: [N] or [B, N] bool; rows that are off count as 0, whatever they hold.
        row_sums: see :func:`gram_kernel`.
    """
    scenes, elements, r = x.shape
    k = z.shape[2]
    tile = padded(r + k, 16, TILE)
    tiles = blocks(r + k, tile)
    items = tiles * (tiles // 2 + 1)
    wanted = min(blocks(ENOUGH_PROGRAMS, scenes * items), blocks(elements, HEIGHT))
    height = ROWS * blocks(blocks(elements, wanted), ROWS)
    bands = blocks(elements, height)
    parts = torch.empty((scenes, bands, r + k, r + k), dtype=torch.complex128, device=x.device)
    rows = torch.empty((scenes, bands, 4 if row_sums else 0), dtype=torch.float64, device=x.device)
    mask_pointer, mask_stride = mask_operand(mask, x)
    gram_kernel[(scenes * items * bands,)](
        pairs(x), x.stride(), pairs(z), z.stride(),
        *per_scene_operand(rho, x), *per_scene_operand(num_sources, x),
        mask_pointer, mask_stride, pairs(parts), rows, r, k, elements, height, bands,
        HAS_RHO=rho is not None, LIMITED=num_sources is not None, MASKED=mask is not None,
        ROW_SUMS=row_sums, ROWS=ROWS, TILE=tile, num_warps=8, num_stages=2, **OPTIONS,
    )  # fmt: skip
    if bands == 1:
        return parts[:, 0], rows[:, 0]
    return parts.sum(1), rows.sum(1)


def per_scene_operand(values: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """Values [B] and their stride; ``like`` stands in for what is not there."""
    if values is None:
        return pairs(like), 0
    return values.resolve_neg(), values.stride(0)


def mask_operand(element_mask: Tensor | None, like: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Bytes and strides [b, n] of the mask; ``like`` stands in for one that is not there."""
    if element_mask is None:
        return pairs(like), (0, 0)
    stride = element_mask.stride()
    return element_mask.view(torch.uint8), stride if len(stride) == 2 else (0, *stride)
