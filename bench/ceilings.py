# SPDX-License-Identifier: Apache-2.0
"""What the machine can do at the same threads in the same run: the yardsticks of every floor.

The rates of float32 and of float64 are those of multiply-adds between registers, in the
instruction set of the kernels on every thread at once, at the clock rate of the run. A large sgemm
and dgemm, of PyTorch or NumPy, stand beside them, and take their place where they are faster.
Bandwidths are measured over sizes, for data that fits a cache comes from there: ``read`` by sums
and inner products, ``copy`` counting what is read and what is written, ``write`` by filling, each
of its library calls at its fastest. Measured before the first case, about every minute and after
the last case, and the highest kept: a neighbour's load on the machine must not lower a ceiling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import torch

from bench.registry import Cost
from riskernels import library

GEMM_EDGE = 1536
SIZES = tuple(2**power for power in range(20, 29))
SECONDS = 0.02
GEMM_SECONDS = 0.2
ROUNDS = 1_000_000
"""Of the multiply-adds between registers: some milliseconds."""


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


def _gemm_flops(name: str, dtype: torch.dtype) -> dict[str, float]:
    a = torch.randn(GEMM_EDGE, GEMM_EDGE, dtype=dtype)
    b = torch.randn(GEMM_EDGE, GEMM_EDGE, dtype=dtype)
    out = torch.empty_like(a)
    a_numpy, b_numpy, out_numpy = a.numpy(), b.numpy(), out.numpy()
    flops = 2.0 * GEMM_EDGE**3
    return {
        f"{name} {GEMM_EDGE} of torch": flops
        / _fastest(lambda: torch.mm(a, b, out=out), GEMM_SECONDS),
        f"{name} {GEMM_EDGE} of numpy": flops
        / _fastest(lambda: numpy.matmul(a_numpy, b_numpy, out=out_numpy), GEMM_SECONDS),
    }


def _multiply_add_flops(double_precision: bool) -> dict[str, float]:
    """FLOP/s of multiply-adds between registers, of all threads together; empty without kernels."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:

        def run() -> float:
            tasks = [
                pool.submit(library.multiply_adds, ROUNDS, double_precision) for _ in range(threads)
            ]
            return sum(task.result() or 0.0 for task in tasks)

        flops = run()
        if not flops:
            return {}
        return {f"{library.simd_level()} multiply-adds": flops / _fastest(run, GEMM_SECONDS)}


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
    rates = {
        "float32": _gemm_flops("sgemm", torch.float32) | _multiply_add_flops(False),
        "float64": _gemm_flops("dgemm", torch.float64) | _multiply_add_flops(True),
    }
    bandwidth = [_bandwidths(size) for size in SIZES]
    if earlier is not None:
        rates = {name: _highest(earlier["rates"][name], found) for name, found in rates.items()}
        bandwidth = list(map(_highest, earlier["bandwidth"], bandwidth))
    best = {name: max(found, key=found.__getitem__) for name, found in rates.items()}
    return {
        "float32_flops": rates["float32"][best["float32"]],
        "float32_flops_source": best["float32"],
        "float64_flops": rates["float64"][best["float64"]],
        "float64_flops_source": best["float64"],
        "rates": rates,
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
