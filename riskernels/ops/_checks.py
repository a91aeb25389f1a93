# SPDX-License-Identifier: Apache-2.0
"""Input checks of the Python implementations; the native libraries make the same ones.

Every message names the operator, what it got, what it expects.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COMPLEX_DTYPES = (torch.complex64, torch.complex128)


def _fail(op: str, message: str) -> None:
    raise RuntimeError(f"riskernels::{op}: {message}")


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def check_complex(op: str, name: str, tensor: Tensor, like: Tensor | None = None) -> None:
    """Complex dtype, and the dtype and device of ``like``."""
    if tensor.dtype not in COMPLEX_DTYPES:
        _fail(op, f"{name} has dtype {tensor.dtype}, expected complex64 or complex128")
    if like is None:
        return
    if tensor.dtype != like.dtype:
        _fail(op, f"{name} has dtype {tensor.dtype}, expected {like.dtype} as the first argument")
    if tensor.device != like.device:
        _fail(op, f"{name} is on {tensor.device}, expected {like.device} as the first argument")


def check_tikhonov(op: str, y: Tensor, h: Tensor, codes: Tensor, alpha: float) -> None:
    """y [B, L, M], h [B, M, N] or [B, L, M, N], codes [B, L, N], alpha > 0."""
    check_complex(op, "y", y)
    check_complex(op, "h", h, y)
    check_complex(op, "codes", codes, y)
    if y.dim() != 3:
        _fail(op, f"y has shape {_shape(y)}, expected [B, L, M]")
    if h.dim() not in (3, 4):
        _fail(op, f"h has shape {_shape(h)}, expected [B, M, N] or [B, L, M, N]")
    if codes.dim() != 3:
        _fail(op, f"codes has shape {_shape(codes)}, expected [B, L, N]")
    b, snapshots, m = y.shape
    n = codes.shape[2]
    expected = (b, m, n) if h.dim() == 3 else (b, snapshots, m, n)
    if tuple(codes.shape[:2]) != (b, snapshots) or tuple(h.shape) != expected:
        _fail(
            op,
            f"sizes disagree: y {_shape(y)}, h {_shape(h)}, codes {_shape(codes)}, expected "
            "y [B, L, M], h [B, M, N] or [B, L, M, N], codes [B, L, N]",
        )
    if snapshots < 1 or m < 1 or n < 1:
        _fail(op, f"L, M and N must be at least 1, got L={snapshots}, M={m}, N={n}")
    limits = torch.finfo(y.dtype.to_real())
    if not limits.smallest_normal <= alpha <= limits.max:
        _fail(op, f"alpha is {alpha:g}, expected a finite number > 0 (in units of |Phi|^2)")


def check_grad(op: str, grad: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """The incoming gradient has the shape, dtype and device of the forward's output."""
    check_complex(op, "grad", grad, like)
    if tuple(grad.shape) != shape:
        _fail(op, f"grad has shape {_shape(grad)}, expected {list(shape)}")


def check_nmse_options(
    op: str, lam_diag: float, lam_off: float, eps: float, element_mask: Tensor | None, like: Tensor
) -> None:
    """Weights not both zero, element_mask [N] or [B, N] bool, for ``like`` [B, N, ...]."""
    for name, value in (("lam_diag", lam_diag), ("lam_off", lam_off), ("eps", eps)):
        if not (math.isfinite(value) and value >= 0):
            _fail(op, f"{name} is {value:g}, expected a finite number >= 0")
    if lam_diag + lam_off <= 0:
        _fail(op, "lam_diag + lam_off is 0, expected at least one weight > 0")
    if element_mask is None:
        return
    b, n = like.shape[:2]
    if element_mask.dtype != torch.bool:
        _fail(op, f"element_mask has dtype {element_mask.dtype}, expected torch.bool")
    if tuple(element_mask.shape) not in ((n,), (b, n)):
        _fail(op, f"element_mask has shape {_shape(element_mask)}, expected [{n}] or [{b}, {n}]")
    if element_mask.device != like.device:
        _fail(op, f"element_mask is on {element_mask.device}, expected {like.device}")


def check_nmse(
    op: str,
    estimate: Tensor,
    target: Tensor,
    lam_diag: float,
    lam_off: float,
    eps: float,
    element_mask: Tensor | None,
) -> None:
    """estimate and target [B, N, N], weights not both zero, element_mask [N] or [B, N] bool."""
    check_complex(op, "estimate", estimate)
    check_complex(op, "target", target, estimate)
    if estimate.dim() != 3 or estimate.shape[1] != estimate.shape[2]:
        _fail(op, f"estimate has shape {_shape(estimate)}, expected [B, N, N]")
    if target.shape != estimate.shape:
        _fail(op, f"target has shape {_shape(target)}, expected {_shape(estimate)} as estimate")
    if estimate.shape[1] < 1:
        _fail(op, "N must be at least 1, got N=0")
    check_nmse_options(op, lam_diag, lam_off, eps, element_mask, estimate)


def check_companion(
    op: str, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], like: Tensor
) -> None:
    """A tensor of the given dtype and shape on the device of ``like``."""
    if tensor.dtype != dtype:
        _fail(op, f"{name} has dtype {tensor.dtype}, expected {dtype}")
    if tensor.device != like.device:
        _fail(op, f"{name} is on {tensor.device}, expected {like.device}")
    if tuple(tensor.shape) != shape:
        _fail(op, f"{name} has shape {_shape(tensor)}, expected {list(shape)}")


def check_grad_real(
    op: str, name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor
) -> None:
    """A real tensor of the precision and device of the complex ``like``."""
    check_companion(op, name, tensor, like.dtype.to_real(), shape, like)
