# SPDX-License-Identifier: Apache-2.0
r"""Subspace leakage of R = X X^H + rho I without an N x N matrix, in plain PyTorch.

X [N, r]; S [N, k] are the true steering vectors, the columns from num_sources on zeroed. With
P = S (S^H S + ridge I)^{-1} S^H and P_perp = I - P,

    leakage = |P_perp R P_perp|^2 / |R|^2,    P_perp^2 = I - Q Q^H,    Q Q^H = 2 P - P^2,

and Q = S T with the k x k matrix T of ``subspace_leakage``. Every trace that is needed is one of
k x k and r x r matrices: with G_xx = X^H X,

    C = Q^H X = T^H (S^H X),   D = Q^H Q = T^H (S^H S) T,   U = Q^H R Q = C C^H + rho D,
    t = |R|^2 = |G_xx|^2 + 2 rho tr G_xx + rho^2 N,
    |Q^H R|^2 = tr(C G_xx C^H) + 2 rho |C|^2 + rho^2 tr D,
    leakage = max(0, t - 2 |Q^H R|^2 + |U|^2) / t,    0 where t = 0.

Backward. For g = dL/dleakage, dL/dR = (2 g / t) ((1 - leakage) R - 2 Q Q^H R + Q U Q^H), whose
Hermitian part acts on X and whose trace acts on rho:

    dL/dX = X M_1 + S M_2,
    M_1 = (4 g / t) ((1 - leakage) (G_xx + rho I) - C^H C),
    M_2 = (4 g / t) T (U C - C G_xx - 2 rho C),
    dL/drho = (g / t) (2 (1 - leakage) (tr G_xx + rho N) - 4 tr U + 2 Re tr(U D)).

The steering vectors are the truth: no gradient is defined for them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riskernels.reference.factored_nmse import joint_gram, square_norm
from riskernels.reference.subspace_leakage import leakage_transform, masked_steering
from riskernels.reference.tikhonov_snapshots import adjoint


class Projection(NamedTuple):
    """The small matrices of a scene, complex128."""

    gram: Tensor
    """[B, r, r] G_xx."""
    transform: Tensor
    """[B, k, k] T."""
    coupling: Tensor
    """[B, k, r] C."""
    basis_gram: Tensor
    """[B, k, k] D."""
    inner: Tensor
    """[B, k, k] U."""
    loading: Tensor
    """[B] rho, float64."""


def trace(x: Tensor) -> Tensor:
    """[B] real parts of the traces."""
    return x.diagonal(dim1=-2, dim2=-1).real.sum(-1)


def _project(
    gram: Tensor, r: int, num_sources: Tensor, rho: Tensor | None, ridge: float
) -> Projection:
    gram_xx, gram_sx, gram_ss = gram[:, :r, :r], gram[:, r:, :r], gram[:, r:, r:]
    transform = leakage_transform(gram_ss, num_sources, ridge)
    coupling = adjoint(transform) @ gram_sx
    basis_gram = adjoint(transform) @ gram_ss @ transform
    loading = torch.zeros_like(gram[:, 0, 0].real) if rho is None else rho.double()
    inner = coupling @ adjoint(coupling) + loading[:, None, None] * basis_gram
    return Projection(gram_xx, transform, coupling, basis_gram, inner, loading)


def _total(p: Projection, elements: int) -> Tensor:
    """t = |R|^2, [B]."""
    return (
        square_norm(p.gram, (1, 2)) + 2 * p.loading * trace(p.gram) + p.loading.square() * elements
    )


def factored_leakage_forward(
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    ridge: float,
) -> tuple[Tensor, Tensor]:
    """The leakage [B] and the Gram matrix of [X, S]."""
    gram = joint_gram(factor, masked_steering(steering, num_sources))
    p = _project(gram, factor.shape[2], num_sources, rho, ridge)
    total = _total(p, factor.shape[1])
    projected = (
        trace(p.coupling @ p.gram @ adjoint(p.coupling))
        + 2 * p.loading * square_norm(p.coupling, (1, 2))
        + p.loading.square() * trace(p.basis_gram)
    )
    outside = (total - 2 * projected + square_norm(p.inner, (1, 2))).clamp(min=0)
    leakage = torch.where(total == 0, torch.zeros_like(total), outside / total)
    return leakage.to(factor.dtype.to_real()), gram


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
    n, r = factor.shape[1:]
    real = factor.dtype.to_real()
    p = _project(gram, r, num_sources, rho, ridge)
    total = _total(p, n)
    empty = total == 0
    scale = grad.double() / torch.where(empty, torch.ones_like(total), total)
    scale = torch.where(empty, torch.zeros_like(scale), scale)
    rest = 1 - leakage.double()
    grad_factor, grad_rho = factor.new_empty(0), factor.new_empty(0, dtype=real)
    if need_factor:
        identity = torch.eye(r, dtype=gram.dtype, device=gram.device)
        loaded = p.gram + p.loading[:, None, None] * identity
        on_factor = rest[:, None, None] * loaded - adjoint(p.coupling) @ p.coupling
        on_steering = p.transform @ (
            p.inner @ p.coupling - p.coupling @ p.gram - 2 * p.loading[:, None, None] * p.coupling
        )
        at_scene = 4 * scale[:, None, None]
        grad_factor = factor @ (at_scene * on_factor).to(factor.dtype)
        kept = masked_steering(steering, num_sources).to(factor.dtype)
        grad_factor = grad_factor + kept @ (at_scene * on_steering).to(factor.dtype)
    if need_rho:
        spread = 2 * rest * (trace(p.gram) + p.loading * n)
        grad_rho = (scale * (spread - 4 * trace(p.inner) + 2 * trace(p.inner @ p.basis_gram))).to(
            real
        )
    return grad_factor, grad_rho
