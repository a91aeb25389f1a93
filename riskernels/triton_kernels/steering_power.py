# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""Triton implementation of ``steering_power``: products with steering vectors made on the fly.

A program multiplies a tile of points by a tile of columns. Where all scenes share the points, the
columns of several scenes make one tile, so that an entry of a steering vector serves them all.

    z = a^H X,    P = sum_j |z_j|^2,    dL/dX = a w,    w = 2 gbar z.

Backward, a program goes through tiles of points and adds their share to its part of the gradient,
which is read and written by it alone; a second launch adds up the parts in a fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.ops._steering_checks import check_steering_power, check_steering_power_backward
from riskernels.triton_kernels._complex import load_complex, product, store_complex
from riskernels.triton_kernels._launch import OPTIONS, blocks, on_device, padded, pairs
from riskernels.triton_kernels._steering import load_elements, load_points, steering_tile

POINTS, COLUMNS, ELEMENTS = 32, 32, 16
"""Largest tile of a program (half the columns in complex128), and elements that enter a product at
once: what four warps hold in their registers."""
ENOUGH_PROGRAMS = 512
"""Programs that fill a device; the points are cut into parts until there are as many."""
WORKSPACE, PARTS = 128 << 20, 16
"""Largest workspace of the parts in bytes, and parts that are allowed whatever they take."""
SUMS = 1024
"""Entries of the gradient that a program adds up."""


