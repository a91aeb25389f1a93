# SPDX-License-Identifier: Apache-2.0
"""Input checks of the operators on factored covariances R = X X^H + rho I.

csrc/common/factored_inputs.hpp and spectrum_inputs.hpp make the same ones, in the same words.
"""

from __future__ import annotations

from torch import Tensor

from riskernels.ops._checks import _fail, _shape, check_complex, check_grad_real, check_nmse_options
from riskernels.ops._covariance_checks import (
    check_blend_options,
    check_num_sources,
    check_ridge,
)


def check_factor(
    op: str, name: str, tensor: Tensor, columns: str, like: Tensor | None = None
) -> None:
    """A factor [B, N, columns], with the B, N, dtype and device of ``like``."""
    check_complex(op, name, tensor, like)
    if tensor.dim() != 3:
        _fail(op, f"{name} has shape {_shape(tensor)}, expected [B, N, {columns}]")
    if like is not None and tuple(tensor.shape[:2]) != tuple(like.shape[:2]):
        b, n = like.shape[:2]
        _fail(op, f"{name} has shape {_shape(tensor)}, expected [{b}, {n}, {columns}]")
    if tensor.shape[1] < 1 or tensor.shape[2] < 1:
        n, k = tensor.shape[1:]
        _fail(op, f"N and {columns} must be at least 1, got N={n}, {columns}={k}")


def check_rho(op: str, rho: Tensor | None, factor: Tensor) -> None:
    """rho [B] real, or None for 0."""
    if rho is not None:
        check_grad_real(op, "rho", rho, (factor.shape[0],), factor)


def check_factored_blend(
    op: str,
    factor: Tensor,
    snapshots: Tensor,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> None:
    """factor [B, N, K], snapshots [B, L, N], the options of the blend."""
    check_complex(op, "factor", factor)
    check_complex(op, "snapshots", snapshots, factor)
    check_factor(op, "factor", factor, "K")
    b, n = factor.shape[:2]
    if snapshots.dim() != 3 or snapshots.shape[0] != b or snapshots.shape[2] != n:
        _fail(op, f"snapshots has shape {_shape(snapshots)}, expected [{b}, L, {n}]")
    if snapshots.shape[1] < 1:
        _fail(op, "L must be at least 1, got L=0")
    check_blend_options(op, beta, target_trace, loading, shrinkage)


def check_factored_nmse(
    op: str,
    factor: Tensor,
    rho: Tensor | None,
    target_factor: Tensor,
    lam_diag: float,
    lam_off: float,
    eps: float,
    element_mask: Tensor | None,
) -> None:
    """factor [B, N, r], target_factor [B, N, k], rho [B], weights, element_mask [N] or [B, N]."""
    check_factor(op, "factor", factor, "r")
    check_factor(op, "target_factor", target_factor, "k", factor)
    check_rho(op, rho, factor)
    check_nmse_options(op, lam_diag, lam_off, eps, element_mask, factor)


def check_factored_leakage(
    op: str,
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    ridge: float,
) -> None:
    """factor [B, N, r], steering [B, N, k], rho [B], num_sources [B] int64, ridge > 0."""
    check_factor(op, "factor", factor, "r")
    check_factor(op, "steering", steering, "k", factor)
    check_rho(op, rho, factor)
    check_num_sources(op, num_sources, factor.shape[0], factor)
    check_ridge(op, ridge)


def check_factored_spectrum(op: str, factor: Tensor, rho: Tensor | None) -> None:
    """factor [B, N, r], rho [B] real or None."""
    check_factor(op, "factor", factor, "r")
    check_rho(op, rho, factor)


def check_factored_spectrum_backward(
    op: str, grad: Tensor, factor: Tensor, vectors: Tensor
) -> None:
    """grad [B, r] real and vectors [B, r, r] in the dtype of factor [B, N, r]."""
    check_factored_spectrum(op, factor, None)
    b, _, r = factor.shape
    check_grad_real(op, "grad", grad, (b, r), factor)
    check_complex(op, "vectors", vectors, factor)
    if tuple(vectors.shape) != (b, r, r):
        _fail(op, f"vectors has shape {_shape(vectors)}, expected {[b, r, r]}")
