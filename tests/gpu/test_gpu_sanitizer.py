# SPDX-License-Identifier: Apache-2.0
"""compute-sanitizer on small cases of every operator, forward and backward."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from riskernels import library

CASES = Path(__file__).parent / "small_cases.py"
ERRORS = 86
"""Exit status of compute-sanitizer where it found something."""


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool, backend):
    sanitizer = find_sanitizer()
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    status = library.backend_status()[backend]
    if not status.available:
        pytest.skip(f"{backend}: {status.reason}")
    # Every tensor an allocation of its own: an access past its end is one past an allocation.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [
            *(sanitizer, "--tool", tool, f"--error-exitcode={ERRORS}"),
            *(sys.executable, str(CASES), backend),
        ],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert f"cases on {backend}: correct" in done.stdout
