# SPDX-License-Identifier: Apache-2.0
"""What a call costs the host, and what its kernels take from the device."""

from __future__ import annotations

import pytest
import torch
from covariance_cases import CASES as COVARIANCE_CASES
from operator_cases import CASES as OPERATOR_CASES

from bench import overhead
from riskernels import _resources, library

LIMIT = 15e-6
OPERATORS = {case.op for case in [*OPERATOR_CASES, *COVARIANCE_CASES]}


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_launch_overhead(op):
    """An eager call costs the host less than 15 microseconds over an empty custom operator."""
    found = overhead.measure("cuda")
    over = found[op] - found["empty"]
    assert over < LIMIT, f"{over * 1e6:.1f} us over the empty operator's {found['empty'] * 1e6:.1f}"


def needs_library() -> None:
    status = library.backend_status()["cuda"]
    if not status.available:
        pytest.skip(f"cuda: {status.reason}")


def test_no_kernel_spills_on_this_device():
    needs_library()
    calls = _resources.measured()["calls"]
    assert {call["operator"] for call in calls} == OPERATORS
    for call in calls:
        assert call["kernels"], call
        for kernel in call["kernels"]:
            assert kernel["local_bytes"] == 0, kernel
            assert kernel["blocks_per_multiprocessor"] >= 1, kernel


@pytest.mark.parametrize("op", ["tikhonov_covariance", "tikhonov_snapshots"])
def test_one_launch_forward_at_the_default_shape(op):
    needs_library()
    calls = [c for c in _resources.measured()["calls"] if c["operator"] == op and c["M"] == 16]
    forward = [c for c in calls if c["pass"] == "forward" and c["dtype"] == "complex64"]
    assert len(forward) == 2
    assert [len(c["kernels"]) for c in forward] == [1, 1], forward


def test_memory_of_a_call_is_its_output_at_the_default_shape():
    needs_library()
    import riskernels

    y = torch.randn(64, 16, 16, dtype=torch.complex64, device="cuda")
    h = torch.randn(64, 16, 144, dtype=torch.complex64, device="cuda")
    codes = torch.randn(64, 16, 144, dtype=torch.complex64, device="cuda")
    with library.use_backend("cuda"):
        riskernels.tikhonov_covariance(y, h, codes)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value = riskernels.tikhonov_covariance(y, h, codes)
        beyond = torch.cuda.max_memory_allocated() - before
    assert beyond <= value.numel() * value.element_size() + 512
