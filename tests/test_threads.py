# SPDX-License-Identifier: Apache-2.0
"""Many Python threads, changing numbers of threads, and forked processes: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import simd_outputs
import torch

from riskernels import library

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not library.backend_status()["cpu"].available, reason="the CPU library is not built"
)
CALLERS, ROUNDS = 8, 2
LARGE = (16, 257)
"""M and N from which on a scene is divided where there are fewer scenes than threads."""


@pytest.fixture(scope="module")
def calls() -> list[simd_outputs.Recorded]:
    """A call of every operator, forward and backward."""
    before = simd_outputs.SIZES
    simd_outputs.SIZES = (*before, LARGE)
    try:
        with simd_outputs.Recorder() as recorder:
            simd_outputs.outputs()
    finally:
        simd_outputs.SIZES = before
    assert set(library.operators()) == recorder.ran
    return recorder.calls


@pytest.fixture(scope="module")
def expected(calls: list[simd_outputs.Recorded]) -> list[str]:
    return simd_outputs.digests(calls)


@pytest.fixture(autouse=True)
def _as_many_threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 4])
def test_many_python_threads_at_once(
    calls: list[simd_outputs.Recorded], expected: list[str], threads: int
) -> None:
    """Every caller has scratch memory of its own, and gets the results of a single one."""
    torch.set_num_threads(threads)
    barrier = threading.Barrier(CALLERS)

    def work(_: int) -> list[list[str]]:
        barrier.wait()
        return [simd_outputs.digests(calls) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(CALLERS) as pool:
        for rounds in pool.map(work, range(CALLERS)):
            assert all(found == expected for found in rounds)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads(
    calls: list[simd_outputs.Recorded], expected: list[str], threads: int
) -> None:
    torch.set_num_threads(threads)
    assert simd_outputs.digests(calls) == expected


def test_the_number_of_threads_changes_during_calls(
    calls: list[simd_outputs.Recorded], expected: list[str]
) -> None:
    """A call that takes a number of threads, and runs on another, is right all the same."""
    done = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        while not done.is_set():
            torch.set_num_threads(1 + changes % 5)
            changes += 1
            done.wait(1e-4)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for round_ in range(ROUNDS):
            torch.set_num_threads(1 + round_)
            assert simd_outputs.digests(calls) == expected
    finally:
        done.set()
        changing.join()
    assert changes > ROUNDS


@pytest.mark.parametrize("kind", ["fork", "loader"])
def test_after_fork(kind: str) -> None:
    """torch's pool does not survive a fork: without care, the child waits for ever."""
    path = os.pathsep.join(
        [str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [sys.executable, str(HERE / "forked_operators.py"), kind],
        env={**os.environ, "PYTHONPATH": path, "RISKERNELS_REQUIRE": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("equal "), done.stdout
