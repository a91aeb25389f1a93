# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""Triton implementation of ``factored_leakage``: O(N c^2), and nothing of the size N x N.

Forward: the Gram matrix of [X, S], then two launches of one program per scene, for T of
:mod:`~riskernels.triton_kernels._projector` and for the algebra on both. With C = T^H G_sx,
D = T^H G_ss T and U = C C^H + rho D,

    t = |G_xx|^2 + 2 rho tr G_xx + rho^2 N,
    leakage = max(0, t - 2 (tr(C G_xx C^H) + 2 rho |C|^2 + rho^2 tr D) + |U|^2) / t.

Backward: T again, then one program per scene makes dL/drho and M [c, r] of dL/dX = [X, S] M,

    M_1 = (4 g / t) ((1 - leakage) (G_xx + rho I) - C^H C),
    M_2 = (4 g / t) T (U C - C G_xx - 2 rho C),

and a last launch multiplies. All of it is float64. More than ``MAX_SOURCES`` steering vectors do
not fit into the registers of a program: there the algebra runs in PyTorch, in complex128.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from riskernels.ops._checks import check_companion, check_grad_real
from riskernels.ops._factored_checks import check_factored_leakage
from riskernels.triton_kernels._complex import load_complex, store_complex
from riskernels.triton_kernels._gram import (
    counted_sources,
    joint_gram,
    load_joint,
    load_square,
    per_scene_operand,
    product_adjoint,
    product_complex,
)
from riskernels.triton_kernels._launch import OPTIONS, blocks, on_device, padded, pairs
from riskernels.triton_kernels._many_sources import leakage_of_gram, slopes_of_gram
from riskernels.triton_kernels._projector import MAX_SOURCES, load_corner, transforms

TILE = 16
"""Columns of X that a program of the small algebra takes at once."""
ROWS, COLUMNS, DEPTH = 32, 32, 16
"""Tile of dL/dX that a program computes, and the columns of [X, S] that enter a product at once."""


@triton.jit
def total(re, im):
    """Sum over a tile."""
    return tl.sum(tl.sum(re * re + im * im, 1), 0)


@triton.jit
def coupling(gram, transforms, j, r, k, c, KP: tl.constexpr):
    """Columns j of C = T^H G_sx, [KP, TILE]."""
    s = tl.arange(0, KP)
    # Volatile, so that it is read at every use: hoisted out of loops, it would fill the registers.
    inside = (s < k)[:, None] & (s < k)[None, :]
    own = transforms + 2 * (s[:, None] * k + s[None, :])
    tr = tl.load(own, mask=inside, other=0.0, volatile=True)
    ti = tl.load(own + 1, mask=inside, other=0.0, volatile=True)
    at = (r + s)[:, None] * c + j[None, :]
    gr, gi = load_complex(gram, at, (s < k)[:, None] & (j < r)[None, :])
    return product_adjoint(tr, ti, gr, gi)


@triton.jit
def load_gram_xx(gram, i, j, r, c):
    """Entries of G_xx, 0 outside of it."""
    at = i[:, None] * c + j[None, :]
    return load_complex(gram, at, (i < r)[:, None] & (j < r)[None, :])


