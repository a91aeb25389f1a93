# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
"""Triton implementation of ``hermitian_nmse``: memory-bound, one pass over the inputs each way.

Squares of real and imaginary parts are added alike, so a row of N complex entries is read as 2 N
real numbers. Forward: a program sums one scene, or, where few large scenes would leave a device
idle, a band of rows, and a second small launch adds the bands in a fixed order. Backward: one
launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.ops._checks import check_grad_real, check_nmse
from riskernels.triton_kernels._launch import OPTIONS, blocks, on_device, pairs

ROWS, COLUMNS = 32, 64
"""A program works on tiles of this many rows and real columns."""
WHOLE_SCENE = 1 << 16
"""Scenes of at most this many entries are summed by one program each."""
ENOUGH_SCENES = 1024
"""A batch that fills a device with one program per scene."""


@triton.jit
def column_offsets(k, stride, CONTIGUOUS: tl.constexpr):
    """Offset of real column k = 2 n + part in a row whose entries are ``stride`` apart."""
    if CONTIGUOUS:
        return k.to(tl.int64)
    return 2 * (k // 2).to(tl.int64) * stride + k % 2


@triton.jit
def kept(mask, stride, index, elements, MASKED: tl.constexpr):
    """Whether an element exists and counts."""
    inside = index < elements
    if MASKED:
        inside = inside & (tl.load(mask + index.to(tl.int64) * stride, mask=inside, other=0) != 0)
    return inside


@triton.jit
def kept_columns(mask, stride, k, elements, MASKED: tl.constexpr):
    """The same for the element of real column k."""
    if MASKED:
        return kept(mask, stride, k // 2, elements, MASKED)
    # Compared as it is, so that the compiler sees whole vectors inside or outside.
    return k < 2 * elements


@triton.jit
def squares(x, y):
    """|x|^2 of the complex numbers x + i y."""
    return x * x + y * y


@triton.jit
def nmse_value(sums_d, sums_o, power_d, power_o, lam_diag, lam_off, eps, dtype: tl.constexpr):
    """The NMSE from its four sums; the weights add up to 1."""
    lam_diag, lam_off = tl.full((), lam_diag, dtype), tl.full((), lam_off, dtype)
    eps = tl.full((), eps, dtype)
    return lam_diag * sums_d / (power_d + eps) + lam_off * sums_o / (power_o + eps)


@triton.jit
def nmse_sums_kernel(
    estimate, e_stride,  # [B, N, N] as real pairs
    target, t_stride,
    mask, mask_stride,  # [N] (stride 0 over b) or [B, N], only where MASKED
    nmse_out,  # [B]
    sums_out,  # [B, bands, 4]: e_D, e_O, t_D, t_O
    lam_diag: tl.float64, lam_off: tl.float64, eps: tl.float64, elements, height, bands,
    MASKED: tl.constexpr, E_CONTIGUOUS: tl.constexpr, T_CONTIGUOUS: tl.constexpr,
    FINISH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The four sums of a band of ``height`` rows, and the NMSE where FINISH; grid (B * bands)."""
    dtype: tl.constexpr = estimate.dtype.element_ty
    scene = (tl.program_id(0) // bands).to(tl.int64)
    band = tl.program_id(0) % bands
    estimate += 2 * scene * e_stride[0]
    target += 2 * scene * t_stride[0]
    mask += scene * mask_stride[0]
    error_o, power_o = tl.zeros([ROWS, COLUMNS], dtype), tl.zeros([ROWS, COLUMNS], dtype)
    error_d, power_d = tl.zeros([ROWS], dtype), tl.zeros([ROWS], dtype)
    end = tl.minimum((band + 1) * height, elements)
    for first in range(band * height, end, ROWS):
        i = first + tl.arange(0, ROWS)
        keep_i = kept(mask, mask_stride[1], i, end, MASKED)
        wide = i.to(tl.int64)
        for start in range(0, 2 * elements, COLUMNS):
            k = start + tl.arange(0, COLUMNS)
            keep = (
                keep_i[:, None] & kept_columns(mask, mask_stride[1], k, elements, MASKED)[None, :]
            )
            e_at = (
                2 * wide[:, None] * e_stride[1]
                + (column_offsets(k, e_stride[2], E_CONTIGUOUS)[None, :])
            )
            t_at = (
                2 * wide[:, None] * t_stride[1]
                + (column_offsets(k, t_stride[2], T_CONTIGUOUS)[None, :])
            )
            # A masked load keeps non-finite values of masked elements out.
            t = tl.load(target + t_at, mask=keep, other=0.0)
            e = tl.load(estimate + e_at, mask=keep, other=0.0) - t
            off = i[:, None] != (k // 2)[None, :]
            error_o += tl.where(off, e * e, 0.0)
            power_o += tl.where(off, t * t, 0.0)
        # The diagonal comes from the cache: its entries have just been read.
        e_at = 2 * wide * (e_stride[1] + e_stride[2])
        t_at = 2 * wide * (t_stride[1] + t_stride[2])
        tr = tl.load(target + t_at, mask=keep_i, other=0.0)
        ti = tl.load(target + t_at + 1, mask=keep_i, other=0.0)
        er = tl.load(estimate + e_at, mask=keep_i, other=0.0) - tr
        ei = tl.load(estimate + e_at + 1, mask=keep_i, other=0.0) - ti
        error_d += squares(er, ei)
        power_d += squares(tr, ti)
    e_d, t_d = tl.sum(error_d, 0), tl.sum(power_d, 0)
    e_o, t_o = tl.sum(tl.sum(error_o, 1), 0), tl.sum(tl.sum(power_o, 1), 0)
    sums_out += 4 * tl.program_id(0).to(tl.int64)
    tl.store(sums_out, e_d)
    tl.store(sums_out + 1, e_o)
    tl.store(sums_out + 2, t_d)
    tl.store(sums_out + 3, t_o)
    if FINISH:
        value = nmse_value(e_d, e_o, t_d, t_o, lam_diag, lam_off, eps, dtype)
        tl.store(nmse_out + scene, value)


@triton.jit
def nmse_finish_kernel(
    parts,  # [B, bands, 4]
    nmse_out, sums_out,  # [B], [B, 4]
    lam_diag: tl.float64, lam_off: tl.float64, eps: tl.float64, bands,
    BANDS: tl.constexpr,
):  # fmt: skip
    """Add the bands of a scene; grid (B)."""
    dtype: tl.constexpr = parts.dtype.element_ty
    scene = tl.program_id(0).to(tl.int64)
    band = tl.arange(0, BANDS)
    at = parts + 4 * (scene * bands + band)
    e_d = tl.sum(tl.load(at, mask=band < bands, other=0.0), 0)
    e_o = tl.sum(tl.load(at + 1, mask=band < bands, other=0.0), 0)
    t_d = tl.sum(tl.load(at + 2, mask=band < bands, other=0.0), 0)
    t_o = tl.sum(tl.load(at + 3, mask=band < bands, other=0.0), 0)
    sums_out += 4 * scene
    tl.store(sums_out, e_d)
    tl.store(sums_out + 1, e_o)
    tl.store(sums_out + 2, t_d)
    tl.store(sums_out + 3, t_o)
    value = nmse_value(e_d, e_o, t_d, t_o, lam_diag, lam_off, eps, dtype)
    tl.store(nmse_out + scene, value)


@triton.jit
def nmse_gradient_kernel(
    grad, grad_stride,  # [B] real
    estimate, e_stride, target, t_stride,  # [B, N, N] as real pairs
    sums, sums_stride,  # [B, 4]
    mask, mask_stride,
    estimate_grad, target_grad,  # [B, N, N], only where needed
    lam_diag: tl.float64, lam_off: tl.float64, eps: tl.float64, elements, bands,
    NEED_ESTIMATE: tl.constexpr, NEED_TARGET: tl.constexpr,
    MASKED: tl.constexpr, E_CONTIGUOUS: tl.constexpr, T_CONTIGUOUS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Both gradients of a band of ROWS rows; grid (B * bands)."""
    dtype: tl.constexpr = estimate.dtype.element_ty
    scene = (tl.program_id(0) // bands).to(tl.int64)
    estimate += 2 * scene * e_stride[0]
    target += 2 * scene * t_stride[0]
    mask += scene * mask_stride[0]
    sums += scene * sums_stride[0]
    eps = tl.full((), eps, dtype)
    power_d = tl.load(sums + 2 * sums_stride[1]) + eps
    power_o = tl.load(sums + 3 * sums_stride[1]) + eps
    twice = 2 * tl.load(grad + scene * grad_stride[0])
    scale_d = twice * tl.full((), lam_diag, dtype) / power_d
    scale_o = twice * tl.full((), lam_off, dtype) / power_o
    ratio_d = scale_d * tl.load(sums) / power_d
    ratio_o = scale_o * tl.load(sums + sums_stride[1]) / power_o
    i = (tl.program_id(0) % bands) * ROWS + tl.arange(0, ROWS)
    keep_i = kept(mask, mask_stride[1], i, elements, MASKED)
    wide = i.to(tl.int64)
    for start in range(0, 2 * elements, COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        keep = keep_i[:, None] & kept_columns(mask, mask_stride[1], k, elements, MASKED)[None, :]
        e_at = (
            2 * wide[:, None] * e_stride[1]
            + (column_offsets(k, e_stride[2], E_CONTIGUOUS)[None, :])
        )
        t_at = (
            2 * wide[:, None] * t_stride[1]
            + (column_offsets(k, t_stride[2], T_CONTIGUOUS)[None, :])
        )
        t = tl.load(target + t_at, mask=keep, other=0.0)
        e = tl.load(estimate + e_at, mask=keep, other=0.0) - t
        diagonal = i[:, None] == (k // 2)[None, :]
        # Blanked, not multiplied by zero: the scale of an empty part may be 0 / 0.
        slope = tl.where(keep, tl.where(diagonal, scale_d, scale_o) * e, 0.0)
        out = 2 * (scene * elements + wide)[:, None] * elements + k.to(tl.int64)[None, :]
        inside = (i < elements)[:, None] & (k < 2 * elements)[None, :]
        if NEED_ESTIMATE:
            tl.store(estimate_grad + out, slope, mask=inside)
        if NEED_TARGET:
            pull = tl.where(keep, tl.where(diagonal, ratio_d, ratio_o) * t, 0.0)
            tl.store(target_grad + out, -(slope + pull), mask=inside)


def _operand(matrix: Tensor) -> tuple[Tensor, tuple[int, ...], bool]:
    """Real pairs, strides in entries, and whether the entries of a row are adjacent."""
    matrix = matrix.resolve_conj().resolve_neg()
    return pairs(matrix), matrix.stride(), matrix.stride(2) == 1


def _mask_operand(element_mask: Tensor | None, like: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Bytes and strides [b, n] of the mask; ``like`` stands in for one that is not there."""
    if element_mask is None:
        return like, (0, 0)
    stride = element_mask.stride()
    return element_mask.view(torch.uint8), stride if len(stride) == 2 else (0, *stride)


def hermitian_nmse_forward(
    estimate: Tensor,
    target: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The NMSE [B] and its sums [B, 4] = (e_D, e_O, t_D, t_O)."""
    check_nmse("hermitian_nmse", estimate, target, lam_diag, lam_off, eps, element_mask)
    scenes, elements, _ = estimate.shape
    real = estimate.dtype.to_real()
    nmse = torch.empty((scenes,), dtype=real, device=estimate.device)
    sums = torch.empty((scenes, 4), dtype=real, device=estimate.device)
    if scenes == 0:
        return nmse, sums
    whole = elements * elements <= WHOLE_SCENE or scenes >= ENOUGH_SCENES
    height = elements if whole else ROWS
    bands = blocks(elements, height)
    parts = sums if whole else sums.new_empty((scenes, bands, 4))
    total = lam_diag + lam_off
    weights = (lam_diag / total, lam_off / total, eps)
    e_pairs, e_stride, e_contiguous = _operand(estimate)
    t_pairs, t_stride, t_contiguous = _operand(target)
    mask, mask_stride = _mask_operand(element_mask, e_pairs)
    with on_device(estimate):
        nmse_sums_kernel[(scenes * bands,)](
            e_pairs, e_stride, t_pairs, t_stride, mask, mask_stride, nmse, parts,
            *weights, elements, height, bands,
            MASKED=element_mask is not None, E_CONTIGUOUS=e_contiguous, T_CONTIGUOUS=t_contiguous,
            FINISH=whole, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4, **OPTIONS,
        )  # fmt: skip
        if not whole:
            nmse_finish_kernel[(scenes,)](
                parts, nmse, sums, *weights, bands,
                BANDS=triton.next_power_of_2(bands), num_warps=1, **OPTIONS,
            )  # fmt: skip
    return nmse, sums


def hermitian_nmse_backward(
    grad: Tensor,
    estimate: Tensor,
    target: Tensor,
    sums: Tensor,
    element_mask: Tensor | None,
    lam_diag: float,
    lam_off: float,
    eps: float,
    *,
    need_estimate: bool = True,
    need_target: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gradients to estimate and target; one that is not needed comes back empty."""
    op = "hermitian_nmse_backward"
    check_nmse(op, estimate, target, lam_diag, lam_off, eps, element_mask)
    scenes, elements, _ = estimate.shape
    check_grad_real(op, "grad", grad, (scenes,), estimate)
    check_grad_real(op, "sums", sums, (scenes, 4), estimate)
    estimate_grad, target_grad = (
        torch.empty(
            estimate.shape if needed else (0,), dtype=estimate.dtype, device=estimate.device
        )
        for needed in (need_estimate, need_target)
    )
    if scenes == 0 or not (need_estimate or need_target):
        return estimate_grad, target_grad
    bands = blocks(elements, ROWS)
    total = lam_diag + lam_off
    e_pairs, e_stride, e_contiguous = _operand(estimate)
    t_pairs, t_stride, t_contiguous = _operand(target)
    mask, mask_stride = _mask_operand(element_mask, e_pairs)
    with on_device(estimate):
        nmse_gradient_kernel[(scenes * bands,)](
            grad.resolve_neg(), grad.stride(), e_pairs, e_stride, t_pairs, t_stride,
            sums, sums.stride(), mask, mask_stride, pairs(estimate_grad), pairs(target_grad),
            lam_diag / total, lam_off / total, eps, elements, bands,
            NEED_ESTIMATE=need_estimate, NEED_TARGET=need_target, MASKED=element_mask is not None,
            E_CONTIGUOUS=e_contiguous, T_CONTIGUOUS=t_contiguous, ROWS=ROWS, COLUMNS=COLUMNS,
            num_warps=4, **OPTIONS,
        )  # fmt: skip
    return estimate_grad, target_grad
