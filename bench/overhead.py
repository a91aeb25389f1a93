# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.overhead``: what one eager call costs beside its kernels.

A small call is queued many times and the time a call is compared with that of an empty PyTorch
custom operator, which takes the same tensors and only allocates the output. On a CUDA device the
host queues ahead of the kernels, so this is the time of the host.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import riskernels

CALLS = 500
ROUNDS = 15


@functools.cache
def empty_operator() -> Callable[..., Tensor]:
    """An operator of ``torch.library`` whose kernel allocates [B, N, N] and does nothing else."""
    library = torch.library.Library("riskernels_bench", "DEF")
    library.define("empty(Tensor y, Tensor h, Tensor codes) -> Tensor")

    def empty(y: Tensor, h: Tensor, codes: Tensor) -> Tensor:
        return y.new_empty((y.shape[0], codes.shape[2], codes.shape[2]))

    library.impl("empty", empty, "CompositeExplicitAutograd")
    # The registration lives as long as the library object.
    empty_operator.library = library  # type: ignore[attr-defined]
    operator: Callable[..., Tensor] = torch.ops.riskernels_bench.empty
    return operator


def _seconds(call: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / CALLS


def measure(device: str) -> dict[str, float]:
    """Seconds of an eager call by operator, and of the empty one; medians of interleaved rounds."""
    y = torch.randn(1, 2, 4, dtype=torch.complex64, device=device)
    h = torch.randn(1, 4, 8, dtype=torch.complex64, device=device)
    codes = torch.randn(1, 2, 8, dtype=torch.complex64, device=device)
    matrix = torch.randn(1, 8, 8, dtype=torch.complex64, device=device)
    factor, rho = codes.mT, torch.rand(1, device=device)
    steering, count = h.mT, torch.ones(1, dtype=torch.int64, device=device)
    positions = torch.rand(8, 3, device=device)
    empty = empty_operator()
    calls: dict[str, Callable[[], Any]] = {
        "empty": lambda: empty(y, h, codes),
        "tikhonov_covariance": lambda: riskernels.tikhonov_covariance(y, h, codes),
        "tikhonov_snapshots": lambda: riskernels.tikhonov_snapshots(y, h, codes),
        "hermitian_nmse": lambda: riskernels.hermitian_nmse(matrix, matrix),
        "blend_covariance": lambda: riskernels.blend_covariance(matrix, matrix),
        "subspace_leakage": lambda: riskernels.subspace_leakage(matrix, steering, count),
        "factored_blend": lambda: riskernels.factored_blend(steering, codes),
        "factored_nmse": lambda: riskernels.factored_nmse(factor, rho, steering),
        "factored_leakage": lambda: riskernels.factored_leakage(factor, rho, steering, count),
        "factored_spectrum": lambda: riskernels.factored_spectrum(factor, rho),
        "steering_power": lambda: riskernels.steering_power(factor, rho, rho, rho, positions, 0.3),
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for call in calls.values():
            _seconds(call, device)
        for _ in range(ROUNDS):
            for name, call in calls.items():
                samples[name].append(_seconds(call, device))
    return {name: statistics.median(taken) for name, taken in samples.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args(arguments).device
    found = measure(device)
    for name, seconds in found.items():
        over = seconds - found["empty"]
        print(f"{name:<24} {seconds * 1e6:7.2f} us, {over * 1e6:+7.2f} us over the empty operator")
    return 0


if __name__ == "__main__":
    sys.exit(main())
