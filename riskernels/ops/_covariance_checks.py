# SPDX-License-Identifier: Apache-2.0
"""Input checks of the operators on dense covariances; the native libraries make the same ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riskernels.ops._checks import _fail, _shape, check_complex


def _check_square(op: str, name: str, matrix: Tensor) -> None:
    if matrix.dim() != 3 or matrix.shape[1] != matrix.shape[2]:
        _fail(op, f"{name} has shape {_shape(matrix)}, expected [B, N, N]")


def check_blend_options(
    op: str, beta: float, target_trace: float | None, loading: float, shrinkage: float
) -> None:
    """beta and shrinkage in [0, 1], loading >= 0, target_trace > 0 or None; all finite."""
    for name, value in (("beta", beta), ("shrinkage", shrinkage)):
        if not 0 <= value <= 1:
            _fail(op, f"{name} is {value:g}, expected a number from 0 to 1")
    if not (math.isfinite(loading) and loading >= 0):
        _fail(op, f"loading is {loading:g}, expected a finite number >= 0")
    if target_trace is not None and not (math.isfinite(target_trace) and target_trace > 0):
        _fail(op, f"target_trace is {target_trace:g}, expected a finite number > 0 or None for N")


def check_blend(
    op: str,
    pred: Tensor,
    samp: Tensor,
    beta: float,
    target_trace: float | None,
    loading: float,
    shrinkage: float,
) -> None:
    """pred and samp [B, N, N], and the options of the blend."""
    check_complex(op, "pred", pred)
    check_complex(op, "samp", samp, pred)
    _check_square(op, "pred", pred)
    if samp.shape != pred.shape:
        _fail(op, f"samp has shape {_shape(samp)}, expected {_shape(pred)} as pred")
    if pred.shape[1] < 1:
        _fail(op, "N must be at least 1, got N=0")
    check_blend_options(op, beta, target_trace, loading, shrinkage)


def check_num_sources(op: str, num_sources: Tensor, scenes: int, like: Tensor) -> None:
    """num_sources [B] int64 on the device of ``like``; its values are clamped, never read here."""
    if num_sources.dtype != torch.int64:
        _fail(op, f"num_sources has dtype {num_sources.dtype}, expected torch.int64")
    if num_sources.device != like.device:
        _fail(op, f"num_sources is on {num_sources.device}, expected {like.device}")
    if tuple(num_sources.shape) != (scenes,):
        _fail(op, f"num_sources has shape {_shape(num_sources)}, expected [{scenes}]")


def check_ridge(op: str, ridge: float) -> None:
    """A ridge that is finite and > 0."""
    if not (math.isfinite(ridge) and ridge > 0):
        _fail(op, f"ridge is {ridge:g}, expected a finite number > 0")


def check_leakage(
    op: str, cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float
) -> None:
    """cov [B, N, N], steering [B, N, K], num_sources [B] int64, ridge > 0."""
    check_complex(op, "cov", cov)
    check_complex(op, "steering", steering, cov)
    _check_square(op, "cov", cov)
    b, n, _ = cov.shape
    if steering.dim() != 3 or tuple(steering.shape[:2]) != (b, n):
        _fail(op, f"steering has shape {_shape(steering)}, expected [{b}, {n}, K] as cov")
    if n < 1 or steering.shape[2] < 1:
        _fail(op, f"N and K must be at least 1, got N={n}, K={steering.shape[2]}")
    check_num_sources(op, num_sources, b, cov)
    check_ridge(op, ridge)


def check_leakage_state(op: str, cov: Tensor, basis: Tensor, projected: Tensor) -> None:
    """cov [B, N, N], basis [B, N, K] and projected [B, K, N] of the forward."""
    check_complex(op, "cov", cov)
    check_complex(op, "basis", basis, cov)
    check_complex(op, "projected", projected, cov)
    _check_square(op, "cov", cov)
    b, n, _ = cov.shape
    if basis.dim() != 3 or tuple(basis.shape[:2]) != (b, n):
        _fail(op, f"basis has shape {_shape(basis)}, expected [{b}, {n}, K] as cov")
    k = basis.shape[2]
    if n < 1 or k < 1:
        _fail(op, f"N and K must be at least 1, got N={n}, K={k}")
    if tuple(projected.shape) != (b, k, n):
        _fail(op, f"projected has shape {_shape(projected)}, expected [{b}, {k}, {n}]")
