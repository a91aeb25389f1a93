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


def slow(job):
    """Kernels that take a minute to compile and another for each architecture."""
    return job.group == "tikhonov"


def of_the_table(job):
    """Whether the table was made from this very PTX by this very release."""
    version, _ = resources.nvcc_facts(NVCC)
    digest = resources.ptx_digest(job, NVCC)
    return version == TABLE["nvcc"] and digest == TABLE["ptx_digests"][job.name]


@needs_nvcc
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "job",
    [pytest.param(job, marks=[pytest.mark.lasts(60)] * slow(job)) for job in resources.JOBS],
    ids=lambda job: job.name,
)
def test_kernels_compile_without_warnings(job):
    assert NVCC is not None
    assert resources.ptx_facts(job, NVCC)["warnings"] == []


@needs_nvcc
@pytest.mark.check("nvcc")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
@pytest.mark.parametrize("job", resources.JOBS, ids=lambda job: job.name)
def test_no_kernel_spills_and_the_table_is_current(job, architecture):
    """What ptxas reports is what the table says.

    The slow kernels are not assembled again for an architecture that no machine code is shipped
    for, if release and PTX are those of the table: the report can be no other.
    """
    assert NVCC is not None
    version, codes = resources.nvcc_facts(NVCC)
    if architecture not in codes:
        pytest.skip(f"nvcc {version} does not compile for {architecture}")
    names = resources.kernels_of(job, NVCC)
    assert names
    written = {name: TABLE["kernels"].get(name, {}).get(architecture) for name in names}
    if slow(job) and architecture not in resources.SHIPPED and of_the_table(job):
        assert all(used is not None and used["spill_bytes"] == 0 for used in written.values())
        return
    report = resources.assemble(resources.to_ptx(job, NVCC), architecture, NVCC)
    of_kernels = resources.by_kernel({(job, architecture): report})
    found = {name: by[architecture] for name, by in of_kernels.items()}
    assert found.keys() == names
    spills = {name: used for name, used in found.items() if used["spill_bytes"] > 0}
    assert not spills, f"spilling on {architecture}: {spills}"
    if version != TABLE["nvcc"]:
        pytest.skip(
            f"no spills; registers not compared: nvcc {version}, the table is of {TABLE['nvcc']}"
        )
    assert found == written, "run `python tests/cuda_resources.py` and commit the table"


@needs_nvcc
def test_another_ptx_is_not_taken_for_that_of_the_table(monkeypatch):
    job = resources.Job("hermitian_nmse", "float")
    assert of_the_table(job) == (resources.nvcc_facts(NVCC)[0] == TABLE["nvcc"])
    monkeypatch.setitem(TABLE["ptx_digests"], job.name, resources.ptx_digest(job, NVCC)[::-1])
    assert not of_the_table(job)


@needs_nvcc
def test_the_table_has_the_kernels_that_are_compiled_and_no_others():
    names = set().union(*(resources.kernels_of(job, NVCC) for job in resources.JOBS))
    assert names == set(TABLE["kernels"]), "run `python tests/cuda_resources.py`"


def test_the_table_covers_every_architecture_without_spills():
    assert TABLE["kernels"]
    assert (TABLE["ptx"], TABLE["flags"]) == (resources.PTX, list(resources.FLAGS))
    assert set(TABLE["ptx_digests"]) == {job.name for job in resources.JOBS}
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
