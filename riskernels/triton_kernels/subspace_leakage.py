# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""Triton implementation of ``subspace_leakage``: memory-bound, one pass over R each way.

Forward, three launches: one program per scene makes the basis Q from the steering vectors; W = Q^H
R and |R|^2 by tiles of columns, the pass over R; U = W Q and the leakage per scene. Backward, two:
V = 2W - U Q^H per scene, and dL/dR = (2 g / |R|^2) ((1 - leakage) R - Q V), the pass over R.

Both passes read R as real numbers, a row of N complex entries as 2 N of them. Scenes of more than
``MAX_SOURCES`` columns do not fit into the registers of a program: there Q, U and V come from
PyTorch in complex128, and the passes over R are the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.ops._checks import check_grad_real
from riskernels.ops._covariance_checks import check_leakage, check_leakage_state
from riskernels.reference.subspace_leakage import leakage_transform, masked_steering
from riskernels.reference.tikhonov_snapshots import adjoint
from riskernels.triton_kernels._complex import load_tile, store_tile
from riskernels.triton_kernels._gram import counted_sources, product_adjoint, product_complex
from riskernels.triton_kernels._launch import (
    ALL_REGISTERS,
    OPTIONS,
    blocks,
    on_device,
    padded,
    pairs,
)
from riskernels.triton_kernels._projector import MAX_SOURCES, transform
from riskernels.triton_kernels.hermitian_nmse import column_offsets

ROWS, COLUMNS = 16, 64
"""The forward's pass works on tiles of this many rows and real columns."""
BASIS = 16
"""Columns of Q that the forward's pass takes at once."""
GRADIENT_ROWS, GRADIENT_COLUMNS = 32, 128
"""The same for the tiles of the backward's pass."""


@triton.jit
def load_sources(steering, stride_i, stride_k, rows, elements, columns, sources):
    """Rows of S_m in float64."""
    re, im = load_tile(steering, rows, stride_i, elements, columns, stride_k, sources)
    return re.to(tl.float64), im.to(tl.float64)


