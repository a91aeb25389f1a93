# SPDX-License-Identifier: Apache-2.0
"""Tests that need a CUDA device. `make test-gpu` runs them; elsewhere each is skipped by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from riskernels import library

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each GPU backend in turn, selected while the test runs."""
    status = library.backend_status()[request.param]
    if not status.available:
        pytest.skip(f"{request.param}: {status.reason}")
    with library.use_backend(request.param):
        yield request.param
