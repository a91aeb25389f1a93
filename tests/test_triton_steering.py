# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of steering_power: run by the interpreter, and compiled ahead of time.

Both need settings made before Triton is imported, so every case runs in a process of its own: this
file, as a script with the names of cases, or with an architecture and the names of what to compile.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_triton_compile as ahead_of_time
import torch
from test_cuda_steering import Points, expected, factor, points
from test_triton_interpreter import obstacle
from torch import Tensor

import riskernels
from riskernels import library
from riskernels.testing import assert_close, tolerance

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
F64 = torch.float64


def both_passes(x: Tensor, at: Points, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    power = riskernels.steering_power(leaf, *at[:5], taper=at.taper)
    (gradient,) = torch.autograd.grad(power, leaf, grad.to(power.dtype))
    return power.detach(), gradient


def check(x: Tensor, at: Points) -> None:
    grad = torch.randn(x.shape[0], at.phi.shape[-1], dtype=F64)
    for got, want in zip(both_passes(x, at, grad), expected(x, at, grad), strict=True):
        assert_close(got, want, tolerance(x.dtype))


def sizes() -> None:
    """Sizes of 1; several tiles of elements, columns and points; points of the scenes' own."""
    check(factor(1, 1, 1, C128), points(1, 1))
    check(factor(2, 35, 3), points(20, 35, scenes=2)._replace(taper=True))
    check(factor(1, 18, 70), points(5, 18, real=torch.float32))
    check(factor(2, 17, 40, C128), points(33, 17))


def shared_points() -> None:
    """Several scenes to a tile, the last with fewer; coordinates expanded over the scenes."""
    x, at = factor(8, 12, 5), points(70, 12)
    check(x[:, :, :3], at)
    check(x.to(C128), at)
    check(x, at._replace(**{name: getattr(at, name).expand(8, 70) for name in at._fields[:3]}))


def parts() -> None:
    """The points in parts whose sums are added up, the last with fewer tiles."""
    from riskernels.triton_kernels import steering_power as kernels

    kernels.ENOUGH_PROGRAMS = 2
    check(factor(1, 9, 2), points(300, 9))


def views() -> None:
    """Transposed, expanded, conjugated and negated inputs, strided points and elements."""
    base, at = factor(2, 8, 4), points(6, 8, scenes=2)
    for x in (
        base.mT.contiguous().mT,
        base.mT.contiguous().conj().mT.conj(),
        base[:1].expand(2, 8, 4),
    ):
        check(x, at)
    check(-base.imag * 1j, at)
    check(base.conj(), at._replace(positions=at.positions.mT.contiguous().mT.float()))
    strided = torch.stack([at.phi, at.phi], -1)[..., 0]
    check(base, at._replace(phi=strided, r=at.r.mT.contiguous().mT))


def not_finite_or_empty() -> None:
    clean, at = factor(3, 7, 2), points(5, 7)
    dirty = clean.clone()
    dirty[1, 2, 0] = torch.nan
    r = at.r.clone()
    r[1], r[3], r[4] = -1.0, 0.0, math.inf
    grad = torch.rand(3, 5)
    want, (power, gradient) = (
        both_passes(clean, at._replace(r=r), grad)[0],
        both_passes(dirty, at, grad),
    )
    assert want[:, [1, 3]].isnan().all() and torch.isfinite(want[:, [0, 2, 4]]).all()
    assert power[1].isnan().all() and torch.isfinite(power[[0, 2]]).all()
    assert torch.isfinite(gradient[[0, 2]].abs()).all() and gradient[1, :, 0].real.isnan().all()
    check(clean, at._replace(r=torch.full_like(r, math.inf)))
    none = points(0, 7)
    power, gradient = both_passes(clean, none, torch.empty(3, 0))
    assert power.shape == (3, 0) and torch.equal(gradient, torch.zeros_like(clean))
    power, gradient = both_passes(clean[:0], at, torch.empty(0, 5))
    assert power.shape == (0, 5) and gradient.shape == (0, 7, 2)


CASES = {f.__name__: f for f in (sizes, shared_points, parts, views, not_finite_or_empty)}
GROUPS = [["sizes", "views"], ["shared_points", "parts", "not_finite_or_empty"]]


def interpret(*cases: str) -> None:
    # Uninitialised memory holds NaN, so an output that is not written shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with library.use_backend("triton"):
        for case in cases:
            CASES[case]()
            print(case)


def launches(dtype: torch.dtype, b: int, n: int, k: int, g: int, shared: bool) -> None:
    """Compile both passes."""
    x = torch.zeros(b, n, k, dtype=dtype)
    point = torch.ones(g if shared else (b, g), dtype=F64)
    at = (point, point, point, torch.zeros(n, 3, dtype=F64), 0.3)
    power = ahead_of_time.operator("steering_power")(x, *at)
    ahead_of_time.operator("steering_power_backward")(power, x, *at, taper=not shared)


def spectrum_single() -> None:
    """Many scenes on one grid."""
    launches(C64, 64, 144, 5, 4096, shared=True)


def spectrum_double() -> None:
    launches(C128, 64, 144, 21, 512, shared=False)


def awkward() -> None:
    """Sizes of 1, which Triton compiles as constants."""
    launches(C64, 1, 1, 1, 1, shared=False)


COMPILED = {f.__name__: f for f in (spectrum_single, spectrum_double, awkward)}


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
@pytest.mark.parametrize(
    "arch,cases",
    [
        pytest.param(80, ("spectrum_single",), marks=needs_compiler),
        pytest.param(90, ("spectrum_double", "awkward"), marks=needs_compiler),
    ],
)
def test_kernels_live_in_registers(arch, cases, tmp_path: Path):
    found = ahead_of_time.compiled(__file__, arch, cases, tmp_path)
    for case, kernels in found.items():
        names = ["steering_power_kernel", "steering_gradient_kernel"]
        names += ["steering_parts_kernel"] * (case != "awkward")
        assert [kernel["name"] for kernel in kernels] == names
        assert all(kernel["local_bytes"] == 0 for kernel in kernels), kernels


def test_every_case_is_run():
    assert sorted(case for group in GROUPS for case in group) == sorted(CASES)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1].isdigit():
        ahead_of_time.main(COMPILED, *sys.argv[1:])
    else:
        interpret(*sys.argv[1:])
