# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of blend_covariance and subspace_leakage as Python functions, on the block executor.

Options of every function: ``seed`` of the thread order, ``multiprocessors`` and ``shared_limit`` of
the device that the host plans are made for, ``races`` for the build that finds data races.
"""

from __future__ import annotations

from typing import NamedTuple

from cuda_on_cpu.harness import Call
from torch import Tensor


class Blend(NamedTuple):
    """Options of blend_covariance."""

    beta: float = 0.3
    target_trace: float | None = None
    loading: float = 0.0
    shrinkage: float = 0.0


def _blend_call(
    backward: bool, pred: Tensor, samp: Tensor, blend: Blend, options: dict[str, int]
) -> Call:
    call = Call("blend_covariance", pred.dtype, backward, **options)
    call.integer("scenes", pred.shape[0])
    call.integer("elements", pred.shape[1])
    call.array("pred", pred)
    call.array("samp", samp)
    trace = float(pred.shape[1]) if blend.target_trace is None else blend.target_trace
    for name, value in blend._replace(target_trace=trace)._asdict().items():
        call.real(name, value)
    return call


def blend_forward(pred: Tensor, samp: Tensor, blend: Blend, **options: int) -> Tensor:
    """R [B, N, N]."""
    call = _blend_call(False, pred, samp, blend, options)
    call.output("out", tuple(pred.shape), pred.dtype)
    return call.run()["out"]


def blend_backward(
    grad: Tensor, pred: Tensor, samp: Tensor, blend: Blend, **options: int
) -> Tensor:
    """Gradient to pred."""
    call = _blend_call(True, pred, samp, blend, options)
    call.array("grad", grad)
    call.output("grad_pred", tuple(pred.shape), pred.dtype)
    return call.run()["grad_pred"]


class Leakage(NamedTuple):
    """Outputs of the forward."""

    leakage: Tensor  # [B]
    total: Tensor  # [B]
    basis: Tensor  # [B, N, K]
    projected: Tensor  # [B, K, N]


def leakage_forward(
    cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float = 1e-4, **options: int
) -> Leakage:
    """What subspace_leakage_forward returns."""
    call = Call("subspace_leakage", cov.dtype, False, **options)
    b, n, k = steering.shape
    for name, size in (("scenes", b), ("elements", n), ("columns", k)):
        call.integer(name, size)
    call.array("cov", cov)
    call.array("steering", steering)
    call.array("num_sources", num_sources)
    call.real("ridge", ridge)
    real = cov.dtype.to_real()
    call.output("leakage", (b,), real)
    call.output("total", (b,), real)
    call.output("basis", (b, n, k), cov.dtype)
    call.output("projected", (b, k, n), cov.dtype)
    return Leakage(**call.run())


def leakage_backward(grad: Tensor, cov: Tensor, state: Leakage, **options: int) -> Tensor:
    """Gradient to cov."""
    call = Call("subspace_leakage", cov.dtype, True, **options)
    b, n, k = state.basis.shape
    for name, size in (("scenes", b), ("elements", n), ("columns", k)):
        call.integer(name, size)
    call.array("cov", cov)
    call.array("grad", grad)
    for name, tensor in state._asdict().items():
        call.array(name, tensor)
    call.output("grad_cov", tuple(cov.shape), cov.dtype)
    return call.run()["grad_cov"]
