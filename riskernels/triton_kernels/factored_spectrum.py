# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""Triton implementation of ``factored_spectrum``: one program decomposes one scene, in float64.

Forward: the Gram matrix A = X^H X, then cyclic Jacobi rotations in parallel order. In a step every
index i has one partner j, the columns of J are c_i e_i + w_i e_j, and

    A <- J^H A J,    V <- V J

are sums of an array and its permutation by partners. Backward: 2 V diag(g) V^H, then the rows of X
times it, in the working precision.

A program keeps A and V in its registers, which bounds r by ``MAX_COLUMNS``. Beyond, both passes run
the PyTorch operations of the reference (:mod:`riskernels.reference.factored_spectrum`) on the
device; its ``torch.linalg.eigh`` waits for the device once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.ops._factored_checks import (
    check_factored_spectrum,
    check_factored_spectrum_backward,
)
from riskernels.reference import factored_spectrum as reference
from riskernels.triton_kernels._complex import (
    load_tile,
    product,
    product_conj,
    store_complex,
    store_tile,
)
from riskernels.triton_kernels._launch import (
    ALL_REGISTERS,
    OPTIONS,
    blocks,
    on_device,
    padded,
    pairs,
)

MAX_COLUMNS = 64
"""Largest r that a program keeps in its registers."""
ROWS = 32
"""Rows of a factor that are in registers at a time."""
TILES = 8
"""Times that many rows are multiplied by one program of the backward."""
SWEEPS = 40
"""Six to nine Jacobi sweeps are usual; the bound is there for what nobody has thought of."""
NEGLIGIBLE = tl.constexpr(2.0**-53)
"""An entry of half an ulp of the largest diagonal entry moves no eigenvalue by more."""


@triton.jit
def gram_matrix(
    x, row_stride, column_stride, elements, columns, R: tl.constexpr, ROWS: tl.constexpr
):
    """X^H X [R, R] in float64, zero beyond the columns."""
    re, im = tl.zeros([R, R], tl.float64), tl.zeros([R, R], tl.float64)
    j = tl.arange(0, R)
    for start in range(0, elements, ROWS):
        n = start + tl.arange(0, ROWS)
        xr, xi = load_tile(x, n, row_stride, elements, j, column_stride, columns)
        xr, xi = xr.to(tl.float64), xi.to(tl.float64)
        left_re, left_im = tl.trans(xr), tl.trans(xi)
        re += product(left_re, xr) + product(left_im, xi)
        im += product(left_re, xi) - product(left_im, xr)
    return re, im


@triton.jit
def jacobi_step(re, im, vr, vi, around_step, step, count, R: tl.constexpr):
    """J^H A J and V J for the rotations of one step, and whether any of them does anything.

    ``around_step`` [R] is (2 step - i) mod the number of indices that move; in the round-robin
    tournament that is the partner of i, but for the index that stays and the one that it meets.
    """
    i = tl.arange(0, R)
    around = (count + 1) // 2 * 2 - 1
    partner = tl.where(i == step, around, tl.where(i == around, step, around_step))
    partner = tl.where((i < count) & (partner < count), partner, i)
    columns = tl.broadcast_to(partner[None, :], (R, R))
    own = i[:, None] == i[None, :]
    # Entry (i, j) as i and as j see it, so that both find the same rotation in every rounding.
    br = tl.reshape(tl.gather(re, partner[:, None], 1), (R,))
    bi = tl.reshape(tl.gather(im, partner[:, None], 1), (R,))
    br = 0.5 * (br + tl.gather(br, partner, 0))
    bi = 0.5 * (bi - tl.gather(bi, partner, 0))
    a = tl.sum(tl.where(own, re, 0.0), 1)
    size = tl.sqrt(br * br + bi * bi)
    moves = (partner != i) & (size > NEGLIGIBLE)
    size = tl.where(moves, size, 1.0)
    cotangent = (tl.gather(a, partner, 0) - a) / (2.0 * size)
    first = (cotangent > 0.0) | ((cotangent == 0.0) & (i < partner))
    tangent = 1.0 / (tl.abs(cotangent) + tl.sqrt(cotangent * cotangent + 1.0))
    tangent = tl.where(first, tangent, -tangent)
    cosine = 1.0 / tl.sqrt(tangent * tangent + 1.0)
    sine = tangent * cosine / size
    # Column i of J is c e_i + w e_j.
    c = tl.where(moves, cosine, 1.0)
    wr, wi = tl.where(moves, -sine * br, 0.0), tl.where(moves, sine * bi, 0.0)
    other_re, other_im = tl.gather(vr, columns, 1), tl.gather(vi, columns, 1)
    vr = c[None, :] * vr + (wr[None, :] * other_re - wi[None, :] * other_im)
    vi = c[None, :] * vi + (wr[None, :] * other_im + wi[None, :] * other_re)
    other_re, other_im = tl.gather(re, columns, 1), tl.gather(im, columns, 1)
    re = c[None, :] * re + (wr[None, :] * other_re - wi[None, :] * other_im)
    im = c[None, :] * im + (wr[None, :] * other_im + wi[None, :] * other_re)
    rows = tl.broadcast_to(partner[:, None], (R, R))
    other_re, other_im = tl.gather(re, rows, 0), tl.gather(im, rows, 0)
    re = c[:, None] * re + (wr[:, None] * other_re + wi[:, None] * other_im)
    im = c[:, None] * im + (wr[:, None] * other_im - wi[:, None] * other_re)
    gone = moves[:, None] & (i[None, :] == partner[:, None])
    re, im = tl.where(gone, 0.0, re), tl.where(gone | own, 0.0, im)
    return re, im, vr, vi, tl.max(moves.to(tl.int32), 0)


