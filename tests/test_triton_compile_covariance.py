# SPDX-License-Identifier: Apache-2.0
"""The blend, the leakage and the factored operators, compiled as in ``test_triton_compile.py``."""

from __future__ import annotations

import sys

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


@pytest.mark.lasts(30)
@pytest.mark.parametrize(
    "arch,of_dense,of_factored",
    [(80, "dense_single", "factored_double"), (90, "dense_double", "factored_single")],
)
def test_kernels_live_in_registers(arch, of_dense, of_factored, tmp_path):
    found = compiler.compiled(__file__, arch, (of_dense, of_factored), tmp_path)
    # Dense: blend 2 + 3, leakage 3 + 2. Factored: blend 2 + 2, leakage 3 + 3, NMSE 2 + 1.
    for case, expected, launches in ((of_dense, DENSE, 10), (of_factored, FACTORED, 13)):
        names = [kernel["name"] for kernel in found[case]]
        assert set(names) == expected
        assert len(names) == launches
        assert all(kernel["local_bytes"] == 0 for kernel in found[case]), found[case]


if __name__ == "__main__":
    compiler.main(CASES, *sys.argv[1:])
