# SPDX-License-Identifier: Apache-2.0
"""Comparison of a result with a reference of higher precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """How far ``actual`` is from ``reference``."""

    relative: float
    """|actual - reference| / |reference| (Frobenius); the absolute norm where reference is 0."""
    cosine: float
    """Re<actual, reference> / (|actual| |reference|): 1 where only the scale is wrong."""
    bias: float
    """|actual| / |reference| - 1: 0 where only the direction is wrong."""
    finite: bool

    def __str__(self) -> str:
        return (
            f"relative error {self.relative:.3e}, 1 - cosine {1 - self.cosine:.3e}, "
            f"bias {self.bias:+.3e}, finite {self.finite}"
        )


def compare(actual: Tensor, reference: Tensor) -> Comparison:
    """Compare in the precision of the reference.

    Example:
        >>> compare(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])).relative
        0.0
    """
    if actual.shape != reference.shape:
        raise AssertionError(f"shape {list(actual.shape)}, expected {list(reference.shape)}")
    got, want = (x.detach().to(torch.complex128).reshape(-1).cpu() for x in (actual, reference))
    finite = bool(torch.isfinite(torch.view_as_real(got.resolve_conj())).all())
    error, scale, size = (float(x.norm()) for x in (got - want, want, got))
    if scale == 0.0:
        return Comparison(error, 1.0 if size == 0.0 else 0.0, size, finite)
    inner = float((want.conj() * got).real.sum())
    cosine = inner / (scale * size) if size > 0 else 0.0
    return Comparison(error / scale, cosine, size / scale - 1, finite)


def assert_close(actual: Tensor, reference: Tensor, tolerance: float, what: str = "") -> None:
    """Raise AssertionError unless the relative error is finite and at most ``tolerance``."""
    result = compare(actual, reference)
    # Written so that NaN fails.
    if not (result.finite and result.relative <= tolerance):
        raise AssertionError(f"{what or 'result'}: {result}, tolerance {tolerance:.1e}")


def tolerance(dtype: torch.dtype, condition: float = 1.0, constant: float = 32.0) -> float:
    """c eps cond: what backward-stable arithmetic in ``dtype`` may lose.

    Args:
        dtype: complex64 or complex128.
        condition: condition number of the system that is solved, at least 1.
        constant: c, which covers the growth of rounding errors with the sizes in use.
    """
    return constant * torch.finfo(dtype.to_real()).eps * max(condition, 1.0)
