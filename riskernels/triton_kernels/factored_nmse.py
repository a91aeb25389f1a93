# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803, SIM102  (upper case: a constant of the compilation, tested on its own)
r"""Triton implementation of ``factored_nmse``: O(N c^2), and nothing of the size N x N.

Forward: the Gram matrix of [X, Y] with the sums over the rows, and a small launch that makes the
NMSE of them. Backward, one launch: with u_i = |x_i|^2 - |y_i|^2,

    dL/dX_i = 4 w_o [X G_xx - Y G_yx]_i + 4 (w_d (u_i + rho) - w_o u_i) x_i,
    dL/dY_i = -4 [w_o X G_xy + (q_o - w_o) Y G_yy]_i
              - 4 (w_d (u_i + rho) - w_o u_i + (q_d - q_o) |y_i|^2) y_i

are rows of [X, Y] times the Gram matrix with a weight on each of its four blocks, in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.ops._checks import check_companion, check_grad_real
from riskernels.ops._factored_checks import check_factored_nmse
from riskernels.triton_kernels._complex import store_complex
from riskernels.triton_kernels._gram import (
    TILE,
    joint_gram,
    load_joint,
    load_square,
    mask_operand,
    per_scene_operand,
    product_complex,
)
from riskernels.triton_kernels._launch import OPTIONS, blocks, on_device, padded, pairs
from riskernels.triton_kernels.hermitian_nmse import kept

ROWS = 32
"""Rows of the gradients that a program computes."""
DEPTH = 16
"""Columns of [X, Y] that enter a product at once."""


@triton.jit
def factored_nmse_kernel(
    gram,  # [B, c, c]
    rows, rows_stride,  # [B, 4]: sums of (u + rho)^2, u^2, |y|^4, 1
    nmse_out, sums_out,  # [B], [B, 4]
    lam_diag: tl.float64, lam_off: tl.float64, eps: tl.float64, r, c,
    TILE: tl.constexpr,
):  # fmt: skip
    """The four sums and the NMSE of a scene; grid (B). The weights add up to 1."""
    scene = tl.program_id(0).to(tl.int64)
    gram += 2 * scene * c * c
    rows += scene * rows_stride
    error, power = tl.zeros([TILE, TILE], tl.float64), tl.zeros([TILE, TILE], tl.float64)
    for first in range(0, c, TILE):
        i = first + tl.arange(0, TILE)
        for start in range(0, c, TILE):
            j = start + tl.arange(0, TILE)
            re, im = load_square(gram, i, j, c)
            squares = re * re + im * im
            of_x, of_y = (i < r)[:, None] & (j < r)[None, :], (i >= r)[:, None] & (j >= r)[None, :]
            error += tl.where(of_x | of_y, squares, -squares)
            power += tl.where(of_y, squares, 0.0)
    error_d, plain, power_d = tl.load(rows), tl.load(rows + 1), tl.load(rows + 2)
    several = tl.load(rows + 3) > 1
    error_o = tl.sum(tl.sum(error, 1), 0) - plain
    power_o = tl.sum(tl.sum(power, 1), 0) - power_d
    # Written so that NaN stays.
    error_o = tl.where((error_o < 0) | (several == 0), 0.0, error_o)
    power_o = tl.where((power_o < 0) | (several == 0), 0.0, power_o)
    sums_out += 4 * scene
    tl.store(sums_out, error_d)
    tl.store(sums_out + 1, error_o)
    tl.store(sums_out + 2, power_d)
    tl.store(sums_out + 3, power_o)
    lam_diag, lam_off = tl.full((), lam_diag, tl.float64), tl.full((), lam_off, tl.float64)
    eps = tl.full((), eps, tl.float64)
    value = lam_diag * error_d / (power_d + eps) + lam_off * error_o / (power_o + eps)
    tl.store(nmse_out + scene, value.to(nmse_out.dtype.element_ty))


@triton.jit
def loading_gradient(
    gram, mask, mask_stride, r, c, elements, loading, MASKED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """sum_i (u_i + rho) over the kept rows: the difference of the traces, and rho for each row."""
    traces, count = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for start in range(0, c, BLOCK):
        j = start + tl.arange(0, BLOCK)
        own = tl.load(gram + 2 * j.to(tl.int64) * (c + 1), mask=j < c, other=0.0)
        traces += tl.where(j < r, own, -own)
    for start in range(0, elements, BLOCK):
        i = start + tl.arange(0, BLOCK)
        count += tl.where(kept(mask, mask_stride, i, elements, MASKED), 1.0, 0.0)
    return tl.sum(traces, 0) + loading * tl.sum(count, 0)


@triton.jit
def factored_nmse_gradient_kernel(
    grad, grad_stride,  # [B]
    x, x_stride, y, y_stride,  # [B, N, r], [B, N, k]
    rho, rho_stride,  # [B], only where HAS_RHO
    sums, sums_stride,  # [B, 4]
    gram,  # [B, c, c]
    mask, mask_stride,  # [N] (stride 0 over b) or [B, N], only where MASKED
    x_grad, rho_grad, y_grad,  # only where needed
    lam_diag: tl.float64, lam_off: tl.float64, eps: tl.float64, elements, r, k,
    first_column, bands, tiles,
    NEED_X: tl.constexpr, NEED_RHO: tl.constexpr, NEED_Y: tl.constexpr,
    HAS_RHO: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """ROWS rows and TILE columns of the gradients to X and Y; grid (B * bands * tiles)."""
    dtype: tl.constexpr = x.dtype.element_ty
    c = r + k
    part = tl.program_id(0) // tiles
    scene = (part // bands).to(tl.int64)
    band = part % bands
    tile = tl.program_id(0) % tiles
    x += 2 * scene * x_stride[0]
    y += 2 * scene * y_stride[0]
    gram += 2 * scene * c * c
    mask += scene * mask_stride[0]
    sums += scene * sums_stride[0]
    eps = tl.full((), eps, tl.float64)
    power_d = tl.load(sums + 2 * sums_stride[1]) + eps
    power_o = tl.load(sums + 3 * sums_stride[1]) + eps
    slope = tl.load(grad + scene * grad_stride).to(tl.float64)
    weight_d = slope * tl.full((), lam_diag, tl.float64) / power_d
    weight_o = slope * tl.full((), lam_off, tl.float64) / power_o
    error_o = tl.load(sums + sums_stride[1])
    ratio_d = weight_d * tl.load(sums) / power_d
    ratio_o = weight_o * error_o / power_o
    # Nothing off the diagonal: no slope there, rather than 1 / eps times rounding errors.
    nothing = (error_o == 0) & (power_o == eps)
    weight_o = tl.where(nothing, 0.0, weight_o)
    ratio_o = tl.where(nothing, 0.0, ratio_o)
    loading = tl.full((), 0.0, tl.float64)
    if HAS_RHO:
        loading = tl.load(rho + scene * rho_stride).to(tl.float64)
    if NEED_RHO:
        if tl.program_id(0) % (tiles * bands) == 0:
            spread = loading_gradient(
                gram, mask, mask_stride[1], r, c, elements, loading, MASKED, 128
            )
            tl.store(rho_grad + scene, (2 * weight_d * spread).to(dtype))
    if NEED_X or NEED_Y:
        rows = band * ROWS + tl.arange(0, ROWS)
        keep = kept(mask, mask_stride[1], rows, elements, MASKED)
        j = first_column + tile * TILE + tl.arange(0, TILE)
        re, im = tl.zeros([ROWS, TILE], tl.float64), tl.zeros([ROWS, TILE], tl.float64)
        of_x, of_y = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
        for start in range(0, c, DEPTH):
            d = start + tl.arange(0, DEPTH)
            ar, ai = load_joint(
                x, x_stride[1], x_stride[2], y, y_stride[1], y_stride[2], r, c, rows, keep, d
            )
            squares = ar * ar + ai * ai
            left = (d < r)[None, :]
            of_x += tl.sum(tl.where(left, squares, 0.0), 1)
            of_y += tl.sum(tl.where(left, 0.0, squares), 1)
            gr, gi = load_square(gram, d, j, c)
            within = (d < r)[:, None] == (j < r)[None, :]
            both_y = (d >= r)[:, None] & (j >= r)[None, :]
            weight = tl.where(within, weight_o, -weight_o) - tl.where(both_y, ratio_o, 0.0)
            pr, pi = product_complex(ar, ai, weight * gr, weight * gi)
            re += pr
            im += pi
        plain = of_x - of_y
        at_x = weight_d * (plain + loading) - weight_o * plain
        at_y = -(at_x + (ratio_d - ratio_o) * of_y)
        ar, ai = load_joint(
            x, x_stride[1], x_stride[2], y, y_stride[1], y_stride[2], r, c, rows, keep, j
        )
        own = tl.where((j < r)[None, :], at_x[:, None], at_y[:, None])
        # Blanked, not multiplied by zero: the weight of an empty part may be 0 / 0.
        re = tl.where(keep[:, None], 4 * (re + own * ar), 0.0).to(dtype)
        im = tl.where(keep[:, None], 4 * (im + own * ai), 0.0).to(dtype)
        inside = (rows < elements)[:, None]
        wide = scene * elements + rows.to(tl.int64)
        if NEED_X:
            at = wide[:, None] * r + j[None, :]
            store_complex(x_grad, at, re, im, inside & (j < r)[None, :])
        if NEED_Y:
            at = wide[:, None] * k + (j - r)[None, :]
            store_complex(y_grad, at, re, im, inside & ((j >= r) & (j < c))[None, :])


def factored_nmse_forward(
    factor: Tensor,
    rho: Tensor | None,
    target_factor: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The NMSE [B], its sums [B, 4] = (e_D, e_O, t_D, t_O), and the Gram matrix of [X, Y]."""
    check_factored_nmse(
        "factored_nmse", factor, rho, target_factor, lam_diag, lam_off, eps, element_mask
    )
    scenes, _, r = factor.shape
    c = r + target_factor.shape[2]
    device = factor.device
    nmse = torch.empty((scenes,), dtype=factor.dtype.to_real(), device=device)
    sums = torch.empty((scenes, 4), dtype=torch.float64, device=device)
    if scenes == 0:
        return nmse, sums, torch.empty((0, c, c), dtype=torch.complex128, device=device)
    total = lam_diag + lam_off
    x, y = (f.resolve_conj().resolve_neg() for f in (factor, target_factor))
    with on_device(factor):
        gram, rows = joint_gram(x, y, rho=rho, mask=element_mask, row_sums=True)
        factored_nmse_kernel[(scenes,)](
            pairs(gram), rows, rows.stride(0), nmse, sums, lam_diag / total, lam_off / total, eps,
            r, c, TILE=padded(c, 16, TILE), num_warps=4, **OPTIONS,
        )  # fmt: skip
    return nmse, sums, gram


