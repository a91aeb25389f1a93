# SPDX-License-Identifier: Apache-2.0
"""Triton kernels compiled ahead of time for sm_80 and sm_90, on a machine without a GPU.

The very launches of the operators are compiled: a stand-in for the CUDA driver names the
architecture, and every launch ends at the cubin. Run as a script with an architecture and the names
of cases, this file prints the resources of each case's kernels as JSON.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.check("triton-compiler"),
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="triton is not installed (PyPI has it for Linux on x86-64 only)",
    ),
]

COVARIANCE = {
    "estimate_kernel",
    "outer_product_kernel",
    "estimate_gradient_kernel",
    "adjoint_kernel",
    "channel_gradient_kernel",
}
NMSE = {"nmse_sums_kernel", "nmse_gradient_kernel"}


class Driver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(arch: int) -> list[tuple[str, Any]]:
    """From now on launches compile for ``arch`` and stop there; the list fills with kernels."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from riskernels.triton_kernels import _launch

    driver.set_active(Driver(arch))
    _launch.DEVICES.add("cpu")
    kernels: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_launch(self: Any, *args: Any, **options: Any) -> Any:
        kernel = run(self, *args, **{**options, "warmup": True})
        kernels.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = compile_launch
    return kernels


def operator(name: str) -> Any:
    """A Triton function, whether or not the library registered it on this machine."""
    stem = name.removesuffix("_backward").removesuffix("_forward")
    return getattr(importlib.import_module(f"riskernels.triton_kernels.{stem}"), name)


def arguments(
    b: int, snapshots: int, m: int, n: int, dtype: torch.dtype, per_snapshot: bool = False
) -> tuple[Any, ...]:
    return (
        torch.zeros(b, snapshots, m, dtype=dtype),
        torch.ones((b, snapshots, m, n) if per_snapshot else (b, m, n), dtype=dtype),
        torch.ones(b, snapshots, n, dtype=dtype),
        1e-3,
    )


def covariance(*sizes: Any, per_snapshot: bool = False, **options: bool) -> None:
    """Compile both passes."""
    inputs = arguments(*sizes, per_snapshot)
    options = {"relative": False, "center": False, **options}
    value = operator("tikhonov_covariance")(*inputs, **options)
    operator("tikhonov_covariance_backward")(value, *inputs, **options)


def snapshots(*sizes: Any, per_snapshot: bool = False, relative: bool = False) -> None:
    """Compile both passes."""
    inputs = arguments(*sizes, per_snapshot)
    value = operator("tikhonov_snapshots")(*inputs, relative=relative)
    operator("tikhonov_snapshots_backward")(value, *inputs, relative=relative)


def nmse(b: int, n: int, dtype: torch.dtype, mask: bool = False, adjacent: bool = True) -> None:
    """Compile both passes, for rows of adjacent entries or for columns of them."""
    matrix = torch.zeros(b, n, n, dtype=dtype)
    matrix = matrix if adjacent else matrix.mT
    element_mask = torch.ones(b, n, dtype=torch.bool) if mask else None
    options = (element_mask, 0.2, 0.8, 1e-12)
    value, sums = operator("hermitian_nmse_forward")(matrix, matrix, *options)
    operator("hermitian_nmse_backward")(value, matrix, matrix, sums, *options)


def default() -> None:
    covariance(64, 16, 16, 144, torch.complex64)
    snapshots(64, 16, 16, 144, torch.complex64)
    nmse(64, 144, torch.complex64)


def default_double() -> None:
    covariance(64, 16, 16, 144, torch.complex128)
    nmse(64, 144, torch.complex128)


def many_scenes() -> None:
    """The default sizes in a batch that fills a device: groups of 16 snapshots."""
    snapshots(512, 16, 16, 144, torch.complex64)


def options() -> None:
    """One channel per snapshot, every option; a mask."""
    covariance(*(64, 16, 16, 144, torch.complex64), per_snapshot=True, relative=True, center=True)
    nmse(64, 144, torch.complex64, mask=True)


def awkward() -> None:
    """Sizes of 1, which Triton compiles as constants; M beyond a program; bands of rows."""
    covariance(1, 1, 1, 1, torch.complex64, relative=True, center=True)
    snapshots(2, 2, 70, 7, torch.complex64, relative=True)
    nmse(1, 1, torch.complex64)
    nmse(1, 257, torch.complex64, mask=True, adjacent=False)


CASES = {f.__name__: f for f in (default, default_double, many_scenes, options, awkward)}


def resources(kernel: Any) -> dict[str, Any]:
    """Registers, stack and shared memory in bytes, and what the instructions tell."""
    import triton

    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run(
        [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    counts = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    ptx = kernel.asm["ptx"]
    return {
        "registers": counts["REG"],
        "local_bytes": counts["STACK"] + counts["LOCAL"],
        "shared_bytes": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "target": re.search(r"\.target (\w+)", ptx).group(1),
        "tf32": "tf32" in ptx,
        "atomics": bool(re.search(r"\b(atom|red)\.", ptx)),
    }


def main(cases: dict[str, Callable[[], None]], arch: str, *names: str) -> None:
    """Print the resources of every launch, by case."""
    torch.set_num_threads(1)
    kernels = compile_only(int(arch))
    found = {}
    for name in names:
        kernels.clear()
        cases[name]()
        found[name] = [{"name": kernel, **resources(built)} for kernel, built in kernels]
    print(json.dumps(found))


def compiled(
    script: str, arch: int, cases: Sequence[str], cache: Path
) -> dict[str, list[dict[str, Any]]]:
    """The resources of every launch of some cases, compiled in a process of their own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, script, str(arch), *cases],
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(result.stdout)
    assert list(found) == list(cases)
    for kernel in (kernel for kernels in found.values() for kernel in kernels):
        assert kernel["target"].startswith(f"sm_{arch}"), kernel
        assert not kernel["tf32"] and not kernel["atomics"], kernel
        # What every GPU grants a kernel without a special request.
        assert kernel["shared_bytes"] <= 48 * 1024, kernel
    return found


@pytest.mark.lasts(30)
@pytest.mark.parametrize(
    "arch,variants",
    [(80, ("default_double", "many_scenes")), (90, ("options",))],
)
def test_kernels_of_the_default_shape_live_in_registers(arch, variants, tmp_path):
    """Both operators, both passes; by default, this many are launched."""
    found = compiled(__file__, arch, ("default", *variants), tmp_path)
    names = [kernel["name"] for kernel in found["default"]]
    assert set(names) == COVARIANCE | NMSE
    # Covariance 2 + 4, snapshots 1 + 3, NMSE 1 + 1.
    assert len(names) == 12
    for kernels in found.values():
        assert {kernel["name"] for kernel in kernels} >= {"estimate_kernel", "adjoint_kernel"}
        assert all(kernel["local_bytes"] == 0 for kernel in kernels), kernels


@pytest.mark.lasts(20)
def test_awkward_sizes(tmp_path):
    (kernels,) = compiled(__file__, 90, ("awkward",), tmp_path).values()
    names = [kernel["name"] for kernel in kernels]
    assert set(names) == COVARIANCE | NMSE | {"nmse_finish_kernel"}
    # The composite path for M = 70 solves without the estimate's kernel.
    assert names.count("estimate_kernel") == 2 and names.count("adjoint_kernel") == 2


if __name__ == "__main__":
    main(CASES, *sys.argv[1:])
