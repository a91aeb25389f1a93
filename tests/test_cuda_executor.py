# SPDX-License-Identifier: Apache-2.0
"""The block executor finds the faults that the kernels' tests rely on it to find."""

from __future__ import annotations

import math
import subprocess

import pytest
from cuda_on_cpu import harness

pytestmark = pytest.mark.check("cuda-executor")
SEEDS = range(8)


def run(kernel: str, seed: int = 0, races: bool = False) -> subprocess.CompletedProcess[str]:
    units = [harness.kernels("faults.cpp", races), harness.EXECUTOR]
    if races:
        units.append(harness.RACE_RUNTIME)
    return harness.execute([harness.build("faults" + "-races" * races, units), kernel, str(seed)])


def values(kernel: str, seed: int = 0) -> list[float]:
    done = run(kernel, seed)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


UNITS = {
    " ".join((operator, *unit.flags[1:])): unit
    for operator in harness.OPERATORS
    for races in (False, True)
    for unit in harness.operator_units(operator, races)
    if unit.source == f"{operator}.cpp"
}


@pytest.mark.lasts(20)
@pytest.mark.parametrize("name", UNITS)
def test_kernels_compile(name):
    """Every precision and pass of every operator, one to a test: parallel processes share them."""
    assert harness.compiled(UNITS[name]).read_bytes().startswith(b"\x7fELF")


def test_words():
    """Shuffles, barriers and indices give what CUDA defines, in every order."""
    for seed in SEEDS:
        assert values("words", seed) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "right,broken",
    [
        ("tree_sum", "tree_sum_without_first_barrier"),
        ("tree_sum", "tree_sum_without_inner_barriers"),
        ("hand_over", "hand_over_without_barrier"),
    ],
)
def test_missing_barrier(right, broken):
    """The right kernel gives one result in all orders; the broken one gives others."""
    expected = values(right, 0)
    assert all(values(right, seed) == expected for seed in SEEDS)
    wrong = [values(broken, seed) != expected for seed in SEEDS]
    assert any(wrong), "no order showed the missing barrier"


@pytest.mark.parametrize("kernel", ["tree_sum", "hand_over", "words"])
def test_no_race(kernel):
    for seed in SEEDS:
        done = run(kernel, seed, races=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "kernel",
    [
        "tree_sum_without_first_barrier",
        "tree_sum_without_inner_barriers",
        "hand_over_without_barrier",
        "between_lanes_without_syncwarp",
        "written_after_read",
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_race(kernel, seed):
    """Found in every order, whether the result shows it or not."""
    done = run(kernel, seed, races=True)
    assert done.returncode == 97
    assert "data race in block (" in done.stderr and "shared memory" in done.stderr
    assert "faults.cpp:" in done.stderr


def test_result_of_the_right_kernel():
    expected = [
        sum(2.0 ** ((i + block) % 16) for i in range(128 * block, 128 * (block + 1)))
        for block in range(3)
    ]
    assert values("tree_sum") == expected


@pytest.mark.parametrize(
    "kernel,place",
    [
        ("beyond_shared", "heap-buffer-overflow"),
        ("between_arrays", "use-after-poison"),
        ("beyond_input", "heap-buffer-overflow"),
        ("beyond_output", "heap-buffer-overflow"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_out_of_bounds(kernel, place, seed):
    """AddressSanitizer names the kernel, and the executor the block and thread."""
    done = run(kernel, seed)
    assert done.returncode == 99
    assert f"AddressSanitizer: {place}" in done.stderr
    assert kernel in done.stderr and "faults.cpp:" in done.stderr
    assert "cuda_on_cpu: in block (" in done.stderr


def test_misaligned_access():
    done = run("misaligned")
    assert done.returncode == 98
    assert "misaligned address" in done.stderr


def test_more_arrays_than_shared_memory():
    done = run("more_arrays_than_shared_memory")
    assert done.returncode != 0
    assert "bytes of shared memory" in done.stderr


def test_unwritten_output():
    """Outputs are NaN beforehand, so a place that no thread writes shows."""
    written = values("unwritten")
    assert [math.isnan(v) for v in written] == [False, True, False]


def test_uninitialised_shared_memory():
    assert all(math.isnan(v) for v in values("uninitialised_shared"))


@pytest.mark.parametrize(
    "kernel,what",
    [
        ("exit_before_barrier", "barrier not reached by all threads"),
        ("different_counts", "barrier not reached by all threads"),
        ("barrier_in_a_branch", "threads of a block meet at different barriers"),
        ("barrier_against_exchange", ""),
        ("divergent_shuffle", ""),
        ("shuffles_in_both_branches", "lanes of one mask meet in different exchanges"),
        ("not_in_own_mask", "the calling lane is not in its own mask"),
        ("lane_outside_mask", "reads lane 16, not in the mask"),
        ("different_widths", "lanes of one mask meet in different exchanges"),
        ("lane_that_does_not_exist", "the mask names a lane that does not exist"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_divergence(kernel, what, seed):
    """In every order: an error that names block, thread and the lines where threads wait."""
    done = run(kernel, seed)
    assert done.returncode == 1
    assert what in done.stderr
    assert "block (" in done.stderr and "thread" in done.stderr and "faults.cpp:" in done.stderr


@pytest.mark.parametrize(
    "kernel,what",
    [
        ("empty_grid", "a grid of 0 x 1 x 1 blocks"),
        ("grid_too_high", "a grid of 1 x 65536 x 1 blocks"),
        ("too_many_threads", "1025 threads per block"),
        ("no_threads", "0 threads per block"),
        ("too_much_shared_memory", "bytes of shared memory; the limit is"),
    ],
)
def test_launch_limits(kernel, what):
    done = run(kernel)
    assert done.returncode == 1
    assert what in done.stderr


def test_a_failed_build_is_an_error(monkeypatch, tmp_path):
    """No compiler, or one without sanitizers, fails the tests rather than skips them."""
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    with pytest.raises(harness.ExecutorError, match="compiler"):
        run("words")
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\n[ $1 = --version ] || { echo cannot find -lasan >&2; exit 1; }\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(harness.ExecutorError, match="cannot find -lasan"):
        run("words")
