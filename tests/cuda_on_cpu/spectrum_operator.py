# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of factored_spectrum as Python functions, run on the block executor.

Options of both functions: those of :mod:`cuda_on_cpu.operators`.
"""

from __future__ import annotations

from cuda_on_cpu.harness import Call
from torch import Tensor


def _call(backward: bool, factor: Tensor, options: dict[str, int]) -> Call:
    call = Call("factored_spectrum", factor.dtype, backward, **options)
    for name, size in zip(("scenes", "elements", "columns"), factor.shape, strict=True):
        call.integer(name, size)
    call.array("factor", factor)
    return call


def spectrum_forward(
    factor: Tensor, rho: Tensor | None = None, **options: int
) -> tuple[Tensor, Tensor]:
    """Values [B, r] and vectors [B, r, r]."""
    call = _call(False, factor, options)
    if rho is not None:
        call.array("rho", rho)
    scenes, _, r = factor.shape
    call.output("values", (scenes, r), factor.dtype.to_real())
    call.output("vectors", (scenes, r, r), factor.dtype)
    results = call.run()
    return results["values"], results["vectors"]


def spectrum_backward(
    grad: Tensor,
    factor: Tensor,
    vectors: Tensor,
    need: tuple[bool, bool] = (True, True),
    **options: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to factor and rho, contiguous; None where not needed."""
    call = _call(True, factor, options)
    call.array("grad", grad)
    call.array("vectors", vectors)
    if need[0]:
        call.output("grad_factor", tuple(factor.shape), factor.dtype)
    if need[1]:
        call.output("grad_rho", (factor.shape[0],), factor.dtype.to_real())
    results = call.run()
    return results.get("grad_factor"), results.get("grad_rho")
