# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of factored_spectrum: run by the interpreter, and compiled ahead of time.

Both need settings made before Triton is imported, so every case runs in a process of its own: this
file, as a script with the names of cases, or with ``compile`` and an architecture.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_factored_spectrum as spectrum
import test_triton_compile as ahead_of_time
import torch
from test_triton_interpreter import obstacle

import riskernels
from riskernels import library

needs_interpreter = [
    pytest.mark.check("triton-interpreter"),
    pytest.mark.skipif(bool(obstacle()), reason=obstacle()),
]
needs_compiler = [
    pytest.mark.check("triton-compiler"),
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="triton is not installed (PyPI has it for Linux on x86-64 only)",
    ),
]

C64, C128 = torch.complex64, torch.complex128
CPU = SimpleNamespace(name="triton", device="cpu")
"""What the tests of the operator take for the backend fixture."""


def check(n: int, r: int, dtype: torch.dtype, b: int = 1) -> None:
    x, rho = spectrum.factors(b, n, r, dtype)
    spectrum.check_values(x, rho)
    spectrum.check_symmetric_gradient(x, rho)


def sizes() -> None:
    """One column, an odd and an even number of them, more columns than rows; rows in many tiles."""
    check(1, 1, C128)
    check(7, 2, C64, b=2)
    check(300, 3, C64)
    check(2, 4, C128)


def several_tiles() -> None:
    """Sums and permutations over a padded width of 32."""
    x, rho = spectrum.factors(1, 40, 17, C128)
    values, vectors = torch.ops.riskernels.factored_spectrum_forward(x, rho)
    expected = spectrum.oracle(x, rho)
    assert (values - expected).abs().max() < 1e-14 * expected.max()
    assert (vectors.mH @ vectors - torch.eye(17)).abs().max() < 1e-14


def hard_matrices() -> None:
    """Equal eigenvalues, lost rank, nothing at all, and scales far from 1."""
    equal = spectrum.with_spectrum(torch.tensor([[1.0, 1.0, 1.0, 1e-12, 1e-12]]).double(), 9)
    spectrum.check_values(equal)
    spectrum.check_symmetric_gradient(equal, torch.zeros(1, dtype=torch.float64))
    values = riskernels.factored_spectrum(equal * 2.0**450) * 2.0**-900
    assert (values - riskernels.factored_spectrum(equal)).abs().max() < 1e-14
    zero = torch.zeros(1, 3, 4, dtype=C64)
    values, vectors = torch.ops.riskernels.factored_spectrum_forward(zero, torch.tensor([0.25]))
    assert torch.all(values == 0.25) and torch.equal(vectors[0], torch.eye(4, dtype=C64))


def views_and_needs() -> None:
    """Transposed, conjugated, negated and expanded inputs; gradients one at a time."""
    base, rho = spectrum.factors(2, 5, 2, C64)
    views = (base.mT.contiguous().mT, base.mT.contiguous().mH, base[:1].expand(2, 5, 2))
    for x in (*views, -base.imag * 1j):
        spectrum.check_values(x, rho)
        spectrum.check_symmetric_gradient(x, rho[:1].expand(2))
    vectors = torch.ops.riskernels.factored_spectrum_forward(base, None)[1]
    backward = torch.ops.riskernels.factored_spectrum_backward
    grad = torch.rand(2, 2)
    to_factor, to_rho = backward(grad, base, vectors)
    only_factor, none = backward(grad, base, vectors, need_rho=False)
    assert torch.equal(only_factor, to_factor) and none.shape == (0,)
    none, only_rho = backward(grad, base, vectors, need_factor=False)
    assert torch.equal(only_rho, to_rho) and none.shape == (0,)


def not_finite_or_empty() -> None:
    clean, rho = spectrum.factors(3, 4, 3, C64)
    dirty = clean.clone()
    dirty[0, 1, 1], rho[2] = torch.nan, torch.nan
    values = riskernels.factored_spectrum(dirty.requires_grad_(), rho)
    assert torch.equal(values.isnan(), torch.tensor([[True], [False], [True]]).expand(3, 3))
    values.sum().backward()
    assert dirty.grad[0].real.isnan().all() and torch.isfinite(dirty.grad[1:].abs()).all()
    empty = torch.empty(0, 4, 3, dtype=C64, requires_grad=True)
    value = riskernels.factored_spectrum(empty)
    value.sum().backward()
    assert value.shape == (0, 3) and empty.grad.shape == (0, 4, 3)
    spectrum.test_refusals(CPU)


def beyond_a_program() -> None:
    """More columns than MAX_COLUMNS take PyTorch's operations."""
    check(9, 70, C64)


CASES = {
    f.__name__: f
    for f in (
        sizes,
        several_tiles,
        hard_matrices,
        views_and_needs,
        not_finite_or_empty,
        beyond_a_program,
    )
}
GROUPS = [
    ["sizes", "hard_matrices", "beyond_a_program"],
    ["several_tiles", "views_and_needs", "not_finite_or_empty"],
]


def interpret(*cases: str) -> None:
    # Uninitialised memory holds NaN, so an output that is not written shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with library.use_backend("triton"):
        for case in cases:
            CASES[case]()
            print(case)


def compile_for(arch: str) -> None:
    kernels = ahead_of_time.compile_only(int(arch))
    x, rho = torch.zeros(64, 144, 21, dtype=C64), torch.zeros(64)
    forward, backward = (
        ahead_of_time.operator(f"factored_spectrum_{name}") for name in ("forward", "backward")
    )
    values, vectors = forward(x, rho)
    backward(values, x, vectors)
    report = [{"name": name, **ahead_of_time.resources(kernel)} for name, kernel in kernels]
    print(json.dumps(report))


def script(*arguments: str, **settings: str) -> str:
    """Output of this file as a script."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("RISKERNELS_") and k != "TRITON_INTERPRET"
    }
    result = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**kept, **settings},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.lasts(20)
@pytest.mark.parametrize(
    "cases",
    [pytest.param(group, marks=needs_interpreter) for group in GROUPS],
    ids=lambda cases: cases[0],
)
def test_interpreted(cases):
    output = script(*cases, TRITON_INTERPRET="1", RISKERNELS_REQUIRE="triton")
    assert output.split() == cases


@pytest.mark.lasts(10)
@pytest.mark.parametrize("arch", [pytest.param(90, marks=needs_compiler)])
def test_compiled_without_spills(arch, tmp_path: Path):
    kernels = json.loads(script("compile", str(arch), TRITON_CACHE_DIR=str(tmp_path)))
    assert [k["name"] for k in kernels] == ["spectrum_kernel", "spectrum_gradient_kernel"]
    for kernel in kernels:
        assert kernel["target"].startswith(f"sm_{arch}"), kernel
        assert not kernel["tf32"] and not kernel["atomics"], kernel
        # What every GPU grants a kernel without a special request.
        assert kernel["local_bytes"] == 0 and kernel["shared_bytes"] <= 48 * 1024, kernel


def test_every_case_is_run():
    assert sorted(case for group in GROUPS for case in group) == sorted(CASES)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "compile":
        compile_for(sys.argv[2])
    else:
        interpret(*sys.argv[1:])