@triton.jit
def inner_products(
    gram, transforms, loading, r, k, c, elements, KP: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """U, D [KP, KP], t and tr G_xx."""
    s = tl.arange(0, KP)
    tr, ti = load_square(transforms, s, s, k)
    gr, gi = load_corner(gram, r, k, c, KP)
    hr, hi = product_complex(gr, gi, tr, ti)
    dr, di = product_adjoint(tr, ti, hr, hi)
    ur, ui = loading * dr, loading * di
    energy, trace = tl.zeros([TILE, TILE], tl.float64), tl.zeros([TILE, TILE], tl.float64)
    for start in range(0, r, TILE):
        j = start + tl.arange(0, TILE)
        cr, ci = coupling(gram, transforms, j, r, k, c, KP)
        # C C^H, from the transposes
        pr, pi = product_adjoint(tl.trans(cr), -tl.trans(ci), tl.trans(cr), -tl.trans(ci))
        ur += pr
        ui += pi
        for first in range(0, r, TILE):
            i = first + tl.arange(0, TILE)
            xr, xi = load_gram_xx(gram, i, j, r, c)
            energy += xr * xr + xi * xi
            trace += tl.where(i[:, None] == j[None, :], xr, 0.0)
    of_x = tl.sum(tl.sum(trace, 1), 0)
    t = tl.sum(tl.sum(energy, 1), 0) + 2 * loading * of_x + loading * loading * elements
    return ur, ui, dr, di, t, of_x


@triton.jit
def projected_columns(
    gram, transforms, j, r, k, c, KP: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Columns j of C G_xx, [KP, TILE]."""
    re, im = tl.zeros([KP, TILE], tl.float64), tl.zeros([KP, TILE], tl.float64)
    for first in range(0, r, TILE):
        i = first + tl.arange(0, TILE)
        cr, ci = coupling(gram, transforms, i, r, k, c, KP)
        xr, xi = load_gram_xx(gram, i, j, r, c)
        pr, pi = product_complex(cr, ci, xr, xi)
        re += pr
        im += pi
    return re, im


@triton.jit
def factored_leakage_kernel(
    gram,  # [B, c, c]
    rho, rho_stride,  # [B], only where HAS_RHO
    transforms,  # [B, k, k], T
    leakage,  # [B]
    elements, r, k,
    HAS_RHO: tl.constexpr, KP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The leakage of a scene; grid (B)."""
    c = r + k
    scene = tl.program_id(0).to(tl.int64)
    gram += 2 * scene * c * c
    transforms += 2 * scene * k * k
    loading = tl.full((), 0.0, tl.float64)
    if HAS_RHO:
        loading = tl.load(rho + scene * rho_stride).to(tl.float64)
    ur, ui, dr, _di, t, _of_x = inner_products(
        gram, transforms, loading, r, k, c, elements, KP, TILE
    )
    s = tl.arange(0, KP)
    trace_d = tl.sum(tl.sum(tl.where(s[:, None] == s[None, :], dr, 0.0), 1), 0)
    outside = t + total(ur, ui) - 2 * loading * loading * trace_d
    for start in range(0, r, TILE):
        j = start + tl.arange(0, TILE)
        pr, pi = projected_columns(gram, transforms, j, r, k, c, KP, TILE)
        cr, ci = coupling(gram, transforms, j, r, k, c, KP)
        once = cr * (pr + 2 * loading * cr) + ci * (pi + 2 * loading * ci)
        outside -= 2 * tl.sum(tl.sum(once, 1), 0)
    # Written so that NaN stays.
    outside = tl.where(outside < 0, 0.0, outside)
    value = tl.where(t == 0, 0.0, outside / tl.where(t == 0, 1.0, t))
    tl.store(leakage + scene, value.to(leakage.dtype.element_ty))


@triton.jit
def factored_leakage_slopes_kernel(
    grad, grad_stride, leakage, l_stride,  # [B]
    gram,  # [B, c, c]
    rho, rho_stride,  # [B], only where HAS_RHO
    transforms,  # [B, k, k], T
    slopes,  # [B, c, r], M, only where NEED_X
    rho_grad,  # [B], only where NEED_RHO
    elements, r, k,
    HAS_RHO: tl.constexpr, NEED_X: tl.constexpr, NEED_RHO: tl.constexpr,
    KP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """M and dL/drho of a scene; grid (B)."""
    c = r + k
    scene = tl.program_id(0).to(tl.int64)
    gram += 2 * scene * c * c
    slopes += 2 * scene * c * r
    transforms += 2 * scene * k * k
    loading = tl.full((), 0.0, tl.float64)
    if HAS_RHO:
        loading = tl.load(rho + scene * rho_stride).to(tl.float64)
    ur, ui, dr, di, t, of_x = inner_products(gram, transforms, loading, r, k, c, elements, KP, TILE)
    rest = 1 - tl.load(leakage + scene * l_stride).to(tl.float64)
    scale = tl.load(grad + scene * grad_stride).to(tl.float64) / tl.where(t == 0, 1.0, t)
    scale = tl.where(t == 0, 0.0, scale)
    s = tl.arange(0, KP)
    if NEED_RHO:
        trace_u = tl.sum(tl.sum(tl.where(s[:, None] == s[None, :], ur, 0.0), 1), 0)
        # Re tr(U D) of two Hermitian matrices
        both = tl.sum(tl.sum(ur * dr + ui * di, 1), 0)
        spread = 2 * rest * (of_x + loading * elements) - 4 * trace_u + 2 * both
        tl.store(rho_grad + scene, (scale * spread).to(rho_grad.dtype.element_ty))
    if NEED_X:
        for start in range(0, r, TILE):
            j = start + tl.arange(0, TILE)
            cr, ci = coupling(gram, transforms, j, r, k, c, KP)
            pr, pi = projected_columns(gram, transforms, j, r, k, c, KP, TILE)
            hr, hi = product_complex(ur, ui, cr, ci)
            hr -= pr + 2 * loading * cr
            hi -= pi + 2 * loading * ci
            tr, ti = load_square(transforms, s, s, k)
            mr, mi = product_complex(tr, ti, hr, hi)
            at = (r + s)[:, None] * r + j[None, :]
            inside = (s < k)[:, None] & (j < r)[None, :]
            store_complex(slopes, at, 4 * scale * mr, 4 * scale * mi, inside)
            for first in range(0, r, TILE):
                i = first + tl.arange(0, TILE)
                ar, ai = coupling(gram, transforms, i, r, k, c, KP)
                br, bi = product_adjoint(ar, ai, cr, ci)
                xr, xi = load_gram_xx(gram, i, j, r, c)
                xr += tl.where(i[:, None] == j[None, :], loading, 0.0)
                store_complex(
                    slopes, i[:, None] * r + j[None, :],
                    4 * scale * (rest * xr - br), 4 * scale * (rest * xi - bi),
                    (i < r)[:, None] & (j < r)[None, :],
                )  # fmt: skip


@triton.jit
def factored_leakage_gradient_kernel(
    x, x_stride,  # [B, N, r]
    steering, s_stride,  # [B, N, k]
    num_sources, n_stride,  # [B]
    slopes,  # [B, c, r]
    x_grad,  # [B, N, r]
    elements, r, k, bands, tiles,
    ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """ROWS rows and TILE columns of [X, S] M; grid (B * bands * tiles)."""
    dtype: tl.constexpr = x.dtype.element_ty
    part = tl.program_id(0) // tiles
    scene = (part // bands).to(tl.int64)
    x += 2 * scene * x_stride[0]
    steering += 2 * scene * s_stride[0]
    slopes += 2 * scene * (r + k) * r
    end = r + counted_sources(num_sources, n_stride, scene, k)
    rows = (part % bands) * ROWS + tl.arange(0, ROWS)
    inside = rows < elements
    j = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    re, im = tl.zeros([ROWS, TILE], tl.float64), tl.zeros([ROWS, TILE], tl.float64)
    for start in range(0, end, DEPTH):
        d = start + tl.arange(0, DEPTH)
        ar, ai = load_joint(
            x, x_stride[1], x_stride[2], steering, s_stride[1], s_stride[2],
            r, end, rows, inside, d,
        )  # fmt: skip
        at = d[:, None] * r + j[None, :]
        mr, mi = load_complex(slopes, at, (d < end)[:, None] & (j < r)[None, :])
        pr, pi = product_complex(ar, ai, mr, mi)
        re += pr
        im += pi
    at = (scene * elements + rows.to(tl.int64))[:, None] * r + j[None, :]
    store_complex(x_grad, at, re.to(dtype), im.to(dtype), inside[:, None] & (j < r)[None, :])


def factored_leakage_forward(
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    ridge: float,
) -> tuple[Tensor, Tensor]:
    """The leakage [B] and the Gram matrix of [X, S]."""
    check_factored_leakage("factored_leakage", factor, rho, steering, num_sources, ridge)
    scenes, elements, r = factor.shape
    k = steering.shape[2]
    real, device = factor.dtype.to_real(), factor.device
    leakage = torch.empty((scenes,), dtype=real, device=device)
    if scenes == 0:
        return leakage, torch.empty((0, r + k, r + k), dtype=torch.complex128, device=device)
    x, s = (f.resolve_conj().resolve_neg() for f in (factor, steering))
    with on_device(factor):
        gram, _ = joint_gram(x, s, num_sources=num_sources)
        if k > MAX_SOURCES:
            return leakage_of_gram(gram, r, rho, num_sources, elements, ridge).to(real), gram
        factored_leakage_kernel[(scenes,)](
            pairs(gram), *per_scene_operand(rho, x),
            pairs(transforms(gram, r, num_sources, ridge)), leakage, elements, r, k,
            HAS_RHO=rho is not None, KP=padded(k, 16, MAX_SOURCES), TILE=TILE,
            num_warps=8, **OPTIONS,
        )  # fmt: skip
    return leakage, gram


def factored_leakage_backward(
    grad: Tensor,
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    leakage: Tensor,
    gram: Tensor,
    ridge: float,
    *,
    need_factor: bool = True,
    need_rho: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gradients to factor and rho; one that is not needed comes back empty."""
    op = "factored_leakage_backward"
    check_factored_leakage(op, factor, rho, steering, num_sources, ridge)
    scenes, elements, r = factor.shape
    k = steering.shape[2]
    for name, value in (("grad", grad), ("leakage", leakage)):
        check_grad_real(op, name, value, (scenes,), factor)
    check_companion(op, "gram", gram, torch.complex128, (scenes, r + k, r + k), factor)
    device = factor.device
    shape = factor.shape if need_factor else (0,)
    x_grad = torch.empty(shape, dtype=factor.dtype, device=device)
    rho_grad = grad.new_empty((scenes if need_rho else 0,))
    if scenes == 0 or not (need_factor or need_rho):
        return x_grad, rho_grad
    x, s = (f.resolve_conj().resolve_neg() for f in (factor, steering))
    gram = gram.contiguous().resolve_conj().resolve_neg()
    grad, leakage = grad.resolve_neg(), leakage.resolve_neg()
    with on_device(factor):
        if k > MAX_SOURCES:
            slopes, on_rho = slopes_of_gram(
                grad, leakage, gram, r, rho, num_sources, elements, ridge
            )
            rho_grad = on_rho.to(grad.dtype) if need_rho else rho_grad
        else:
            size = (scenes if need_factor else 0, r + k, r)
            slopes = torch.empty(size, dtype=torch.complex128, device=device)
            factored_leakage_slopes_kernel[(scenes,)](
                grad, grad.stride(0), leakage, leakage.stride(0), pairs(gram),
                *per_scene_operand(rho, x), pairs(transforms(gram, r, num_sources, ridge)),
                pairs(slopes), rho_grad, elements, r, k,
                HAS_RHO=rho is not None, NEED_X=need_factor, NEED_RHO=need_rho,
                KP=padded(k, 16, MAX_SOURCES), TILE=TILE, num_warps=8, **OPTIONS,
            )  # fmt: skip
        if need_factor:
            tile = padded(r, 16, COLUMNS)
            bands, tiles = blocks(elements, ROWS), blocks(r, tile)
            factored_leakage_gradient_kernel[(scenes * bands * tiles,)](
                pairs(x), x.stride(), pairs(s), s.stride(), num_sources, num_sources.stride(0),
                pairs(slopes), pairs(x_grad), elements, r, k, bands, tiles,
                ROWS=ROWS, TILE=tile, DEPTH=DEPTH, num_warps=8, num_stages=2, **OPTIONS,
            )  # fmt: skip
    return x_grad, rho_grad
