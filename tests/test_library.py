# SPDX-License-Identifier: Apache-2.0
"""Loading, fallback, selection and description of the backends, each in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import riskernels
from riskernels import info, library

PACKAGE = Path(riskernels.__file__).parent
CALL = """
import torch, riskernels
a = torch.randn(2, 3, 4, dtype=torch.complex64)
h = torch.randn(2, 4, 5, dtype=torch.complex64)
c = torch.randn(2, 3, 5, dtype=torch.complex64)
for _ in range(3):
    torch.ops.riskernels.tikhonov_covariance(a, h, c)
torch.ops.riskernels.hermitian_nmse(a.mT @ a, a.mT @ a)
print(riskernels.library.implementation("tikhonov_covariance", "cpu"))
"""


def python(
    code: str, *, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """Run code in a new interpreter that finds riskernels in ``path`` (default: this one)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RISKERNELS_")}
    folder = path or PACKAGE.parent
    if path is not None:
        # An editable install would lend its compiled modules to the copy.
        keep = "[f for f in sys.meta_path if 'Editable' not in str(f)]"
        code = f"import sys; sys.meta_path[:] = {keep}\n{code}"
    env["PYTHONPATH"] = str(folder)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**env, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def without_library(tmp_path: Path) -> Path:
    """A copy of the package that was never built."""
    shutil.copytree(
        PACKAGE, tmp_path / "riskernels", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    return tmp_path


def test_native_library_serves_the_cpu():
    result = python(CALL, RISKERNELS_REQUIRE="cpu")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "cpu"
    assert "RuntimeWarning" not in result.stderr


def test_fallback_works_and_warns_once(without_library):
    result = python(CALL, path=without_library)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "reference"
    assert result.stderr.count("runs on the PyTorch reference on cpu") == 1
    assert "the library was not built" in result.stderr


def test_require_turns_a_missing_backend_into_an_error(without_library):
    result = python(CALL, path=without_library, RISKERNELS_REQUIRE="cpu")
    assert result.returncode != 0
    assert (
        "RISKERNELS_REQUIRE=cpu: backend not available: the library was not built" in result.stderr
    )
    result = python(CALL, RISKERNELS_REQUIRE="gpu")
    assert "RISKERNELS_REQUIRE=gpu: expected one of" in result.stderr


def test_damaged_library_is_reported_verbatim(without_library):
    (without_library / "riskernels/lib").mkdir(exist_ok=True)
    (without_library / "riskernels/lib/libriskernels_cpu.so").write_bytes(b"not a library")
    result = python(CALL, path=without_library)
    assert result.stdout.strip() == "reference"
    assert "invalid ELF header" in result.stderr or "file too short" in result.stderr


@pytest.mark.parametrize("level", library.SIMD_LEVELS)
def test_every_instruction_set_that_this_processor_has(level):
    """RISKERNELS_SIMD forces a path; one that cannot run is refused at import."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import riskernels, torch, itertools
import tikhonov_inputs as ti
import test_hermitian_nmse, test_tikhonov_covariance, test_tikhonov_snapshots
torch.set_num_threads(1)
print(riskernels.library.simd_level())
for k, (m, n) in enumerate([(1, 1), (7, 31), (16, 144), (33, 50)]):
    for dtype in (torch.complex64, torch.complex128):
        for per_snapshot, modulus in test_tikhonov_covariance.KINDS:
            inputs = ti.make(2, 5, m, n, dtype, per_snapshot=per_snapshot, modulus=modulus)
            test_tikhonov_covariance.check(inputs, **test_tikhonov_covariance.OPTIONS[k])
            test_tikhonov_snapshots.check(inputs, relative=k % 2 == 1)
        pair = test_hermitian_nmse.pair(2, n, dtype, "cpu")
        for mask in test_hermitian_nmse.masks(2, n, "cpu"):
            test_hermitian_nmse.check(*pair, mask)
print("ok")
"""
    code = code.replace("sys.argv[1]", repr(str(Path(__file__).parent)))
    result = python(code, RISKERNELS_SIMD=level, RISKERNELS_REQUIRE="cpu")
    if "which this processor does not have" in result.stderr:
        assert result.returncode != 0 and level != "portable"
        return
    assert result.stdout.split() == [level, "ok"], result.stdout + result.stderr


def test_use_backend_nests_and_survives_inference_mode(monkeypatch):
    calls = []
    reference = library._references["hermitian_nmse_forward"]

    def counting(*args, **kwargs):
        calls.append(args)
        return reference(*args, **kwargs)

    monkeypatch.setitem(library._references, "hermitian_nmse_forward", counting)
    a = torch.randn(2, 4, 4, dtype=torch.complex64)
    with riskernels.use_backend("reference"):
        riskernels.hermitian_nmse(a, a)
        assert len(calls) == 1
        with riskernels.use_backend("cpu"):
            riskernels.hermitian_nmse(a, a)
        assert len(calls) == 1, "the outer selection overruled the inner one"
        riskernels.hermitian_nmse(a, a)
        assert len(calls) == 2
        with torch.inference_mode():
            riskernels.hermitian_nmse(a, a)
        assert len(calls) == 3
    with riskernels.use_backend("cpu"), riskernels.use_backend("reference"):
        riskernels.hermitian_nmse(a, a)
    assert len(calls) == 4


def test_unknown_instruction_set_is_refused():
    result = python("import riskernels", RISKERNELS_SIMD="sse9")
    assert "RISKERNELS_SIMD=sse9, expected portable, avx2 or avx512" in result.stderr


def test_info(capsys):
    command = [sys.executable, "-m", "riskernels.info"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert info.main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["backends"]["cpu"]["available"] and facts["simd"] in library.SIMD_LEVELS
    assert facts["build"]["torch_abi"] == "2.10"
    assert set(facts["operators"]) == set(library.operators())
    for op, where in facts["operators"].items():
        assert where["cpu"] == "cpu" and op in text
    for status in facts["backends"].values():
        assert status["available"] or status["reason"] in text


def test_info_without_a_build(without_library):
    code = "import riskernels.info as i; i.main([])"
    result = python(code, path=without_library)
    assert result.returncode == 0, result.stderr
    assert "build facts: not available" in result.stdout
    assert "cpu        not available: the library was not built" in result.stdout


def test_old_torch_is_refused(without_library):
    code = "import torch; torch.__version__ = '2.9.1'; import riskernels"
    result = python(code)
    assert "riskernels needs torch >= 2.10, found 2.9.1; upgrade torch" in result.stderr


def test_scratch_stays_under_two_megabytes_a_thread():
    """At the default shape the operator allocates its output, and a thread its scratch."""
    code = """
import resource, torch, riskernels
torch.set_num_threads(1)
def inputs(b):
    return (torch.randn(b, 16, 16, dtype=torch.complex64),
            torch.randn(b, 16, 144, dtype=torch.complex64) / 12,
            torch.polar(torch.ones(b, 16, 144), torch.rand(b, 16, 144) * 6.28))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
riskernels.tikhonov_covariance(*(t[:, :1, :1] for t in inputs(1)))
data = inputs(64)
before = peak()
keep = [riskernels.tikhonov_covariance(*data) for _ in range(4)]
print(peak() - before - sum(t.numel() * 8 for t in keep))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 2 * 2**20, f"{int(result.stdout)} bytes beyond the outputs"
