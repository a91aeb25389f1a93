# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""Solves of the Tikhonov operators: z_l, a_l of the forward, w_l and the factors of the backward.

One program serves a group of snapshots of one scene and does everything from the Gram matrix to
the projection back onto the elements in one launch. Systems beyond ``MAX_ANTENNAS`` do not fit
into the registers of a program: there the factorisation with the pivot floor and its two
triangular solves run in PyTorch, in complex128 so that no setting of matrix products to tf32
touches them, at the cost of [B, L, M, N] in memory. What follows the solve is the same kernel code.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.reference.tikhonov_snapshots import Solution, cholesky_apply
from riskernels.reference.tikhonov_snapshots import solve as reference_solve
from riskernels.triton_kernels._complex import load_tile, store_tile
from riskernels.triton_kernels._launch import ALL_REGISTERS, OPTIONS, blocks, padded, pairs
from riskernels.triton_kernels._system import back_project, forward_project, solve_group

MAX_ANTENNAS = 64
"""Largest M whose system a program keeps in its registers."""


@triton.jit(do_not_specialize=["snapshots", "antennas"])
def estimate_kernel(
    y, y_stride,  # [B, L, M]
    h, h_stride,  # [B, L (stride 0 where shared), M, N]
    codes, c_stride,  # [B, L, N]
    z_out,  # [B, L, M], only where STORE_Z
    a_out,  # [B, L, N], only where STORE_A
    alpha: tl.float64, snapshots, antennas, elements,
    STORE_Z: tl.constexpr, STORE_A: tl.constexpr,
    H_PER_SNAPSHOT: tl.constexpr, RELATIVE: tl.constexpr,
    EPS: tl.constexpr, SMALLEST: tl.constexpr,
    G: tl.constexpr, MP: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """z_l = S_l^{-1} y_l and a_l = Phi_l^H z_l; grid (B * ceil(L / G))."""
    groups = (snapshots + G - 1) // G
    scene = (tl.program_id(0) // groups).to(tl.int64)
    first = (tl.program_id(0) % groups) * G
    rows = first + tl.arange(0, G)
    m = tl.arange(0, MP)
    h += 2 * (scene * h_stride[0] + first.to(tl.int64) * h_stride[1])
    codes += 2 * scene * c_stride[0]
    br, bi = load_tile(
        y + 2 * scene * y_stride[0], rows, y_stride[1], snapshots, m, y_stride[2], antennas
    )
    zr, zi = solve_group(
        h, h_stride[2], h_stride[3], codes, c_stride[1], c_stride[2], br, bi,
        first, snapshots, antennas, elements, alpha,
        H_PER_SNAPSHOT, RELATIVE, EPS, SMALLEST, G, MP, BN, ROWS,
    )  # fmt: skip
    if STORE_Z:
        store_tile(z_out + 2 * scene * snapshots * antennas, rows, snapshots, m, antennas, zr, zi)
    if STORE_A:
        for start in range(0, elements, BN):
            n = start + tl.arange(0, BN)
            hr, hi = load_tile(h, m, h_stride[2], antennas, n, h_stride[3], elements)
            cr, ci = load_tile(codes, rows, c_stride[1], snapshots, n, c_stride[2], elements)
            xr, xi = back_project(zr, zi, hr, hi, G)
            store_tile(
                a_out + 2 * scene * snapshots * elements, rows, snapshots, n, elements,
                cr * xr + ci * xi, cr * xi - ci * xr,
            )  # fmt: skip


@triton.jit
def store_adjoints(
    cr, ci, gr, gi, xr, xi, vr, vi, energy, t,
    rows, snapshots, n, elements, codes_grad, q_out, a_out,
    NEED_CODES: tl.constexpr, NEED_H: tl.constexpr, RELATIVE: tl.constexpr,
):  # fmt: skip
    """From x = H^H z and v = H^H w [G, C]: the gradient to the codes, and c q and c a."""
    ar, ai = cr * xr + ci * xi, cr * xi - ci * xr
    qr, qi = gr - (cr * vr + ci * vi), gi - (cr * vi - ci * vr)
    if NEED_CODES:
        # conj(q) x - conj(a) v
        dr = (qr * xr + qi * xi) - (ar * vr + ai * vi)
        di = (qr * xi - qi * xr) - (ar * vi - ai * vr)
        if RELATIVE:
            weight = t[:, None] * energy[None, :]
            dr += weight * cr
            di += weight * ci
        store_tile(codes_grad, rows, snapshots, n, elements, dr, di)
    if NEED_H:
        store_tile(q_out, rows, snapshots, n, elements, cr * qr - ci * qi, cr * qi + ci * qr)
        store_tile(a_out, rows, snapshots, n, elements, cr * ar - ci * ai, cr * ai + ci * ar)


@triton.jit(do_not_specialize=["snapshots", "antennas"])
def adjoint_kernel(
    g, g_stride,  # [B, L, N] dL/da
    h, h_stride, codes, c_stride,
    z,  # [B, L, M]
    w,  # [B, L, M], written unless SOLVED
    codes_grad,  # [B, L, N], only where NEED_CODES
    q_out, a_out,  # [B, L, N] c q and c a, only where NEED_H
    t_out,  # [B, L] 2 (alpha / N) dL/dalpha_l, only where RELATIVE
    alpha: tl.float64, snapshots, antennas, elements,
    SOLVED: tl.constexpr, NEED_CODES: tl.constexpr, NEED_H: tl.constexpr,
    H_PER_SNAPSHOT: tl.constexpr, RELATIVE: tl.constexpr,
    EPS: tl.constexpr, SMALLEST: tl.constexpr,
    G: tl.constexpr, MP: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """w_l = S_l^{-1} Phi_l g_l, and what the gradients to H and codes are made of.

    Grid (B * ceil(L / G)). SOLVED: w is given, and M may exceed MP.
    """
    dtype: tl.constexpr = h.dtype.element_ty
    groups = (snapshots + G - 1) // G
    scene = (tl.program_id(0) // groups).to(tl.int64)
    first = (tl.program_id(0) % groups) * G
    rows = first + tl.arange(0, G)
    index = tl.arange(0, MP)
    g += 2 * scene * g_stride[0]
    h += 2 * (scene * h_stride[0] + first.to(tl.int64) * h_stride[1])
    codes += 2 * scene * c_stride[0]
    z += 2 * scene * snapshots * antennas
    w += 2 * scene * snapshots * antennas
    wr = tl.zeros([G, MP], dtype)
    wi = tl.zeros([G, MP], dtype)
    if not SOLVED:
        for start in range(0, elements, BN):
            n = start + tl.arange(0, BN)
            hr, hi = load_tile(h, index, h_stride[2], antennas, n, h_stride[3], elements)
            cr, ci = load_tile(codes, rows, c_stride[1], snapshots, n, c_stride[2], elements)
            gr, gi = load_tile(g, rows, g_stride[1], snapshots, n, g_stride[2], elements)
            ur, ui = forward_project(cr * gr - ci * gi, cr * gi + ci * gr, hr, hi, G)
            wr += ur
            wi += ui
        wr, wi = solve_group(
            h, h_stride[2], h_stride[3], codes, c_stride[1], c_stride[2], wr, wi,
            first, snapshots, antennas, elements, alpha,
            H_PER_SNAPSHOT, RELATIVE, EPS, SMALLEST, G, MP, BN, ROWS,
        )  # fmt: skip
        store_tile(w, rows, snapshots, index, antennas, wr, wi)
    if NEED_CODES or NEED_H:
        t = tl.zeros([G], dtype)
        if RELATIVE:
            for begin in range(0, antennas, MP):
                m = begin + index
                zr, zi = load_tile(z, rows, antennas, snapshots, m, 1, antennas)
                if SOLVED:
                    wr, wi = load_tile(w, rows, antennas, snapshots, m, 1, antennas)
                t += tl.sum(wr * zr + wi * zi, 1)
            t *= tl.full((), alpha, dtype) * (-2.0 / elements)
            tl.store(t_out + scene * snapshots + rows, t, mask=rows < snapshots)
        for start in range(0, elements, BE):
            n = start + tl.arange(0, BE)
            xr, xi = tl.zeros([G, BE], dtype), tl.zeros([G, BE], dtype)
            vr, vi = tl.zeros([G, BE], dtype), tl.zeros([G, BE], dtype)
            energy = tl.zeros([BE], dtype)
            for begin in range(0, antennas, MP):
                m = begin + index
                hr, hi = load_tile(h, m, h_stride[2], antennas, n, h_stride[3], elements)
                zr, zi = load_tile(z, rows, antennas, snapshots, m, 1, antennas)
                if SOLVED:
                    wr, wi = load_tile(w, rows, antennas, snapshots, m, 1, antennas)
                pr, pi = back_project(zr, zi, hr, hi, G)
                sr, si = back_project(wr, wi, hr, hi, G)
                xr, xi, vr, vi = xr + pr, xi + pi, vr + sr, vi + si
                energy += tl.sum(hr * hr + hi * hi, 0)
            cr, ci = load_tile(codes, rows, c_stride[1], snapshots, n, c_stride[2], elements)
            gr, gi = load_tile(g, rows, g_stride[1], snapshots, n, g_stride[2], elements)
            offset = 2 * scene * snapshots * elements
            store_adjoints(
                cr, ci, gr, gi, xr, xi, vr, vi, energy, t, rows, snapshots, n, elements,
                codes_grad + offset, q_out + offset, a_out + offset,
                NEED_CODES, NEED_H, RELATIVE,
            )  # fmt: skip


def channel_strides(h: Tensor) -> tuple[int, ...]:
    """Strides of h [B, L, M, N], 0 over l where it is shared."""
    return h.stride() if h.dim() == 4 else (h.stride(0), 0, h.stride(1), h.stride(2))


def configuration(y: Tensor, h: Tensor, relative: bool) -> dict[str, Any]:
    """Block sizes by shape alone, so that nothing is measured in the first step of a training.

    A group of 16 snapshots shares the most work. Few scenes are cut into groups of 4, so that
    they fill a device; one H per snapshot leaves nothing to share. Products of doubles run on
    matrix units, whose tiles are 16 high.
    """
    scenes, snapshots, antennas = y.shape
    if h.dim() == 4 or snapshots == 1:
        group = 1
    elif y.dtype == torch.complex64 and (snapshots <= 4 or scenes * blocks(snapshots, 16) < 256):
        group = 4
    else:
        group = 16
    rows = padded(antennas, 16, MAX_ANTENNAS)
    limits = torch.finfo(y.dtype)
    return {
        **OPTIONS,
        **ALL_REGISTERS,
        "H_PER_SNAPSHOT": h.dim() == 4,
        "RELATIVE": relative,
        "EPS": limits.eps,
        "SMALLEST": limits.smallest_normal,
        "G": group,
        "MP": rows,
        "BN": 16,
        "ROWS": 1 if h.dim() == 4 else padded(snapshots, 1, 16),
        "num_warps": {16: 2, 32: 4, 64: 8}[rows],
    }


def estimate(
    y: Tensor, h: Tensor, codes: Tensor, alpha: float, relative: bool, *, need_a: bool, need_z: bool
) -> tuple[Tensor, Tensor, Solution | None]:
    """z [B, L, M] and a [B, L, N], empty where not needed, and the reference's solution if used."""
    scenes, snapshots, antennas = y.shape
    elements = codes.shape[2]
    if antennas > MAX_ANTENNAS:
        wide = [t.to(torch.complex128) for t in (y, h, codes)]
        solution = reference_solve(wide[0], wide[1], wide[2], alpha, relative)
        return solution.z.to(y.dtype).contiguous(), solution.a.to(y.dtype).contiguous(), solution
    z = y.new_empty((scenes, snapshots, antennas) if need_z else (0,))
    a = y.new_empty((scenes, snapshots, elements) if need_a else (0,))
    options = configuration(y, h, relative)
    y, h, codes = (t.resolve_conj().resolve_neg() for t in (y, h, codes))
    estimate_kernel[(scenes * blocks(snapshots, options["G"]),)](
        pairs(y), y.stride(), pairs(h), channel_strides(h), pairs(codes), codes.stride(),
        pairs(z), pairs(a), alpha, snapshots, antennas, elements,
        STORE_Z=need_z, STORE_A=need_a, **options,
    )  # fmt: skip
    return z, a, None


def adjoint(
    g: Tensor, y: Tensor, h: Tensor, codes: Tensor, alpha: float, relative: bool,
    z: Tensor, solution: Solution | None, *, need_h: bool, need_codes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """w [B, L, M], the gradient to the codes, c q and c a [B, L, N], and t [B, L]."""
    scenes, snapshots, antennas = y.shape
    elements = codes.shape[2]
    options = configuration(y, h, relative)
    # It projects two vectors of every snapshot at once, which takes twice the registers.
    options["num_warps"] = max(options["num_warps"], 4)
    options["BE"] = 16 if options["G"] < 16 else 8
    if solution is None:
        w = torch.empty_like(z)
    else:
        right = solution.phi @ g.to(torch.complex128).unsqueeze(-1)
        w = cholesky_apply(solution.factor, right.squeeze(-1)).to(y.dtype).contiguous()
    shape = (scenes, snapshots, elements)
    codes_grad = y.new_empty(shape if need_codes else (0,))
    q, a = (y.new_empty(shape if need_h else (0,)) for _ in range(2))
    t = torch.empty((scenes, snapshots) if relative else (0,), dtype=z.real.dtype, device=z.device)
    if solution is not None and not (need_h or need_codes):
        return w, codes_grad, q, a, t
    g, h, codes = (t.resolve_conj().resolve_neg() for t in (g, h, codes))
    adjoint_kernel[(scenes * blocks(snapshots, options["G"]),)](
        pairs(g), g.stride(), pairs(h), channel_strides(h), pairs(codes), codes.stride(),
        pairs(z), pairs(w), pairs(codes_grad), pairs(q), pairs(a), t,
        alpha, snapshots, antennas, elements,
        SOLVED=solution is not None, NEED_CODES=need_codes, NEED_H=need_h, **options,
    )  # fmt: skip
    return w, codes_grad, q, a, t
