# SPDX-License-Identifier: Apache-2.0
"""Input checks of ``factored_spectrum``; csrc/common/spectrum_inputs.hpp makes the same ones."""

from __future__ import annotations

from torch import Tensor

from riskernels.ops._checks import _fail, _shape, check_complex, check_grad_real


def check_spectrum(op: str, factor: Tensor, rho: Tensor | None) -> None:
    """factor [B, N, r], rho [B] real or None."""
    check_complex(op, "factor", factor)
    if factor.dim() != 3:
        _fail(op, f"factor has shape {_shape(factor)}, expected [B, N, r]")
    if factor.shape[1] < 1 or factor.shape[2] < 1:
        n, r = factor.shape[1:]
        _fail(op, f"N and r must be at least 1, got N={n}, r={r}")
    if rho is not None:
        check_grad_real(op, "rho", rho, (factor.shape[0],), factor)


def check_spectrum_backward(op: str, grad: Tensor, factor: Tensor, vectors: Tensor) -> None:
    """grad [B, r] real and vectors [B, r, r] in the dtype of factor [B, N, r]."""
    check_spectrum(op, factor, None)
    b, _, r = factor.shape
    check_grad_real(op, "grad", grad, (b, r), factor)
    check_complex(op, "vectors", vectors, factor)
    if tuple(vectors.shape) != (b, r, r):
        _fail(op, f"vectors has shape {_shape(vectors)}, expected {[b, r, r]}")
