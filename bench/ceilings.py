# SPDX-License-Identifier: Apache-2.0
"""What the machine can do at the same threads in the same run: the yardsticks of every floor.

The rates of float32 and of float64 multiply-adds are those of a large sgemm and dgemm, of PyTorch
or NumPy, whichever is faster: what code written for the machine's FMA units gets out of them, at
the clock rate of the run. Bandwidths are measured over sizes, for data that fits a cache comes from
there: ``read`` by sums and inner products, ``copy`` counting what is read and what is written,
``write`` by filling, each of its library calls at its fastest. Measured before the first case,
about every minute and after the last case, and the highest kept: a neighbour's load on the machine
must not lower a ceiling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch

from bench.registry import Cost

GEMM_EDGE = 1536
SIZES = tuple(2**power for power in range(20, 29))
SECONDS = 0.02
GEMM_SECONDS = 0.2


def _fastest(call: Callable[[], Any], seconds: float = SECONDS) -> float:
    call()
    best, end = math.inf, time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def _gemm_flops(dtype: torch.dtype) -> dict[str, float]:
    a = torch.randn(GEMM_EDGE, GEMM_EDGE, dtype=dtype)
    b = torch.randn(GEMM_EDGE, GEMM_EDGE, dtype=dtype)
    out = torch.empty_like(a)
    a_numpy, b_numpy, out_numpy = a.numpy(), b.numpy(), out.numpy()
    flops = 2.0 * GEMM_EDGE**3
    return {
        "torch": flops / _fastest(lambda: torch.mm(a, b, out=out), GEMM_SECONDS),
        "numpy": flops
        / _fastest(lambda: numpy.matmul(a_numpy, b_numpy, out=out_numpy), GEMM_SECONDS),
    }


def _bandwidths(size: int) -> dict[str, float]:
    whole = torch.ones(size // 4)
    source, target = whole[: size // 8], whole[size // 8 :]
    halves = source.numpy(), target.numpy()
    reads = (
        lambda: torch.sum(whole),
        lambda: torch.dot(source, target),
        lambda: numpy.dot(*halves),
    )
    return {
        "bytes": size,
        "read": size / min(_fastest(call) for call in reads),
        "copy": size / _fastest(lambda: target.copy_(source)),
        "write": size / _fastest(lambda: whole.zero_()),
    }


def measure(earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """FLOP/s, and bytes/s at every size of ``SIZES``; never below those measured earlier."""
    gemm = {"sgemm": _gemm_flops(torch.float32), "dgemm": _gemm_flops(torch.float64)}
    bandwidth = [_bandwidths(size) for size in SIZES]
    if earlier is not None:
        gemm = {name: _highest(earlier[f"{name}_flops"], rates) for name, rates in gemm.items()}
        bandwidth = list(map(_highest, earlier["bandwidth"], bandwidth))
    best = {name: max(rates, key=rates.__getitem__) for name, rates in gemm.items()}
    return {
        "float32_flops": gemm["sgemm"][best["sgemm"]],
        "float32_flops_source": f"sgemm {GEMM_EDGE} of {best['sgemm']}",
        "float64_flops": gemm["dgemm"][best["dgemm"]],
        "float64_flops_source": f"dgemm {GEMM_EDGE} of {best['dgemm']}",
        "sgemm_flops": gemm["sgemm"],
        "dgemm_flops": gemm["dgemm"],
        "bandwidth": bandwidth,
    }


def _highest(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: max(value, other[name]) for name, value in one.items()}


def floor(cost: Cost, ceilings: Mapping[str, Any]) -> dict[str, Any]:
    """The least time for a cost, and which ceiling sets it.

    Bandwidth is taken at the size nearest the footprint: reading for a case that writes next to
    nothing, otherwise the better of copying and filling.
    """
    nearest = min(
        ceilings["bandwidth"],
        key=lambda at: abs(math.log(at["bytes"] / max(cost.footprint, 1.0))),
    )
    kinds = ("read",) if cost.bytes_written < 0.01 * cost.bytes_read else ("copy", "write")
    kind = max(kinds, key=nearest.__getitem__)
    compute = cost.flops / ceilings["float32_flops"]
    if cost.double_flops:
        compute += cost.double_flops / ceilings["float64_flops"]
    memory = (cost.bytes_read + cost.bytes_written) / nearest[kind]
    return {
        "seconds": max(compute, memory),
        "binds": "FLOPs" if compute >= memory else "bytes",
        "compute_seconds": compute,
        "memory_seconds": memory,
        "flops": cost.flops,
        "double_flops": cost.double_flops,
        "bytes_read": cost.bytes_read,
        "bytes_written": cost.bytes_written,
        "bandwidth": nearest[kind],
        "bandwidth_kind": kind,
        "bandwidth_at_bytes": nearest["bytes"],
        "formula": cost.formula,
    }
