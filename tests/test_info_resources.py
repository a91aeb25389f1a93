# SPDX-License-Identifier: Apache-2.0
"""``riskernels.info --verbose``: kernels as the driver states them, or as nvcc compiled them."""

from __future__ import annotations

import json

import pytest
import torch

from riskernels import _resources, info, library

KERNEL = {
    "kernel": "void riskernels::cuda::fused_covariance<float, 16>()",
    "registers": 80,
    "local_bytes": 0,
    "static_shared_bytes": 0,
    "dynamic_shared_bytes": 72704,
    "threads": 256,
    "blocks": 256,
    "blocks_per_multiprocessor": 3,
    "occupancy": 0.375,
}
CALL = {
    "operator": "tikhonov_covariance",
    "dtype": "complex64",
    "pass": "forward",
    **{"B": 64, "L": 16, "M": 16, "N": 144},
    "columns": 0,
    "sources": 0,
    "points": 0,
    "h_per_snapshot": True,
    "kernels": [KERNEL],
}
FACTORED = {**CALL, "operator": "factored_nmse", "L": 0, "M": 0, "h_per_snapshot": False}
FACTORED |= {"columns": 21, "sources": 5}
STEERING = {**FACTORED, "operator": "steering_power", "sources": 0, "points": 8192}
MEASURED = {"device": "A GPU", "compute_capability": "9.0", "calls": [CALL, FACTORED, STEERING]}
TABLE = {
    "nvcc": "13.0.88",
    "kernels": {
        "fused_covariance<float, 16>": {
            "sm_90": {
                "registers": 80,
                "spill_bytes": 4,
                "stack_bytes": 8,
                "static_shared_bytes": 0,
            }
        }
    },
}


def test_measured_kernels(monkeypatch):
    monkeypatch.setattr(_resources, "measured", lambda: MEASURED)
    text = "\n".join(_resources.lines(_resources.collect()))
    assert "CUDA kernels on A GPU (sm_90), as the driver states them" in text
    assert (
        "tikhonov_covariance forward, complex64, B=64 L=16 M=16 N=144, one H per snapshot" in text
    )
    assert "factored_nmse forward, complex64, B=64 N=144 r=21 k=5\n" in text
    assert "steering_power forward, complex64, B=64 N=144 r=21 G=8192\n" in text
    row = next(line for line in text.splitlines() if "fused_covariance" in line)
    assert row.split()[:8] == ["80", "0", "0", "72704", "256", "256", "3", "38%"]


@pytest.fixture
def no_library(monkeypatch):
    status = library.BackendStatus("cuda", reason="the library was not built")
    monkeypatch.setitem(library._status, "cuda", status)


def test_compiled_kernels_are_named_as_such(no_library, monkeypatch, tmp_path, capsys):
    table = tmp_path / "cuda_resources.json"
    table.write_text(json.dumps(TABLE))
    monkeypatch.setattr(_resources, "TABLE", table)
    assert info.main(["--verbose"]) == 0
    text = capsys.readouterr().out
    assert "as nvcc 13.0.88 compiled them, not measured" in text
    assert "CUDA library: the library was not built" in text
    row = next(line for line in text.splitlines() if "fused_covariance" in line)
    assert row.split()[:5] == ["sm_90", "80", "4", "8", "0"]
    assert info.main(["--verbose", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["cuda_kernels"]
    assert facts["source"] == "compiled" and facts["kernels"] == TABLE["kernels"]


def test_neither(no_library, monkeypatch, tmp_path):
    monkeypatch.setattr(_resources, "TABLE", tmp_path / "absent.json")
    (line,) = _resources.lines(_resources.collect())
    assert "the library was not built" in line and "part of the source tree alone" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_library_without_a_device_says_so(monkeypatch):
    status = library.BackendStatus("cuda", available=True, reason="", path="unused")
    monkeypatch.setitem(library._status, "cuda", status)
    with pytest.raises(RuntimeError, match="no CUDA device"):
        _resources.measured()