@triton.jit
def basis_kernel(
    steering, s_stride,  # [B, N, K]
    num_sources, n_stride,  # [B]
    basis,  # [B, N, K]
    ridge: tl.float64, elements, k,
    KP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Q of a scene; grid (B)."""
    dtype: tl.constexpr = steering.dtype.element_ty
    scene = tl.program_id(0).to(tl.int64)
    steering += 2 * scene * s_stride[0]
    basis += 2 * scene * elements * k
    sources = counted_sources(num_sources, n_stride, scene, k)
    columns = tl.arange(0, KP)
    gr, gi = tl.zeros([KP, KP], tl.float64), tl.zeros([KP, KP], tl.float64)
    for first in range(0, elements, ROWS):
        rows = first + tl.arange(0, ROWS)
        sr, si = load_sources(steering, s_stride[1], s_stride[2], rows, elements, columns, sources)
        pr, pi = product_adjoint(sr, si, sr, si)
        gr += pr
        gi += pi
    tr, ti = transform(gr, gi, sources, k, ridge, KP)
    for first in range(0, elements, ROWS):
        rows = first + tl.arange(0, ROWS)
        sr, si = load_sources(steering, s_stride[1], s_stride[2], rows, elements, columns, sources)
        qr, qi = product_complex(sr, si, tr, ti)
        store_tile(basis, rows, elements, columns, k, qr.to(dtype), qi.to(dtype))


@triton.jit
def project_kernel(
    cov, c_stride,  # [B, N, N] as real pairs
    basis,  # [B, N, K]
    projected,  # [B, K, N]
    squares,  # [B, tiles] float64, shares of |R|^2
    elements, k, tiles, groups,
    CONTIGUOUS: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """COLUMNS / 2 columns of KP rows of W = Q^H R; grid (B * tiles * groups of rows)."""
    dtype: tl.constexpr = cov.dtype.element_ty
    group = tl.program_id(0) % groups
    part = tl.program_id(0) // groups
    scene = (part // tiles).to(tl.int64)
    tile = part % tiles
    cov += 2 * scene * c_stride[0]
    basis += 2 * scene * elements * k
    # Real columns q = 2 s + part of Q, and c = 2 j + part of R.
    q = group * 2 * KP + tl.arange(0, 2 * KP)
    c = tile * COLUMNS + tl.arange(0, COLUMNS)
    at_c = column_offsets(c, c_stride[2], CONTIGUOUS)
    sums = tl.zeros([2 * KP, COLUMNS], dtype)
    energy = tl.zeros([ROWS, COLUMNS], tl.float64)
    for first in range(0, elements, ROWS):
        i = first + tl.arange(0, ROWS)
        wide = i.to(tl.int64)
        real = i < elements
        b = tl.load(
            basis + 2 * k * wide[:, None] + q[None, :],
            mask=real[:, None] & (q < 2 * k)[None, :], other=0.0,
        )  # fmt: skip
        r = tl.load(
            cov + 2 * wide[:, None] * c_stride[1] + at_c[None, :],
            mask=real[:, None] & (c < 2 * elements)[None, :], other=0.0,
        )  # fmt: skip
        sums += tl.dot(tl.trans(b), r, input_precision="ieee", out_dtype=dtype)
        # Every group reads the tile; the first one counts it.
        if group == 0:
            energy += r.to(tl.float64) * r
    if group == 0:
        tl.store(squares + part, tl.sum(tl.sum(energy, 1), 0))
    # [s, part of Q, j, part of R] to [s, j, part of R, part of Q]
    quarters = tl.permute(tl.reshape(sums, [KP, 2, COLUMNS // 2, 2]), [0, 2, 3, 1])
    of_real, of_imaginary = tl.split(quarters)
    rr, ri = tl.split(of_real)
    ir, ii = tl.split(of_imaginary)
    s = group * KP + tl.arange(0, KP)
    j = tile * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
    at = 2 * scene * elements * k
    store_tile(projected + at, s, k, j, elements, rr + ii, ri - ir)


@triton.jit
def inner_kernel(
    basis, b_i, b_k,  # [B, N, K], strides; contiguous over b
    projected, p_k, p_j,  # [B, K, N]
    squares,  # [B, tiles] float64, forward only
    leakage, total,  # [B], forward only
    inside,  # [B, K, N], V, backward only
    elements, k, tiles,
    b_scene, p_scene,
    BACKWARD: tl.constexpr, KP: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """U = W Q in float64, then the leakage, or V = 2W - U Q^H; grid (B)."""
    dtype: tl.constexpr = basis.dtype.element_ty
    scene = tl.program_id(0).to(tl.int64)
    basis += 2 * scene * b_scene
    projected += 2 * scene * p_scene
    s = tl.arange(0, KP)
    ur, ui = tl.zeros([KP, KP], tl.float64), tl.zeros([KP, KP], tl.float64)
    once = tl.zeros([KP, COLUMNS], tl.float64)
    for start in range(0, elements, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        wr, wi = load_tile(projected, s, p_k, k, j, p_j, elements)
        qr, qi = load_tile(basis, j, b_i, elements, s, b_k, k)
        wr, wi = wr.to(tl.float64), wi.to(tl.float64)
        pr, pi = product_complex(wr, wi, qr.to(tl.float64), qi.to(tl.float64))
        ur += pr
        ui += pi
        once += wr * wr + wi * wi
    if BACKWARD:
        inside += 2 * scene * k * elements
        # [s', s]
        ur, ui = tl.trans(ur), tl.trans(ui)
        for start in range(0, elements, COLUMNS):
            j = start + tl.arange(0, COLUMNS)
            wr, wi = load_tile(projected, s, p_k, k, j, p_j, elements)
            qr, qi = load_tile(basis, j, b_i, elements, s, b_k, k)
            # (U Q^H)^T = conj(Q) U^T
            pr, pi = product_complex(qr.to(tl.float64), -qi.to(tl.float64), ur, ui)
            vr = 2 * wr.to(tl.float64) - tl.trans(pr)
            vi = 2 * wi.to(tl.float64) - tl.trans(pi)
            store_tile(inside, s, k, j, elements, vr.to(dtype), vi.to(dtype))
    else:
        tile = tl.arange(0, TILES)
        energy = tl.sum(tl.load(squares + scene * tiles + tile, mask=tile < tiles, other=0.0), 0)
        twice = tl.sum(tl.sum(ur * ur + ui * ui, 1), 0)
        outside = energy - 2 * tl.sum(tl.sum(once, 1), 0) + twice
        # Written so that NaN stays.
        outside = tl.where(outside < 0, 0.0, outside)
        empty = energy == 0
        value = tl.where(empty, 0.0, outside / tl.where(empty, 1.0, energy))
        tl.store(leakage + scene, value.to(dtype))
        tl.store(total + scene, energy.to(dtype))


@triton.jit
def leakage_gradient_kernel(
    grad, grad_stride, leakage, l_stride, total, t_stride,  # [B]
    cov, c_stride,  # [B, N, N] as real pairs
    basis, b_stride,  # [B, N, K]
    inside,  # [B, K, N], V
    cov_grad,  # [B, N, N]
    elements, k, row_tiles, column_tiles,
    CONTIGUOUS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of (2 g / |R|^2) ((1 - leakage) R - Q V); grid (B * row_tiles * column_tiles)."""
    part = tl.program_id(0) // column_tiles
    scene = (part // row_tiles).to(tl.int64)
    cov += 2 * scene * c_stride[0]
    basis += 2 * scene * b_stride[0]
    inside += 2 * scene * k * elements
    energy = tl.load(total + scene * t_stride)
    empty = energy == 0
    scale = 2 * tl.load(grad + scene * grad_stride) / tl.where(empty, 1.0, energy)
    scale = tl.where(empty, 0.0, scale)
    rest = 1 - tl.load(leakage + scene * l_stride)
    i = (part % row_tiles) * ROWS + tl.arange(0, ROWS)
    c = (tl.program_id(0) % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    wide = i.to(tl.int64)
    real_i, real_c = i < elements, c < 2 * elements
    at = 2 * wide[:, None] * c_stride[1] + column_offsets(c, c_stride[2], CONTIGUOUS)[None, :]
    mask = real_i[:, None] & real_c[None, :]
    value = rest * tl.load(cov + at, mask=mask, other=0.0)
    # i v: the other part of v, negated where it becomes the real one.
    other = c + 1 - 2 * (c % 2)
    sign = tl.where(c % 2 == 0, -1.0, 1.0).to(value.dtype)
    for s in range(k):
        q = basis + 2 * (wide * b_stride[1] + s * b_stride[2])
        qr = tl.load(q, mask=real_i, other=0.0)
        qi = tl.load(q + 1, mask=real_i, other=0.0)
        v = inside + 2 * tl.cast(s, tl.int64) * elements
        plain = tl.load(v + c, mask=real_c, other=0.0)
        turned = sign * tl.load(v + other, mask=real_c, other=0.0)
        value -= qr[:, None] * plain[None, :] + qi[:, None] * turned[None, :]
    out = 2 * (scene * elements + wide)[:, None] * elements + c.to(tl.int64)[None, :]
    tl.store(cov_grad + out, scale * value, mask=mask)


def _basis(steering: Tensor, num_sources: Tensor, ridge: float) -> Tensor:
    """Q [B, N, K]."""
    scenes, elements, k = steering.shape
    steering = steering.resolve_conj().resolve_neg()
    if k > MAX_SOURCES:
        masked = masked_steering(steering, num_sources)
        gram = adjoint(masked) @ masked
        wide = masked @ leakage_transform(gram, num_sources, ridge)
        return wide.to(steering.dtype).contiguous()
    basis = torch.empty(steering.shape, dtype=steering.dtype, device=steering.device)
    basis_kernel[(scenes,)](
        pairs(steering), steering.stride(), num_sources, num_sources.stride(0), pairs(basis),
        ridge, elements, k, KP=padded(k, 16, MAX_SOURCES), ROWS=16, num_warps=4,
        **ALL_REGISTERS, **OPTIONS,
    )  # fmt: skip
    return basis


def subspace_leakage_forward(
    cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """leakage [B], |R|^2 [B], Q [B, N, K] and W = Q^H R [B, K, N]."""
    check_leakage("subspace_leakage", cov, steering, num_sources, ridge)
    scenes, elements, k = steering.shape
    real, device = cov.dtype.to_real(), cov.device
    leakage = torch.empty((scenes,), dtype=real, device=device)
    total = torch.empty((scenes,), dtype=real, device=device)
    projected = torch.empty((scenes, k, elements), dtype=cov.dtype, device=device)
    if scenes == 0:
        return leakage, total, torch.empty_like(projected.mT.contiguous()), projected
    cov = cov.resolve_conj().resolve_neg()
    tiles, groups = blocks(2 * elements, COLUMNS), blocks(k, BASIS)
    squares = torch.empty((scenes, tiles), dtype=torch.float64, device=device)
    with on_device(cov):
        basis = _basis(steering, num_sources, ridge)
        project_kernel[(scenes * tiles * groups,)](
            pairs(cov), cov.stride(), pairs(basis), pairs(projected), squares,
            elements, k, tiles, groups, CONTIGUOUS=cov.stride(2) == 1,
            KP=padded(k, 8, BASIS), ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4, **OPTIONS,
        )  # fmt: skip
        if k > MAX_SOURCES:
            return *_composite_leakage(squares, basis, projected), basis, projected
        inner_kernel[(scenes,)](
            pairs(basis), k, 1, pairs(projected), elements, 1, squares, leakage, total,
            leakage, elements, k, tiles, elements * k, elements * k,
            BACKWARD=False, KP=padded(k, 16, MAX_SOURCES), COLUMNS=16,
            TILES=triton.next_power_of_2(tiles), num_warps=4, **OPTIONS,
        )  # fmt: skip
    return leakage, total, basis, projected


def _energy(x: Tensor) -> Tensor:
    return torch.view_as_real(x).double().square().sum((1, 2, 3))


def _composite_leakage(squares: Tensor, basis: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
    """The leakage and |R|^2 where U does not fit into a program."""
    both = projected.to(torch.complex128) @ basis.to(torch.complex128)
    total = squares.sum(1)
    outside = (total - 2 * _energy(projected) + _energy(both)).clamp(min=0)
    leakage = torch.where(total == 0, torch.zeros_like(total), outside / total)
    real = basis.dtype.to_real()
    return leakage.to(real), total.to(real)


def subspace_leakage_backward(
    grad: Tensor, cov: Tensor, leakage: Tensor, total: Tensor, basis: Tensor, projected: Tensor
) -> Tensor:
    """Gradient to cov."""
    op = "subspace_leakage_backward"
    check_leakage_state(op, cov, basis, projected)
    scenes, elements, k = basis.shape
    for name, value in (("grad", grad), ("leakage", leakage), ("total", total)):
        check_grad_real(op, name, value, (scenes,), cov)
    cov_grad = torch.empty(cov.shape, dtype=cov.dtype, device=cov.device)
    if scenes == 0:
        return cov_grad
    cov, basis, projected = (x.resolve_conj().resolve_neg() for x in (cov, basis, projected))
    grad, leakage, total = (x.resolve_neg() for x in (grad, leakage, total))
    row_tiles = blocks(elements, GRADIENT_ROWS)
    column_tiles = blocks(2 * elements, GRADIENT_COLUMNS)
    with on_device(cov):
        if k > MAX_SOURCES:
            wide, outer = projected.to(torch.complex128), basis.to(torch.complex128)
            inside = (2 * wide - wide @ outer @ adjoint(outer)).to(cov.dtype).contiguous()
        else:
            inside = torch.empty((scenes, k, elements), dtype=cov.dtype, device=cov.device)
            inner_kernel[(scenes,)](
                pairs(basis), basis.stride(1), basis.stride(2),
                pairs(projected), projected.stride(1), projected.stride(2),
                grad, leakage, total, pairs(inside), elements, k, 1,
                basis.stride(0), projected.stride(0),
                BACKWARD=True, KP=padded(k, 16, MAX_SOURCES), COLUMNS=16, TILES=1,
                num_warps=4, **OPTIONS,
            )  # fmt: skip
        leakage_gradient_kernel[(scenes * row_tiles * column_tiles,)](
            grad, grad.stride(0), leakage, leakage.stride(0), total, total.stride(0),
            pairs(cov), cov.stride(), pairs(basis), basis.stride(), pairs(inside),
            pairs(cov_grad), elements, k, row_tiles, column_tiles,
            CONTIGUOUS=cov.stride(2) == 1, ROWS=GRADIENT_ROWS, COLUMNS=GRADIENT_COLUMNS,
            num_warps=8, **ALL_REGISTERS, **OPTIONS,
        )  # fmt: skip
    return cov_grad