@triton.jit
def power_of_two(exponent):
    """2^(exponent - 1023) for an exponent field of float64."""
    return (exponent << 52).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["columns"])
def spectrum_kernel(
    factor, f_stride,  # [B, N, r] as real pairs
    rho, rho_stride,  # [B], only where HAS_RHO
    values,  # [B, r]
    vectors,  # [B, r, r] as real pairs
    elements, columns,
    HAS_RHO: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, SWEEPS: tl.constexpr,
):  # fmt: skip
    """Eigenvalues and eigenvectors of one scene; grid (B)."""
    scene = tl.program_id(0).to(tl.int64)
    re, im = gram_matrix(
        factor + 2 * scene * f_stride[0], f_stride[1], f_stride[2], elements, columns, R, ROWS
    )
    index = tl.arange(0, R)
    own = index[:, None] == index[None, :]
    diagonal = tl.sum(tl.where(own, re, 0.0), 1)
    finite = tl.sum(diagonal - diagonal, 0) == 0.0
    # The largest entry, which is on the diagonal, is brought to [1, 2) by a power of two.
    largest = tl.where(finite, tl.max(diagonal, 0), 1.0)
    exponent = largest.to(tl.int64, bitcast=True) >> 52
    exponent = tl.where(exponent < 23, 1023, tl.minimum(exponent, 2000))
    re = tl.where(finite, re * power_of_two(2046 - exponent), tl.where(own, 1.0, 0.0))
    im = tl.where(finite, im * power_of_two(2046 - exponent), 0.0)
    vr, vi = tl.where(own, 1.0, 0.0).to(tl.float64), tl.zeros([R, R], tl.float64)
    steps = (columns + 1) // 2 * 2 - 1
    sweep = 0
    active = 1
    while (active != 0) & (sweep < SWEEPS):
        active = 0
        around_step = tl.where(index == 0, 0, steps - index)
        for step in range(0, steps):
            re, im, vr, vi, moved = jacobi_step(re, im, vr, vi, around_step, step, columns, R)
            active = tl.maximum(active, moved)
            around_step += 2
            around_step = tl.where(around_step >= steps, around_step - steps, around_step)
        sweep += 1
    blank = tl.where(finite & (active == 0), 0.0, float("nan"))
    found = tl.sum(tl.where(own, re, 0.0), 1)
    present = index < columns
    sorted_by = tl.where(present, found, float("-inf"))
    across = tl.sum(tl.where(own, sorted_by[:, None], 0.0), 0)
    before = (sorted_by[:, None] > across[None, :]) | (
        (sorted_by[:, None] == across[None, :]) & (index[:, None] < index[None, :])
    )
    rank = tl.sum(before.to(tl.int32), 0)
    kept = tl.where((rank < elements) & (found > 0.0), found * power_of_two(exponent), 0.0) + blank
    if HAS_RHO:
        kept += tl.load(rho + scene * rho_stride).to(tl.float64)
    tl.store(values + scene * columns + rank, kept.to(values.dtype.element_ty), mask=present)
    offsets = (scene * columns + index.to(tl.int64)[:, None]) * columns + rank[None, :]
    dtype: tl.constexpr = vectors.dtype.element_ty
    store_complex(
        vectors, offsets, (vr + blank).to(dtype), (vi + blank).to(dtype),
        present[:, None] & present[None, :],
    )  # fmt: skip


