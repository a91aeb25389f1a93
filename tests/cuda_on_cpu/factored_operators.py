# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of factored_blend, factored_nmse and factored_leakage as Python functions.

They run on the block executor. Options of every function: ``seed`` of the thread order,
``multiprocessors`` and ``shared_limit`` of the device that the host plans are made for, and
``races`` for the build that finds data races.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from cuda_on_cpu.harness import Call
from torch import Tensor

BLEND, NMSE, LEAKAGE = range(3)


class NmseOptions(NamedTuple):
    lam_diag: float = 0.2
    lam_off: float = 0.8
    eps: float = 1e-12


class BlendOptions(NamedTuple):
    beta: float = 0.3
    target_trace: float | None = None
    loading: float = 0.0
    shrinkage: float = 0.0


NMSE_DEFAULTS, BLEND_DEFAULTS = NmseOptions(), BlendOptions()


def _call(operator: int, backward: bool, factor: Tensor, options: dict[str, int]) -> Call:
    call = Call("factored", factor.dtype, backward, **options)
    call.integer("operator", operator)
    call.integer("scenes", factor.shape[0])
    call.integer("elements", factor.shape[1])
    call.array("factor", factor)
    call.integer("factor_columns", factor.shape[2])
    return call


def _blend_call(
    backward: bool,
    factor: Tensor,
    snapshots: Tensor,
    blend: BlendOptions,
    options: dict[str, int],
) -> Call:
    call = _call(BLEND, backward, factor, options)
    call.integer("columns", factor.shape[2])
    call.integer("snapshots", snapshots.shape[1])
    call.array("samples", snapshots)
    trace = factor.shape[1] if blend.target_trace is None else blend.target_trace
    for name, value in blend._replace(target_trace=float(trace))._asdict().items():
        call.real(name, value)
    return call


def blend_forward(
    factor: Tensor,
    snapshots: Tensor,
    blend: BlendOptions = BLEND_DEFAULTS,
    **options: int,
) -> tuple[Tensor, Tensor]:
    """X [B, N, K + L] and rho [B]."""
    call = _blend_call(False, factor, snapshots, blend, options)
    b, n, k = factor.shape
    call.output("out", (b, n, k + snapshots.shape[1]), factor.dtype)
    call.output("rho_out", (b,), factor.dtype.to_real())
    results = call.run()
    return results["out"], results["rho_out"]


def blend_backward(
    grad: Tensor,
    factor: Tensor,
    snapshots: Tensor,
    blend: BlendOptions = BLEND_DEFAULTS,
    **options: int,
) -> Tensor:
    """Gradient [B, N, K] to the factor."""
    call = _blend_call(True, factor, snapshots, blend, options)
    call.array("grad", grad)
    call.output("grad_factor", tuple(factor.shape), factor.dtype)
    return call.run()["grad_factor"]


def _rho(call: Call, rho: Tensor | None) -> None:
    if rho is not None:
        call.array("rho", rho)


def _nmse_call(
    backward: bool,
    factor: Tensor,
    rho: Tensor | None,
    target: Tensor,
    mask: Tensor | None,
    weights: NmseOptions,
    options: dict[str, int],
) -> Call:
    call = _call(NMSE, backward, factor, options)
    _rho(call, rho)
    call.array("target", target)
    call.integer("target_columns", target.shape[2])
    if mask is not None:
        call.array("mask", mask, (0, mask.stride(0)) if mask.dim() == 1 else mask.stride())
    for name, value in weights._asdict().items():
        call.real(name, value)
    return call


def nmse_forward(
    factor: Tensor,
    rho: Tensor | None,
    target: Tensor,
    mask: Tensor | None = None,
    weights: NmseOptions = NMSE_DEFAULTS,
    **options: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """nmse [B], sums [B, 4] and gram [B, c, c]."""
    call = _nmse_call(False, factor, rho, target, mask, weights, options)
    b, columns = factor.shape[0], factor.shape[2] + target.shape[2]
    call.output("nmse", (b,), factor.dtype.to_real())
    call.output("sums", (b, 4), torch.float64)
    call.output("gram", (b, columns, columns), torch.complex128)
    results = call.run()
    return results["nmse"], results["sums"], results["gram"]


def _gradients(
    call: Call, wanted: list[tuple[str, tuple[int, ...], torch.dtype, bool]]
) -> tuple[Tensor | None, ...]:
    for name, shape, dtype, needed in wanted:
        if needed:
            call.output(name, shape, dtype)
    results = call.run()
    return tuple(results.get(name) for name, *_ in wanted)


def nmse_backward(
    grad: Tensor,
    factor: Tensor,
    rho: Tensor | None,
    target: Tensor,
    saved: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    weights: NmseOptions = NMSE_DEFAULTS,
    need: tuple[bool, bool, bool] = (True, True, True),
    **options: int,
) -> tuple[Tensor | None, ...]:
    """Gradients to factor, rho and target; None where not needed. ``saved``: sums and gram."""
    call = _nmse_call(True, factor, rho, target, mask, weights, options)
    call.array("grad", grad)
    call.array("sums", saved[0])
    call.array("gram", saved[1])
    return _gradients(
        call,
        [
            ("grad_factor", tuple(factor.shape), factor.dtype, need[0]),
            ("grad_rho", (factor.shape[0],), factor.dtype.to_real(), need[1]),
            ("grad_target", tuple(target.shape), factor.dtype, need[2]),
        ],
    )


def _leakage_call(
    backward: bool,
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    ridge: float,
    options: dict[str, int],
) -> Call:
    call = _call(LEAKAGE, backward, factor, options)
    _rho(call, rho)
    call.array("steering", steering)
    call.integer("steering_columns", steering.shape[2])
    call.array("num_sources", num_sources)
    call.real("ridge", ridge)
    return call


def leakage_forward(
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    ridge: float = 1e-4,
    **options: int,
) -> tuple[Tensor, Tensor]:
    """leakage [B] and gram [B, c, c]."""
    call = _leakage_call(False, factor, rho, steering, num_sources, ridge, options)
    b, columns = factor.shape[0], factor.shape[2] + steering.shape[2]
    call.output("leakage", (b,), factor.dtype.to_real())
    call.output("gram", (b, columns, columns), torch.complex128)
    results = call.run()
    return results["leakage"], results["gram"]


def leakage_backward(
    grad: Tensor,
    factor: Tensor,
    rho: Tensor | None,
    steering: Tensor,
    num_sources: Tensor,
    saved: tuple[Tensor, Tensor],
    ridge: float = 1e-4,
    need: tuple[bool, bool] = (True, True),
    **options: int,
) -> tuple[Tensor | None, ...]:
    """Gradients to factor and rho; None where not needed. ``saved``: leakage and gram."""
    call = _leakage_call(True, factor, rho, steering, num_sources, ridge, options)
    call.array("grad", grad)
    call.array("leakage", saved[0])
    call.array("gram", saved[1])
    return _gradients(
        call,
        [
            ("grad_factor", tuple(factor.shape), factor.dtype, need[0]),
            ("grad_rho", (factor.shape[0],), factor.dtype.to_real(), need[1]),
        ],
    )
