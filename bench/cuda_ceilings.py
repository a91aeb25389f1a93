# SPDX-License-Identifier: Apache-2.0
"""What the GPU can do in the same run: rates of multiply-adds, and of its memory.

The rates are those of a large sgemm without TF32 and of a large dgemm, which takes the tensor cores
where the GPU has them for float64. Bandwidths are measured at sizes beyond the L2
cache alone, since the cases rotate their data past it: ``read`` by a sum, ``copy`` counting what is
read and what is written, ``write`` by filling. The fastest of several calls by events, and the
highest of all measurements of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

GEMM_EDGE = 8192
SIZES = (2**28, 2**30, 2**32)
REPEATS = 20


def _fastest(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e-3)
    return best


def _gemm_flops(dtype: torch.dtype) -> float:
    a, b = (torch.randn(GEMM_EDGE, GEMM_EDGE, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2.0 * GEMM_EDGE**3 / _fastest(lambda: torch.mm(a, b, out=out))


def _bandwidths(size: int) -> dict[str, float]:
    whole = torch.rand(size // 4, device="cuda")
    source, target = whole[: size // 8], whole[size // 8 :]
    return {
        "bytes": size,
        "read": size / _fastest(lambda: torch.sum(whole)),
        "copy": size / _fastest(lambda: target.copy_(source)),
        "write": size / _fastest(lambda: whole.zero_()),
    }


def measure(earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """FLOP/s, and bytes/s at every size of ``SIZES``; never below those measured earlier."""
    rates = {
        "float32_flops": _gemm_flops(torch.float32),
        "float64_flops": _gemm_flops(torch.float64),
    }
    bandwidth = [_bandwidths(size) for size in SIZES]
    if earlier is not None:
        rates = {name: max(rate, earlier[name]) for name, rate in rates.items()}
        bandwidth = [
            {name: max(value, before[name]) for name, value in now.items()}
            for before, now in zip(earlier["bandwidth"], bandwidth, strict=True)
        ]
    return {
        **rates,
        "float32_flops_source": f"sgemm {GEMM_EDGE} without TF32",
        "float64_flops_source": f"dgemm {GEMM_EDGE}",
        "bandwidth": bandwidth,
    }
