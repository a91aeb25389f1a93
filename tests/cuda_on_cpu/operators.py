# SPDX-License-Identifier: Apache-2.0
"""The operators' CUDA kernels as Python functions, run on the block executor.

Options of every function: ``seed`` of the thread order, ``multiprocessors`` and ``shared_limit`` of
the device that the host plans are made for.
"""

from __future__ import annotations

from cuda_on_cpu.harness import Call
from torch import Tensor


def _nmse_call(
    backward: bool,
    estimate: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weights: tuple[float, float, float],
    options: dict[str, int],
) -> Call:
    call = Call("hermitian_nmse", estimate.dtype, backward, **options)
    call.integer("scenes", estimate.shape[0])
    call.integer("elements", estimate.shape[1])
    call.array("estimate", estimate)
    call.array("target", target)
    if mask is not None:
        call.array("mask", mask, (0, mask.stride(0)) if mask.dim() == 1 else mask.stride())
    for name, value in zip(("lam_diag", "lam_off", "eps"), weights, strict=True):
        call.real(name, value)
    return call


def nmse_forward(
    estimate: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    weights: tuple[float, float, float] = (0.2, 0.8, 1e-12),
    **options: int,
) -> tuple[Tensor, Tensor]:
    """nmse [B] and sums [B, 4]."""
    call = _nmse_call(False, estimate, target, mask, weights, options)
    real = estimate.dtype.to_real()
    call.output("nmse", (estimate.shape[0],), real)
    call.output("sums", (estimate.shape[0], 4), real)
    results = call.run()
    return results["nmse"], results["sums"]


def nmse_backward(
    grad: Tensor,
    estimate: Tensor,
    target: Tensor,
    sums: Tensor,
    mask: Tensor | None = None,
    weights: tuple[float, float, float] = (0.2, 0.8, 1e-12),
    need: tuple[bool, bool] = (True, True),
    **options: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to estimate and target, contiguous; None where not needed."""
    call = _nmse_call(True, estimate, target, mask, weights, options)
    call.array("grad", grad)
    call.array("sums", sums)
    for name, needed in zip(("grad_estimate", "grad_target"), need, strict=True):
        if needed:
            call.output(name, tuple(estimate.shape), estimate.dtype)
    results = call.run()
    return results.get("grad_estimate"), results.get("grad_target")


def _tikhonov_call(
    operator: str,
    backward: bool,
    inputs: tuple[Tensor, Tensor, Tensor],
    alpha: float,
    relative: bool,
    center: bool,
    options: dict[str, int],
) -> Call:
    y, h, codes = inputs
    call = Call("tikhonov", y.dtype, backward, **options)
    call.integer("covariance", operator == "tikhonov_covariance")
    for name, size in zip(("scenes", "snapshots", "antennas"), y.shape, strict=True):
        call.integer(name, size)
    call.integer("elements", codes.shape[2])
    call.array("y", y)
    h_stride = h.stride() if h.dim() == 4 else (h.stride(0), 0, h.stride(1), h.stride(2))
    call.array("h", h, h_stride)
    call.array("codes", codes)
    call.integer("h_per_snapshot", h.dim() == 4)
    call.real("alpha", alpha)
    call.integer("relative", relative)
    call.integer("center", center)
    return call


def tikhonov_forward(
    operator: str,
    inputs: tuple[Tensor, Tensor, Tensor],
    alpha: float = 1e-3,
    relative: bool = False,
    center: bool = False,
    **options: int,
) -> Tensor:
    """[B, N, N] of tikhonov_covariance, [B, L, N] of tikhonov_snapshots."""
    call = _tikhonov_call(operator, False, inputs, alpha, relative, center, options)
    scenes, snapshots, elements = inputs[2].shape
    rows = elements if operator == "tikhonov_covariance" else snapshots
    call.output("out", (scenes, rows, elements), inputs[0].dtype)
    return call.run()["out"]


def tikhonov_backward(
    operator: str,
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    alpha: float = 1e-3,
    relative: bool = False,
    center: bool = False,
    need: tuple[bool, bool, bool] = (True, True, True),
    **options: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients to y, h and codes, contiguous; None where not needed."""
    call = _tikhonov_call(operator, True, inputs, alpha, relative, center, options)
    call.array("grad", grad)
    names = ("grad_y", "grad_h", "grad_codes")
    for name, tensor, needed in zip(names, inputs, need, strict=True):
        if needed:
            call.output(name, tuple(tensor.shape), tensor.dtype)
    results = call.run()
    y, h, codes = (results.get(name) for name in names)
    return y, h, codes
