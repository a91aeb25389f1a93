# SPDX-License-Identifier: Apache-2.0
"""Every operator in a process that was forked after torch's threads had started.

``python forked_operators.py fork|loader``: prints ``equal N`` where N results are bitwise those of
the parent. A child that hangs is killed, and said to have hung.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import simd_outputs
import torch
from torch.utils.data import DataLoader, Dataset

import riskernels

THREADS = 4
PATIENCE = 60
"""Seconds that a child may take; it needs about one."""


def in_fork(calls: list[simd_outputs.Recorded]) -> list[str]:
    """``digests(calls)`` in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, "\n".join(simd_outputs.digests(calls)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    deadline = time.monotonic() + PATIENCE
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            sys.exit("the child hung")
        time.sleep(0.01)
    with os.fdopen(reading) as pipe:
        return pipe.read().split("\n")


class Covariances(Dataset):
    """Items that call an operator, as a transform in a worker of a DataLoader would."""

    def __init__(self) -> None:
        self.y = torch.randn(8, 16, 16, dtype=torch.complex64)
        self.h = torch.randn(8, 16, 144, dtype=torch.complex64) / 12
        self.codes = torch.polar(torch.ones(8, 16, 144), torch.rand(8, 16, 144))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> torch.Tensor:
        scene = slice(index, index + 1)
        return riskernels.tikhonov_covariance(self.y[scene], self.h[scene], self.codes[scene])[0]


def main(kind: str) -> None:
    torch.set_num_threads(THREADS)
    if kind == "fork":
        simd_outputs.SIZES = (*simd_outputs.SIZES, (16, 257))
        with simd_outputs.Recorder() as recorder:
            simd_outputs.outputs()
        calls = recorder.calls
        expected, found = simd_outputs.digests(calls), in_fork(calls)
    else:
        data = Covariances()
        whole = riskernels.tikhonov_covariance(data.y, data.h, data.codes)
        loader = DataLoader(
            data, batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=PATIENCE
        )
        expected = [row.numpy().tobytes() for row in whole]
        found = [row.numpy().tobytes() for batch in loader for row in batch]
    assert found == expected
    print(f"equal {len(found)}")


if __name__ == "__main__":
    main(sys.argv[1])