@triton.jit
def project(
    factor, row_stride, at, inside,  # offsets of columns [C], and which are there
    positions, p_stride, ux, uy, uz, q, elements, wavelength,
    TAPER: tl.constexpr, P: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """sqrt(N) a^H X [P, C]."""
    dtype: tl.constexpr = factor.dtype.element_ty
    re, im = tl.zeros([P, C], dtype), tl.zeros([P, C], dtype)
    for start in range(0, elements, E):
        n = start + tl.arange(0, E)
        ex, ey, ez, square = load_elements(positions, p_stride, n, elements, wavelength, dtype)
        ar, ai = steering_tile(
            ux[:, None], uy[:, None], uz[:, None], q[:, None],
            ex[None, :], ey[None, :], ez[None, :], square[None, :], TAPER,
        )  # fmt: skip
        offsets = n.to(tl.int64)[:, None] * row_stride + at[None, :]
        xr, xi = load_complex(factor, offsets, (n < elements)[:, None] & inside[None, :])
        re += product(ar, xr) + product(ai, xi)
        im += product(ar, xi) - product(ai, xr)
    return re, im


@triton.jit(do_not_specialize=["windows"])
def steering_power_kernel(
    factor, f_stride,  # [B, N, k] as real pairs
    phi, theta, r, scene_stride, point_stride,  # [B, G], three strides each
    positions, p_stride,  # [N, 3]
    power,  # [B, G]
    wavelength: tl.float64, scale: tl.float64, scenes, elements, columns, points, width, windows,
    point_tiles, tile_scenes,
    SHARED: tl.constexpr, TAPER: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Powers at P points of some scenes; grid (point tiles * groups of scenes)."""
    dtype: tl.constexpr = factor.dtype.element_ty
    first = (tl.program_id(0) // point_tiles).to(tl.int64) * tile_scenes
    point = (tl.program_id(0) % point_tiles).to(tl.int64) * P + tl.arange(0, P)
    wavelength = tl.full((), wavelength, tl.float64)
    if not SHARED:
        phi += first * scene_stride[0]
        theta += first * scene_stride[1]
        r += first * scene_stride[2]
    ux, uy, uz, q = load_points(phi, theta, r, point_stride, point, points, wavelength, dtype)
    column = tl.arange(0, C)
    own, j = column // width, column % width
    scene = first + own
    there = (own < tile_scenes) & (scene < scenes)
    at = scene * f_stride[0]
    sums = tl.zeros([P], dtype)
    for window in range(0, windows):
        of = window * width + j
        re, im = project(
            factor, f_stride[1], at + of.to(tl.int64) * f_stride[2], there & (of < columns),
            positions, p_stride, ux, uy, uz, q, elements, wavelength, TAPER, P, C, E,
        )  # fmt: skip
        squares = (re * re + im * im) * tl.full((), scale, tl.float64).to(dtype)
        if SHARED:
            for s in range(0, tl.minimum(tile_scenes, scenes - first).to(tl.int32)):
                sums += tl.sum(tl.where((own == s)[None, :], squares, 0.0), 1)
                if window == windows - 1:
                    to = power + (first + s) * points + point
                    tl.store(to, sums, mask=point < points)
                    sums = tl.zeros([P], dtype)
        else:
            sums += tl.sum(squares, 1)
    if not SHARED:
        tl.store(power + first * points + point, sums, mask=point < points)


@triton.jit
def steering_gradient_kernel(
    grad, g_stride,  # [B, G]
    factor, f_stride,  # [B, N, k] as real pairs
    phi, theta, r, scene_stride, point_stride,  # [B, G], three strides each
    positions, p_stride,  # [N, 3]
    gradient,  # [parts, B, N, k] as real pairs
    wavelength: tl.float64, scale: tl.float64, scenes, elements, columns, points, width, windows,
    point_tiles, tile_scenes, parts, part_tiles,
    SHARED: tl.constexpr, TAPER: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """One column tile's share of some tiles of points; grid (column tiles * parts)."""
    dtype: tl.constexpr = factor.dtype.element_ty
    tile = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    first = (tile // windows).to(tl.int64) * tile_scenes
    wavelength = tl.full((), wavelength, tl.float64)
    if not SHARED:
        phi += first * scene_stride[0]
        theta += first * scene_stride[1]
        r += first * scene_stride[2]
    column = tl.arange(0, C)
    own, j = column // width, (tile % windows) * width + column % width
    scene = first + own
    inside = (own < tile_scenes) & (scene < scenes) & (j < columns)
    at = scene * f_stride[0] + j.to(tl.int64) * f_stride[2]
    gradient += 2 * part.to(tl.int64) * scenes * elements * columns
    to = scene * elements * columns + j
    begin = part * part_tiles
    for point_tile in range(begin, tl.minimum(begin + part_tiles, point_tiles)):
        point = (tl.full((), 0, tl.int64) + point_tile) * P + tl.arange(0, P)
        later = tl.full([1, 1], 0, tl.int32) + point_tile > begin
        ux, uy, uz, q = load_points(phi, theta, r, point_stride, point, points, wavelength, dtype)
        re, im = project(
            factor, f_stride[1], at, inside, positions, p_stride, ux, uy, uz, q, elements,
            wavelength, TAPER, P, C, E,
        )  # fmt: skip
        present = (point < points)[:, None] & inside[None, :]
        of_point = scene[None, :] * g_stride[0] + point[:, None] * g_stride[1]
        weight = tl.load(grad + of_point, mask=present, other=0.0) * tl.full(
            (), scale, tl.float64
        ).to(dtype)
        # Selected, not multiplied: beyond the last point there may be NaN times 0.
        wr, wi = tl.where(present, weight * re, 0.0), tl.where(present, weight * im, 0.0)
        for start in range(0, elements, E):
            n = start + tl.arange(0, E)
            ex, ey, ez, square = load_elements(positions, p_stride, n, elements, wavelength, dtype)
            ar, ai = steering_tile(
                ux[None, :], uy[None, :], uz[None, :], q[None, :],
                ex[:, None], ey[:, None], ez[:, None], square[:, None], TAPER,
            )  # fmt: skip
            held = (n < elements)[:, None] & inside[None, :]
            offsets = n.to(tl.int64)[:, None] * columns + to[None, :]
            dr, di = load_complex(gradient, offsets, held & later)
            dr += product(ar, wr) - product(ai, wi)
            di += product(ar, wi) + product(ai, wr)
            store_complex(gradient, offsets, dr, di, held)
        # What one thread has written, another may read for the next tile.
        tl.debug_barrier()


@triton.jit
def steering_parts_kernel(partial, gradient, parts, size, SUMS: tl.constexpr):
    """Adds up the parts [parts, size]; zero where there are none; grid (blocks of SUMS entries)."""
    entry = tl.program_id(0).to(tl.int64) * SUMS + tl.arange(0, SUMS)
    sums = tl.zeros([SUMS], gradient.dtype.element_ty)
    for _ in range(0, parts):
        sums += tl.load(partial + entry, mask=entry < size, other=0.0)
        partial += size
    tl.store(gradient + entry, sums, mask=entry < size)


class _Tiles(NamedTuple):
    """How points and columns are cut."""

    shared: bool
    own_points: int
    own_columns: int
    point_tiles: int
    windows: int
    width: int
    scenes: int
    groups: int

    def constants(self, taper: bool) -> dict[str, Any]:
        return {
            "SHARED": self.shared,
            "TAPER": taper,
            "P": self.own_points,
            "C": self.own_columns,
            "E": ELEMENTS,
        }


def _tiles(factor: Tensor, coordinates: tuple[Tensor, ...]) -> _Tiles:
    scenes, _, columns = factor.shape
    points = coordinates[0].shape[-1]
    shared = scenes == 1 or all(t.dim() == 1 or t.stride(0) == 0 for t in coordinates)
    own_points = padded(points, 16, POINTS)
    most = COLUMNS // 2 if factor.dtype == torch.complex128 else COLUMNS
    own_columns = padded(columns * (scenes if shared else 1), 16, most)
    windows = blocks(columns, own_columns)
    tile_scenes = own_columns // columns if shared and windows == 1 else 1
    return _Tiles(
        shared=shared,
        own_points=own_points,
        own_columns=own_columns,
        point_tiles=blocks(points, own_points),
        windows=windows,
        width=blocks(columns, windows),
        scenes=tile_scenes,
        groups=blocks(scenes, tile_scenes),
    )


def _operands(
    factor: Tensor, coordinates: tuple[Tensor, ...], positions: Tensor
) -> tuple[Any, ...]:
    """Factor, coordinates and positions with their strides."""
    factor = factor.resolve_conj().resolve_neg()
    points = tuple(t.resolve_neg() for t in coordinates)
    scene_stride = tuple(t.stride(0) if t.dim() == 2 else 0 for t in points)
    point_stride = tuple(t.stride(-1) for t in points)
    p = positions.resolve_neg()
    return pairs(factor), factor.stride(), *points, scene_stride, point_stride, p, p.stride()


def steering_power(
    factor: Tensor,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    positions: Tensor,
    wavelength: float,
    *,
    taper: bool = False,
) -> Tensor:
    """P [B, G]."""
    check_steering_power("steering_power", factor, phi, theta, r, positions, wavelength)
    scenes, elements, columns = factor.shape
    points = phi.shape[-1]
    power = torch.empty((scenes, points), dtype=factor.dtype.to_real(), device=factor.device)
    if power.numel() == 0:
        return power
    tiles = _tiles(factor, (phi, theta, r))
    with on_device(factor):
        steering_power_kernel[(tiles.point_tiles * tiles.groups,)](
            *_operands(factor, (phi, theta, r), positions), power, wavelength, 1 / elements,
            scenes, elements, columns, points, tiles.width, tiles.windows, tiles.point_tiles,
            tiles.scenes, **tiles.constants(taper), num_warps=4, **OPTIONS,
        )  # fmt: skip
    return power


def steering_power_backward(
    grad: Tensor,
    factor: Tensor,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    positions: Tensor,
    wavelength: float,
    *,
    taper: bool = False,
) -> Tensor:
    """Gradient [B, N, k] to the factor."""
    check_steering_power_backward(
        "steering_power_backward", grad, factor, phi, theta, r, positions, wavelength
    )
    scenes, elements, columns = factor.shape
    points = phi.shape[-1]
    gradient = torch.empty(factor.shape, dtype=factor.dtype, device=factor.device)
    if points == 0:
        return gradient.zero_()
    if scenes == 0:
        return gradient
    tiles = _tiles(factor, (phi, theta, r))
    column_tiles = tiles.groups * tiles.windows
    most = max(PARTS, WORKSPACE // (gradient.numel() * factor.itemsize))
    most = min(most, ENOUGH_PROGRAMS // column_tiles)
    part_tiles = blocks(tiles.point_tiles, max(1, min(most, tiles.point_tiles)))
    parts = blocks(tiles.point_tiles, part_tiles)
    sums = gradient if parts == 1 else gradient.new_empty((parts, *gradient.shape))
    upstream = grad.resolve_neg()
    with on_device(factor):
        steering_gradient_kernel[(column_tiles * parts,)](
            upstream, upstream.stride(), *_operands(factor, (phi, theta, r), positions),
            pairs(sums), wavelength, 2 / elements, scenes, elements, columns, points, tiles.width,
            tiles.windows, tiles.point_tiles, tiles.scenes, parts, part_tiles,
            **tiles.constants(taper), num_warps=4, **OPTIONS,
        )  # fmt: skip
        if parts > 1:
            size = 2 * gradient.numel()
            steering_parts_kernel[(blocks(size, SUMS),)](
                pairs(sums), pairs(gradient), parts, size, SUMS=SUMS, **OPTIONS
            )
    return gradient