def factored_nmse_backward(
    grad: Tensor,
    factor: Tensor,
    rho: Tensor | None,
    target_factor: Tensor,
    sums: Tensor,
    gram: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
    *,
    need_factor: bool = True,
    need_rho: bool = True,
    need_target: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to factor, rho and target_factor; one that is not needed comes back empty."""
    op = "factored_nmse_backward"
    check_factored_nmse(op, factor, rho, target_factor, lam_diag, lam_off, eps, element_mask)
    scenes, elements, r = factor.shape
    k = target_factor.shape[2]
    check_grad_real(op, "grad", grad, (scenes,), factor)
    check_companion(op, "sums", sums, torch.float64, (scenes, 4), factor)
    check_companion(op, "gram", gram, torch.complex128, (scenes, r + k, r + k), factor)
    x_grad, y_grad = (
        torch.empty(f.shape if needed else (0,), dtype=f.dtype, device=f.device)
        for f, needed in ((factor, need_factor), (target_factor, need_target))
    )
    rho_grad = grad.new_empty((scenes if need_rho else 0,))
    if scenes == 0 or not (need_factor or need_rho or need_target):
        return x_grad, rho_grad, y_grad
    first, last = 0 if need_factor else r, r + k if need_target else r
    if first == last:
        # Only rho: one program per scene, which computes no columns.
        bands, tile, tiles = 1, 16, 1
    else:
        bands, tile = blocks(elements, ROWS), padded(last - first, 16, TILE)
        tiles = blocks(last - first, tile)
    total = lam_diag + lam_off
    x, y = (f.resolve_conj().resolve_neg() for f in (factor, target_factor))
    gram = gram.contiguous().resolve_conj().resolve_neg()
    grad, sums = grad.resolve_neg(), sums.resolve_neg()
    mask, mask_stride = mask_operand(element_mask, x)
    with on_device(factor):
        factored_nmse_gradient_kernel[(scenes * bands * tiles,)](
            grad, grad.stride(0), pairs(x), x.stride(), pairs(y), y.stride(),
            *per_scene_operand(rho, x), sums, sums.stride(), pairs(gram), mask, mask_stride,
            pairs(x_grad), rho_grad, pairs(y_grad), lam_diag / total, lam_off / total, eps,
            elements, r, k, first, bands, tiles,
            NEED_X=need_factor, NEED_RHO=need_rho, NEED_Y=need_target,
            HAS_RHO=rho is not None, MASKED=element_mask is not None,
            ROWS=ROWS, TILE=tile, DEPTH=DEPTH, num_warps=8, num_stages=2, **OPTIONS,
        )  # fmt: skip
    return x_grad, rho_grad, y_grad
