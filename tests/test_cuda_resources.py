# SPDX-License-Identifier: Apache-2.0
"""nvcc compiles every kernel for every architecture, none spills, and a table holds what they take.

The table is compared exactly where nvcc is the release that wrote it; another release allocates
registers differently, and then only the spills are checked, which the skip says.
"""

from __future__ import annotations

import json

import cuda_resources as resources
import pytest

NVCC = resources.find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
TABLE = json.loads(resources.TABLE.read_text())

REPORT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN10riskernels4cuda4demoIfLi16EEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN10riskernels4cuda4demoIfLi16EEEvPT_
    64 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 64 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function '_ZN10riskernels4cuda4noneEv' for 'sm_90'
ptxas info    : Function properties for _ZN10riskernels4cuda4noneEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 352 bytes cmem[0]
"""


@needs_nvcc
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("job", resources.JOBS, ids=lambda job: job.name)
def test_kernels_compile_without_warnings(job):
    assert NVCC is not None
    assert resources.ptx_facts(job, NVCC)["warnings"] == []


@needs_nvcc
@pytest.mark.check("nvcc")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_no_kernel_spills_and_the_table_is_current(architecture):
    assert NVCC is not None
    version, codes = resources.nvcc_facts(NVCC)
    if architecture not in codes:
        pytest.skip(f"nvcc {version} does not compile for {architecture}")
    # All of them at once, where nvcc knows them: the later architectures find their reports.
    reports = resources.compile_all([a for a in resources.ARCHITECTURES if a in codes], NVCC)
    reports = {key: report for key, report in reports.items() if key[1] == architecture}
    assert all(report["kernels"] for report in reports.values())
    found = resources.table(reports, version)["kernels"]
    spills = {name: by for name, by in found.items() if by[architecture]["spill_bytes"] > 0}
    assert not spills, f"spilling on {architecture}: {spills}"
    if version != TABLE["nvcc"]:
        pytest.skip(
            f"no spills; registers not compared: nvcc {version}, the table is of {TABLE['nvcc']}"
        )
    written = {
        name: {architecture: by[architecture]}
        for name, by in TABLE["kernels"].items()
        if architecture in by
    }
    assert found == written, "run `python tests/cuda_resources.py` and commit the table"


def test_the_table_covers_every_architecture_without_spills():
    assert TABLE["kernels"]
    assert (TABLE["ptx"], TABLE["flags"]) == (resources.PTX, list(resources.FLAGS))
    for name, by_architecture in TABLE["kernels"].items():
        assert list(by_architecture) == list(resources.ARCHITECTURES), name
        for used in by_architecture.values():
            assert used["spill_bytes"] == 0 and 0 < used["registers"] <= 255, name


def test_reports_are_read_as_ptxas_writes_them():
    found = resources.parse(REPORT)
    names = resources.demangle(found)
    by_name = {names[mangled]: used for mangled, used in found.items()}
    assert by_name == {
        "demo<float, 16>": {
            "registers": 40,
            "spill_bytes": 20,
            "stack_bytes": 64,
            "static_shared_bytes": 1024,
        },
        "none": {
            "registers": 8,
            "spill_bytes": 0,
            "stack_bytes": 0,
            "static_shared_bytes": 0,
        },
    }


def test_a_change_anywhere_below_a_kernel_is_compiled_again(monkeypatch, tmp_path):
    (tmp_path / "common").mkdir()
    (tmp_path / "cuda").mkdir()
    shape = tmp_path / "common" / "shape.hpp"
    shape.write_text("struct Shape;\n")
    (tmp_path / "cuda" / "device.cuh").write_text('#include "../common/shape.hpp"\n')
    (tmp_path / "cuda" / "hermitian_nmse.cuh").write_text('#include "device.cuh"\n')
    monkeypatch.setattr(resources, "KERNELS", tmp_path / "cuda")
    job = resources.Job("hermitian_nmse", "float")
    before = resources.digest(job, "13.0.88")
    assert resources.digest(job, "13.0.88") == before != resources.digest(job, "13.1.0")
    shape.write_text("struct Shape {};\n")
    assert resources.digest(job, "13.0.88") != before


@needs_nvcc
def test_a_spilling_kernel_is_seen(monkeypatch, tmp_path):
    """Without this the zeros of the table could be those of a parser that reads nothing."""
    (tmp_path / "hermitian_nmse.cuh").write_text(
        """
        #include <cstdint>
        namespace riskernels { template <typename T> struct NmseProblem {}; }
        namespace riskernels::cuda { struct Target {};
        template <typename T> __global__ void __launch_bounds__(1024, 2) greedy(T* p) {
          T x[96];
          for (int i = 0; i < 96; ++i) x[i] = p[i * 1024 + threadIdx.x];
          __syncthreads();
          for (int i = 0; i < 96; ++i) p[i * 1024 + threadIdx.x] = x[95 - i] * x[i];
        }
        template <typename T> void hermitian_nmse_forward(const Target&, const NmseProblem<T>&,
                                                          T* p, T*) { greedy<T><<<1, 1024>>>(p); }
        template <typename T> void hermitian_nmse_backward(const Target&, const NmseProblem<T>&,
                                     const T*, int64_t, const T*, T*, T*) {}
        }
        """
    )
    monkeypatch.setattr(resources, "KERNELS", tmp_path)
    monkeypatch.setattr(resources, "CACHE", tmp_path / "cache")
    assert NVCC is not None
    job = resources.Job("hermitian_nmse", "float")
    first = resources.assemble(resources.to_ptx(job, NVCC), "sm_80", NVCC)
    (used,) = first["kernels"].values()
    assert used["spill_bytes"] > 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.[jp]*")}
    assert len(kept) == 2
    assert resources.assemble(resources.to_ptx(job, NVCC), "sm_80", NVCC) == first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
