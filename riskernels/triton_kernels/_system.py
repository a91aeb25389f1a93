# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""Device functions that form and solve the systems of a group of snapshots.

Row l of the unknown Z solves S_l z_l = b_l, S_l = Phi_l Phi_l^H + alpha_l I. Transposed, that is
z_l^T T_l = b_l^T with T_l = conj(S_l), so a group of snapshots is a block [G, M] with its rows as
they lie in memory, and the elimination works on columns: for k = 0, 1, ...

    p = max(T_kk, floor),   T_j -= T_k (T_kj / p) for the columns j != k,   T_k /= p,

and the same column operations on the block of right-hand sides turn it into Z. What stands at T_kk
when its turn comes is the Schur complement, that is the square of the Cholesky factor's diagonal,
so the floor, and where it exceeds the loading the bound max_j |T_kj|^2 / T_jj over the columns to
come, act as in the reference. T and the block live in registers.

Where H is shared by the snapshots and |c_ln|^2 does not depend on l up to the rounding of the
codes, all S_l are one matrix: one elimination serves the group. The kernel finds that out by
itself, so the host never waits for an answer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from riskernels.triton_kernels._complex import load_tile, product, product_conj


@triton.jit
def moduli_agree(
    codes, stride_l, stride_n, snapshots, elements,
    EPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Whether |c_ln|^2 is the same for all l up to 16 eps; NaN never agrees."""
    disagree = tl.zeros([ROWS, COLUMNS], tl.int32)
    for start in range(0, elements, COLUMNS):
        n = start + tl.arange(0, COLUMNS)
        first_re, first_im = load_tile(codes, tl.arange(0, 1), stride_l, 1, n, stride_n, elements)
        first = first_re * first_re + first_im * first_im
        for row in range(0, snapshots, ROWS):
            rows = row + tl.arange(0, ROWS)
            re, im = load_tile(codes, rows, stride_l, snapshots, n, stride_n, elements)
            within = tl.abs(re * re + im * im - first) <= 16 * EPS * first
            disagree |= ((rows < snapshots)[:, None] & (within == 0)).to(tl.int32)
    return tl.max(tl.max(disagree, 1), 0) == 0


@triton.jit
def mean_weights(codes, stride_l, stride_n, low, high, n, elements, ROWS: tl.constexpr):
    """Mean of |c_ln|^2 over the snapshots low <= l < high."""
    total = tl.zeros([n.shape[0]], codes.dtype.element_ty)
    for row in range(low, high, ROWS):
        rows = row + tl.arange(0, ROWS)
        re, im = load_tile(codes, rows, stride_l, high, n, stride_n, elements)
        total += tl.sum(re * re + im * im, 0)
    return total / (high - low)


@triton.jit
def gram(
    h, h_m, h_n, codes, c_l, c_n, low, high, antennas, elements,
    MP: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Real and imaginary part of conj(H W H^H) [MP, MP], W the mean weights of the snapshots."""
    dtype: tl.constexpr = h.dtype.element_ty
    m = tl.arange(0, MP)
    tr = tl.zeros([MP, MP], dtype)
    half = tl.zeros([MP, MP], dtype)
    for start in range(0, elements, BN):
        n = start + tl.arange(0, BN)
        hr, hi = load_tile(h, m, h_m, antennas, n, h_n, elements)
        weight = mean_weights(codes, c_l, c_n, low, high, n, elements, ROWS)[None, :]
        hr_t, hi_t = tl.trans(hr), tl.trans(hi)
        tr += product(hr * weight, hr_t) + product(hi * weight, hi_t)
        half += product(hr * weight, hi_t)
    return tr, half - tl.trans(half)


@triton.jit
def eliminate(tr, ti, br, bi, loading, floor, antennas, MP: tl.constexpr):
    """Rows b T^{-1} for the rows b of a block [G, MP], pivots raised to the floor."""
    index = tl.arange(0, MP)
    diagonal = index[:, None] == index[None, :]
    for k in range(antennas):
        here = index == k
        row, column = here[:, None], here[None, :]
        mr = tl.sum(tl.where(row, tr, 0.0), 0)
        mi = tl.sum(tl.where(row, ti, 0.0), 0)
        pivot = tl.sum(tl.where(here, mr, 0.0), 0)
        # Written so that NaN stays.
        pivot = tl.where(pivot < floor, floor, pivot)
        own = tl.sum(tl.where(diagonal, tr, 0.0), 0)
        square = (mr * mr + mi * mi) / tl.where(own > floor, own, floor)
        needed = tl.max(tl.where((index > k) & (index < antennas), square, 0.0), 0)
        pivot = tl.where((floor > loading) & (needed > pivot), needed, pivot)
        inverse = 1.0 / pivot
        # With the old column blanked, column k becomes T_k / p by the rule of all the others.
        mr = tl.where(here, -inverse, mr * inverse)[None, :]
        mi = tl.where(here, 0.0, mi * inverse)[None, :]
        cr = tl.sum(tl.where(column, tr, 0.0), 1)[:, None]
        ci = tl.sum(tl.where(column, ti, 0.0), 1)[:, None]
        tr = tl.where(column, 0.0, tr) - (cr * mr - ci * mi)
        ti = tl.where(column, 0.0, ti) - (cr * mi + ci * mr)
        cr = tl.sum(tl.where(column, br, 0.0), 1)[:, None]
        ci = tl.sum(tl.where(column, bi, 0.0), 1)[:, None]
        br = tl.where(column, 0.0, br) - (cr * mr - ci * mi)
        bi = tl.where(column, 0.0, bi) - (cr * mi + ci * mr)
    return br, bi


@triton.jit
def solve_group(
    h, h_m, h_n, codes, c_l, c_n, br, bi, first, snapshots, antennas, elements, alpha,
    H_PER_SNAPSHOT: tl.constexpr, RELATIVE: tl.constexpr,
    EPS: tl.constexpr, SMALLEST: tl.constexpr,
    G: tl.constexpr, MP: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Solve for the right-hand sides [G, MP] of the snapshots first, first + 1, ... of a scene.

    ``h`` and ``codes`` point at the scene, ``h`` at the snapshot where it has its own channel.
    """
    dtype: tl.constexpr = h.dtype.element_ty
    index = tl.arange(0, MP)
    diagonal = index[:, None] == index[None, :]
    slot = tl.arange(0, G)[:, None]
    if H_PER_SNAPSHOT:
        shared = tl.full((), 0, tl.int1)
    else:
        shared = moduli_agree(codes, c_l, c_n, snapshots, elements, EPS, ROWS, BN)
    turns = tl.where(shared, 1, tl.minimum(snapshots - first, G))
    zr, zi = br, bi
    for turn in range(turns):
        low = tl.where(shared, 0, first + turn)
        high = tl.where(shared, snapshots, first + turn + 1)
        tr, ti = gram(
            h, h_m, h_n, codes, c_l, c_n, low, high, antennas, elements, MP, BN, ROWS
        )  # fmt: skip
        if RELATIVE:
            trace = tl.sum(tl.sum(tl.where(diagonal, tr, 0.0), 1), 0)
            loading = tl.full((), alpha, dtype) * (trace / elements)
            # Where Phi = 0 the estimate is 0 whatever S is. Elsewhere the product may underflow.
            loading = tl.where(trace == 0, 1.0, loading)
            loading = tl.where(loading < SMALLEST, SMALLEST, loading)
        else:
            loading = tl.full((), alpha, dtype)
        tr = tl.where(diagonal, tr + loading, tr)
        largest = tl.max(tl.max(tl.where(diagonal, tr, 0.0), 1), 0)
        noise = 8 * EPS * antennas * largest
        floor = tl.where(loading < noise, noise, loading)
        xr, xi = eliminate(tr, ti, br, bi, loading, floor, antennas, MP)
        mine = (slot == turn) | shared
        zr = tl.where(mine, xr, zr)
        zi = tl.where(mine, xi, zi)
    return zr, zi


@triton.jit
def back_project(zr, zi, hr, hi, G: tl.constexpr):
    """H^H z: the rows z [G, MP] times conj(H) [MP, C]."""
    if G == 1:
        zr, zi = tl.trans(zr), tl.trans(zi)
        xr = tl.sum(zr * hr + zi * hi, 0)[None, :]
        xi = tl.sum(zi * hr - zr * hi, 0)[None, :]
    else:
        xr, xi = product_conj(zr, zi, hr, hi)
    return xr, xi


@triton.jit
def forward_project(dr, di, hr, hi, G: tl.constexpr):
    """H d: the rows d [G, C] times H^T, H [MP, C]."""
    if G == 1:
        ur = tl.sum(hr * dr - hi * di, 1)[None, :]
        ui = tl.sum(hr * di + hi * dr, 1)[None, :]
    else:
        hr, hi = tl.trans(hr), tl.trans(hi)
        ur = product(dr, hr) - product(di, hi)
        ui = product(dr, hi) + product(di, hr)
    return ur, ui
