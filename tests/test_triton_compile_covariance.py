# SPDX-License-Identifier: Apache-2.0
"""The blend, the leakage and the factored operators, compiled as in ``test_triton_compile.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import test_triton_compile as compiler
import torch
from test_triton_compile import operator

pytestmark = compiler.pytestmark

DENSE = {
    "blend_traces_kernel",
    "blend_kernel",
    "blend_gradient_kernel",
    "blend_diagonal_kernel",
    "basis_kernel",
    "project_kernel",
    "inner_kernel",
    "leakage_gradient_kernel",
}
FACTORED = {
    "factor_sums_kernel",
    "factored_blend_kernel",
    "factored_blend_gradient_kernel",
    "gram_kernel",
    "transform_kernel",
    "factored_nmse_kernel",
    "factored_nmse_gradient_kernel",
    "factored_leakage_kernel",
    "factored_leakage_slopes_kernel",
    "factored_leakage_gradient_kernel",
}
SCENES, ELEMENTS, SOURCES, SNAPSHOTS = 64, 144, 5, 16


def dense(n: int, k: int, dtype: torch.dtype) -> None:
    """Compile both passes of blend_covariance and of subspace_leakage."""
    matrix, steering = (torch.zeros(SCENES, n, c, dtype=dtype) for c in (n, k))
    operator("blend_covariance")(matrix, matrix)
    operator("blend_covariance_backward")(matrix, matrix, matrix, 0.3, None, 0.0, 0.0)
    sources = torch.ones(SCENES, dtype=torch.int64)
    state = operator("subspace_leakage_forward")(matrix, steering, sources, 1e-4)
    operator("subspace_leakage_backward")(state[0], matrix, *state)


def factored(n: int, k: int, snapshots: int, dtype: torch.dtype) -> None:
    """Compile both passes of the factored operators."""
    factor = torch.zeros(SCENES, n, k, dtype=dtype)
    samples = torch.zeros(SCENES, snapshots, n, dtype=dtype)
    x, rho = operator("factored_blend")(factor, samples)
    operator("factored_blend_backward")(x, factor, samples, 0.3, None, 0.0, 0.0)
    sources = torch.ones(SCENES, dtype=torch.int64)
    leakage, gram = operator("factored_leakage_forward")(x, rho, factor, sources, 1e-4)
    operator("factored_leakage_backward")(leakage, x, rho, factor, sources, leakage, gram, 1e-4)
    options = (None, 0.2, 0.8, 1e-12)
    value, sums, gram = operator("factored_nmse_forward")(x, rho, factor, *options)
    operator("factored_nmse_backward")(
        value, x, rho, factor, sums, gram, *options, need_target=False
    )


def dense_single() -> None:
    dense(ELEMENTS, SOURCES, torch.complex64)


def dense_double() -> None:
    dense(ELEMENTS, SOURCES, torch.complex128)


def factored_single() -> None:
    factored(ELEMENTS, SOURCES, SNAPSHOTS, torch.complex64)


def factored_double() -> None:
    factored(ELEMENTS, SOURCES, SNAPSHOTS, torch.complex128)


CASES = {f.__name__: f for f in (dense_single, dense_double, factored_single, factored_double)}


def main(arch: str, case: str) -> None:
    torch.set_num_threads(1)
    kernels = compiler.compile_only(int(arch))
    CASES[case]()
    print(json.dumps([{"name": name, **compiler.resources(kernel)} for name, kernel in kernels]))


def compiled(arch: int, case: str, cache: Path) -> list[dict[str, Any]]:
    """The resources of every launch of a case, compiled in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, __file__, str(arch), case],
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    kernels: list[dict[str, Any]] = json.loads(result.stdout)
    for kernel in kernels:
        assert kernel["target"].startswith(f"sm_{arch}"), kernel
        assert not kernel["tf32"] and not kernel["atomics"], kernel
        # What every GPU grants a kernel without a special request.
        assert kernel["shared_bytes"] <= 48 * 1024, kernel
        # The kernels live in registers.
        assert kernel["local_bytes"] == 0, kernel
    return kernels


@pytest.mark.parametrize(
    "arch,case,expected,launches",
    [
        # Blend 2 + 3, leakage 3 + 2.
        (80, "dense_single", DENSE, 10),
        (90, "dense_double", DENSE, 10),
        # Blend 2 + 2, leakage 3 + 3, NMSE 2 + 1.
        (90, "factored_single", FACTORED, 13),
        (80, "factored_double", FACTORED, 13),
    ],
)
def test_kernels_live_in_registers(arch, case, expected, launches, tmp_path):
    names = [kernel["name"] for kernel in compiled(arch, case, tmp_path)]
    assert set(names) == expected
    assert len(names) == launches


if __name__ == "__main__":
    main(*sys.argv[1:])
