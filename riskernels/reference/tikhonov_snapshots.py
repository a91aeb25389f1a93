# SPDX-License-Identifier: Apache-2.0
r"""Per-snapshot Tikhonov estimates, in plain PyTorch.

Forward. With Phi = H diag(c) in C^{M x N}, the regularised least-squares estimate is

    a = (Phi^H Phi + alpha I_N)^{-1} Phi^H y = Phi^H (Phi Phi^H + alpha I_M)^{-1} y.

The second form (push-through identity) solves M x M instead of N x N. Its matrix S = Phi Phi^H +
alpha I has no eigenvalue below alpha, hence no Cholesky pivot below alpha either: clamping the
pivots at alpha changes nothing in exact arithmetic. In floating point the Schur complements carry
noise of a few eps max(S_mm); where alpha is below that (M > N and |Phi|^2 / alpha beyond 1 / eps),
noise divided by the root of a smaller pivot would grow from column to column until it overflows.
The floor is therefore max(alpha, 8 M eps max(S_mm)). Noise beyond that floor would still be
squared at every column. But a Schur complement C is positive semidefinite, |C_ij|^2 <= C_ii C_jj,
so where alpha is below the noise a pivot is also raised to max_i |C_ij|^2 / C_ii. Neither changes
anything in exact arithmetic and finite input cannot produce NaN; but such an S has lost alpha to
rounding, and a is then finite and not accurate.

Backward. Let z = S^{-1} y, so a = Phi^H z, and let g = dL/da (PyTorch's convention, dL/dRe +
i dL/dIm). With w = S^{-1} Phi g and q = g - Phi^H w,

    dL/dy = w,    dL/dPhi = z q^H - w a^H,    dL/dalpha = -Re(w^H z).

Phi_mn = H_mn c_n gives dL/dH_mn = dL/dPhi_mn conj(c_n) and dL/dc_n = sum_m conj(H_mn) dL/dPhi_mn
= conj(q_n) (H^H z)_n - conj(a_n) (H^H w)_n. A relative alpha_l = alpha |Phi_l|_F^2 / N adds
2 (alpha / N) (dL/dalpha_l) Phi_l to dL/dPhi_l.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Solution(NamedTuple):
    """What the forward computes, and the backward recomputes."""

    phi: Tensor
    """[B, L, M, N] effective channel Phi = H diag(c)."""
    factor: Tensor
    """[B, L, M, M] lower Cholesky factor of S = Phi Phi^H + alpha I."""
    z: Tensor
    """[B, L, M] S^{-1} y."""
    a: Tensor
    """[B, L, N] the estimates."""


def conjugate(x: Tensor) -> Tensor:
    """Complex conjugate, computed at once.

    A reference can run inside a dispatch mode, below the key that resolves lazy conjugation.
    """
    return torch.conj_physical(x)


def adjoint(x: Tensor) -> Tensor:
    """Conjugate transpose of the last two dimensions."""
    return conjugate(x.mT)


def per_snapshot(h: Tensor) -> Tensor:
    """h as [B, L or 1, M, N]."""
    return h if h.dim() == 4 else h.unsqueeze(1)


def cholesky_with_floor(s: Tensor, loading: Tensor) -> Tensor:
    """Lower Cholesky factor of [..., M, M] with loading [...] on its diagonal, pivots clamped."""
    work = s.clone()
    diagonal = s.diagonal(dim1=-2, dim2=-1).real
    noise = 8 * s.shape[-1] * torch.finfo(s.dtype).eps * diagonal.amax(-1)
    floor = torch.maximum(loading, noise)
    for j in range(s.shape[-1]):
        pivot = work[..., j, j].real
        pivot = torch.where(pivot < floor, floor, pivot)
        if j + 1 < s.shape[-1]:
            below = work[..., j + 1 :, j].abs().square()
            own = work.diagonal(dim1=-2, dim2=-1).real[..., j + 1 :]
            needed = (below / torch.maximum(own, floor.unsqueeze(-1))).amax(-1)
            pivot = torch.where(noise > loading, torch.maximum(pivot, needed), pivot)
        root = pivot.sqrt()
        work[..., j, j] = root.to(s.dtype)
        column = work[..., j + 1 :, j] / root.unsqueeze(-1)
        work[..., j + 1 :, j] = column
        work[..., j + 1 :, j + 1 :] -= column.unsqueeze(-1) * conjugate(column).unsqueeze(-2)
    return work.tril()


def cholesky_apply(factor: Tensor, rhs: Tensor) -> Tensor:
    """S^{-1} rhs for rhs [..., M] and the factor of S."""
    half = torch.linalg.solve_triangular(factor, rhs.unsqueeze(-1), upper=False)
    solution: Tensor = torch.linalg.solve_triangular(adjoint(factor), half, upper=True)
    return solution.squeeze(-1)


def solve(y: Tensor, h: Tensor, codes: Tensor, alpha: float, relative: bool) -> Solution:
    """Factor S and estimate every snapshot."""
    phi = per_snapshot(h) * codes.unsqueeze(-2)
    loading = torch.full(y.shape[:2], alpha, dtype=y.real.dtype, device=y.device)
    if relative:
        energy = phi.abs().square().sum((-2, -1)) / phi.shape[-1]
        # Where Phi = 0 the estimate is 0 whatever S is. Elsewhere the product may underflow.
        smallest = torch.finfo(loading.dtype).smallest_normal
        loading = torch.where(energy == 0, 1.0, (loading * energy).clamp_min(smallest))
    s = phi @ adjoint(phi)
    s.diagonal(dim1=-2, dim2=-1).add_(loading.unsqueeze(-1))
    factor = cholesky_with_floor(s, loading)
    z = cholesky_apply(factor, y)
    return Solution(phi, factor, z, (adjoint(phi) @ z.unsqueeze(-1)).squeeze(-1))


def solve_backward(
    grad_a: Tensor,
    solution: Solution,
    h: Tensor,
    codes: Tensor,
    alpha: float,
    relative: bool,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to y, h and codes from the gradient to the estimates; unneeded ones are empty."""
    need_y, need_h, need_codes = need
    phi, factor, z, a = solution
    w = cholesky_apply(factor, (phi @ grad_a.unsqueeze(-1)).squeeze(-1))
    q = grad_a - (adjoint(phi) @ w.unsqueeze(-1)).squeeze(-1)
    grad_phi = z.unsqueeze(-1) * conjugate(q).unsqueeze(-2)
    grad_phi = grad_phi - w.unsqueeze(-1) * conjugate(a).unsqueeze(-2)
    if relative:
        grad_loading = -(conjugate(w) * z).real.sum(-1)
        scale = 2.0 * alpha / phi.shape[-1] * grad_loading
        grad_phi = grad_phi + scale[..., None, None] * phi
    grad_h = grad_codes = empty = w.new_empty(0)
    if need_h:
        grad_h = grad_phi * conjugate(codes).unsqueeze(-2)
        grad_h = grad_h if h.dim() == 4 else grad_h.sum(1)
    if need_codes:
        grad_codes = (conjugate(per_snapshot(h)) * grad_phi).sum(-2)
    return w if need_y else empty, grad_h, grad_codes


def tikhonov_snapshots(
    y: Tensor, h: Tensor, codes: Tensor, alpha: float = 1e-3, *, relative: bool = False
) -> Tensor:
    """[B, L, N] estimates; see :func:`riskernels.tikhonov_snapshots`."""
    return solve(y, h, codes, alpha, relative).a


def tikhonov_snapshots_backward(
    grad: Tensor,
    y: Tensor,
    h: Tensor,
    codes: Tensor,
    alpha: float,
    *,
    relative: bool,
    need_y: bool = True,
    need_h: bool = True,
    need_codes: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to y, h and codes; one that is not needed comes back empty."""
    solution = solve(y, h, codes, alpha, relative)
    need = (need_y, need_h, need_codes)
    return solve_backward(grad, solution, h, codes, alpha, relative, need)