@triton.jit(do_not_specialize=["columns"])
def spectrum_gradient_kernel(
    grad, g_stride,  # [B, r] real
    factor, f_stride,  # [B, N, r] as real pairs
    vectors, v_stride,  # [B, r, r] as real pairs
    factor_grad,  # [B, N, r] as real pairs, only where NEED_FACTOR
    rho_grad,  # [B], only where NEED_RHO
    elements, columns, parts,
    NEED_FACTOR: tl.constexpr, NEED_RHO: tl.constexpr,
    R: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Gradients of some rows of one scene; grid (B * parts)."""
    dtype: tl.constexpr = factor.dtype.element_ty
    scene = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    j = tl.arange(0, R)
    weight = tl.load(grad + scene * g_stride[0] + j * g_stride[1], mask=j < columns, other=0.0)
    weight = weight.to(tl.float64)
    if NEED_RHO:
        total = tl.sum(weight, 0).to(rho_grad.dtype.element_ty)
        tl.store(rho_grad + scene, total, mask=part == 0)
    if NEED_FACTOR:
        vr, vi = load_tile(
            vectors + 2 * scene * v_stride[0], j, v_stride[1], columns, j, v_stride[2], columns
        )
        vr, vi = vr.to(tl.float64), vi.to(tl.float64)
        twice = 2.0 * weight[None, :]
        mr, mi = product_conj(twice * vr, twice * vi, tl.trans(vr), tl.trans(vi))
        mr, mi = mr.to(dtype), mi.to(dtype)
        for tile in range(0, TILES):
            n = (part * TILES + tile) * ROWS + tl.arange(0, ROWS)
            xr, xi = load_tile(
                factor + 2 * scene * f_stride[0], n, f_stride[1], elements, j, f_stride[2], columns
            )
            store_tile(
                factor_grad + 2 * scene * elements * columns, n, elements, j, columns,
                product(xr, mr) - product(xi, mi), product(xr, mi) + product(xi, mr),
            )  # fmt: skip


def _operand(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Real pairs, and strides in entries."""
    tensor = tensor.resolve_conj().resolve_neg()
    return pairs(tensor), tensor.stride()


def _launch_options(padded_columns: int) -> dict[str, Any]:
    """As many warps as keep the four arrays of the forward in registers, up to 32 columns.

    With 64 some spill; twice the warps, with half the registers each, would spill more.
    """
    return {"num_warps": 2 if padded_columns == 16 else 8, **ALL_REGISTERS, **OPTIONS}


def factored_spectrum_forward(factor: Tensor, rho: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenvalues [B, r], descending, and the unit eigenvectors [B, r, r] of X^H X as columns."""
    check_factored_spectrum("factored_spectrum", factor, rho)
    scenes, elements, columns = factor.shape
    if columns > MAX_COLUMNS:
        values, vectors = reference.factored_spectrum_forward(factor, rho)
        return values.contiguous(), vectors.contiguous()
    real = factor.dtype.to_real()
    values = torch.empty((scenes, columns), dtype=real, device=factor.device)
    vectors = torch.empty((scenes, columns, columns), dtype=factor.dtype, device=factor.device)
    if scenes == 0:
        return values, vectors
    x, x_stride = _operand(factor)
    size = padded(columns, 16, MAX_COLUMNS)
    with on_device(factor):
        spectrum_kernel[(scenes,)](
            x, x_stride, x if rho is None else rho.resolve_neg(),
            0 if rho is None else rho.stride(0), values, pairs(vectors), elements, columns,
            HAS_RHO=rho is not None, R=size, ROWS=ROWS, SWEEPS=SWEEPS,
            **_launch_options(size),
        )  # fmt: skip
    return values, vectors


def factored_spectrum_backward(
    grad: Tensor,
    factor: Tensor,
    vectors: Tensor,
    *,
    need_factor: bool = True,
    need_rho: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gradients to factor and rho; one that is not needed comes back empty."""
    check_factored_spectrum_backward("factored_spectrum_backward", grad, factor, vectors)
    scenes, elements, columns = factor.shape
    if columns > MAX_COLUMNS:
        to_factor, to_rho = reference.factored_spectrum_backward(
            grad, factor, vectors, need_factor=need_factor, need_rho=need_rho
        )
        return to_factor.contiguous(), to_rho.contiguous()
    factor_grad = torch.empty(
        factor.shape if need_factor else (0,), dtype=factor.dtype, device=factor.device
    )
    rho_grad = torch.empty((scenes if need_rho else 0,), dtype=grad.dtype, device=grad.device)
    if scenes == 0 or not (need_factor or need_rho):
        return factor_grad, rho_grad
    x, x_stride = _operand(factor)
    v, v_stride = _operand(vectors)
    size = padded(columns, 16, MAX_COLUMNS)
    parts = blocks(elements, ROWS * TILES) if need_factor else 1
    with on_device(factor):
        spectrum_gradient_kernel[(scenes * parts,)](
            grad.resolve_neg(), grad.stride(), x, x_stride, v, v_stride, pairs(factor_grad),
            rho_grad, elements, columns, parts, NEED_FACTOR=need_factor, NEED_RHO=need_rho,
            R=size, ROWS=ROWS, TILES=TILES, **_launch_options(size),
        )  # fmt: skip
    return factor_grad, rho_grad
