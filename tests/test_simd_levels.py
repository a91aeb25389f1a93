# SPDX-License-Identifier: Apache-2.0
"""One source, three instruction sets: the same results, and no instruction of a wider set outside.

What the processor has is run. What it lacks is read: the disassembled library shows which code
uses which registers, and that the choice between them is the only way there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import simd_outputs
import torch
from torch import Tensor

from riskernels import library
from riskernels.testing import assert_close, tolerance

ROOT = Path(__file__).parent.parent
STATUS = library.backend_status()["cpu"]
pytestmark = pytest.mark.skipif(not STATUS.available, reason="the CPU library is not built")

NEEDS = {
    "portable": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
}
WIDE = ("avx2", "avx512")
CONDITION = {"factored_blend": 4.0, "factored_leakage": 8.0}
"""Where a normalised result is insensitive to its input's scale, parts of the gradient cancel:
their size over that of what is left. 1 for all others."""


def _missing(level: str) -> set[str]:
    """What the processor lacks, from the kernel's own list."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.M)
    return NEEDS[level] - set(flags.group(1).split() if flags else ())


def _python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), str(ROOT / "tests")])
    inherited = os.environ.get("PYTHONPATH")
    path = f"{path}{os.pathsep}{inherited}" if inherited else path
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "RISKERNELS_REQUIRE": "cpu", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@cache
def _exact() -> dict[str, Tensor]:
    """The reference in complex128, on what the inputs of either dtype hold."""
    with library.use_backend("reference"):
        return simd_outputs.outputs(torch.complex128)


PAST_THE_CACHES = """
import sys
import tikhonov_inputs as ti
import torch
from riskernels import tikhonov_covariance

n, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
scenes = (4 << 20) // (n * n * dtype.itemsize) + 3
y, h, codes = ti.make(scenes, 3, 4, n, dtype, seed=n).tensors
single = [[t[b : b + 1] for t in (y, h, codes)] for b in range(scenes)]
alone = torch.cat([tikhonov_covariance(*inputs) for inputs in single])
for threads in (1, 3, scenes + 1):
    torch.set_num_threads(threads)
    together = tikhonov_covariance(y, h, codes)
    assert together.numel() * dtype.itemsize > 4 << 20 > alone[0].numel() * dtype.itemsize
    assert torch.equal(torch.view_as_real(together), torch.view_as_real(alone)), threads
"""


@pytest.mark.parametrize(
    "n,dtype", [(144, "complex64"), (145, "complex64"), (149, "complex128"), (513, "complex64")]
)
@pytest.mark.parametrize("level", library.SIMD_LEVELS)
def test_outputs_beyond_the_caches_have_the_bits_of_single_scenes(
    level: str, n: int, dtype: str
) -> None:
    """Rows of whole cache lines, others, and scenes too large to be made aside."""
    if missing := _missing(level):
        pytest.skip(f"this processor lacks {level}: {', '.join(sorted(missing))}")
    result = _python("-c", PAST_THE_CACHES, str(n), dtype, RISKERNELS_SIMD=level)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("level", library.SIMD_LEVELS)
def test_every_operator_agrees_with_the_reference(level: str, tmp_path: Path) -> None:
    """Each level is held to the same complex128 values, and so to the others."""
    if missing := _missing(level):
        pytest.skip(f"this processor lacks {level}: {', '.join(sorted(missing))}")
    file = tmp_path / "outputs.pt"
    result = _python(simd_outputs.__file__, str(file), RISKERNELS_SIMD=level)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = torch.load(file)
    assert found["level"] == level
    assert set(found["ran"]) == set(library.operators()) == set(STATUS.operators)
    exact = _exact()
    assert found["outputs"].keys() == exact.keys()
    for name, value in found["outputs"].items():
        condition = max((c for op, c in CONDITION.items() if name.startswith(op)), default=1.0)
        dtype = torch.complex64 if "complex64" in name else torch.complex128
        assert_close(value, exact[name], tolerance(dtype, condition), f"{level}: {name}")


@pytest.mark.parametrize("level", WIDE)
def test_a_level_that_the_processor_lacks_is_refused(level: str) -> None:
    if not _missing(level):
        pytest.skip(f"this processor has {level}")
    result = _python("-c", "import riskernels", RISKERNELS_SIMD=level)
    assert result.returncode == 1
    message = f"riskernels: RISKERNELS_SIMD={level}, which this processor does not have"
    assert message in result.stderr


# Code of the kernels carries its namespace at the head of the mangled name.
NAMESPACE = re.compile(r"_Z(?:[A-Z]+)*10riskernels(?:8(portable)|4(avx2)|6(avx512))")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
# 512-bit and opmask registers, registers that only EVEX encodes, and its decorations.
EVEX = re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b|\{(?:%k|z\}|1to|r[nduz]-sae|sae)")
YMM = re.compile(r"%ymm")
# VEX: AVX, AVX2 and FMA, whose mnemonics start with v, and BMI.
BMI = {"andn", "bextr", "blsi", "blsmsk", "blsr", "bzhi", "mulx", "pdep", "pext", "rorx"}
BMI |= {"sarx", "shlx", "shrx", "lzcnt"}
# AVX-512 instructions on registers that AVX has as well.
EVEX_ONLY = re.compile(
    r"vmovdq(?:a|u)(?:8|16|32|64)$|vp(?:and|andn|or|xor)[dq]$|vpternlog|vperm[it]2|vrndscale"
    r"|vscalef|vget(?:exp|mant)|vfixupimm|vrange|vreduce|vfpclass|valign[dq]$|vblendm|vpblendm"
    r"|v(?:p?compress|p?expand)|v(?:extract|insert|broadcast|shuf)[fi](?:32|64)x|vpabsq|vpmullq"
    r"|vp(?:min|max)[su]q|vpro[lr]v?[dq]|vpsraq|vpsllvw|vpsr[al]vw|vpsravq|vpconflict|vplzcnt"
    r"|vpmov[us]*(?:qd|qw|qb|dw|db|wb)$|vpmov\w2m|vpmovm2|vcvtt?p[sd]2u|vcvtt?s[sd]2usi|vcvtu"
    r"|vcvtt?p[sd]2qq|vcvtqq2|vrcp14|vrsqrt14|vdbpsadbw|vpcmpu?[bwdq]$|vpermw|vpermb"
)


@cache
def _instructions() -> dict[str, dict[str, str]]:
    """By namespace ("" for all else): the kinds of instructions in it, each with an example."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("no objdump")
    found: dict[str, dict[str, str]] = defaultdict(dict)
    namespace, function = "", ""
    with subprocess.Popen(
        [objdump, "-d", "--no-show-raw-insn", "-w", str(STATUS.path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if head := FUNCTION.match(line):
                function = head.group(1)
                match = NAMESPACE.match(function)
                namespace = next(filter(None, match.groups()), "") if match else ""
                continue
            if "\t" not in line:
                continue
            text = line.split("\t", 1)[1].strip()
            mnemonic = text.split(" ", 1)[0]
            kinds = found[namespace]
            kinds.setdefault("any", function)
            if mnemonic.startswith("v") and mnemonic not in ("verr", "verw"):
                kinds.setdefault("VEX", f"{function}: {text}")
                if EVEX_ONLY.match(mnemonic) or EVEX.search(text):
                    kinds.setdefault("EVEX", f"{function}: {text}")
            elif EVEX.search(text):
                kinds.setdefault("EVEX", f"{function}: {text}")
            if YMM.search(text):
                kinds.setdefault("ymm", f"{function}: {text}")
            if "%zmm" in text:
                kinds.setdefault("zmm", f"{function}: {text}")
            if mnemonic.rstrip("lqw") in BMI or mnemonic in BMI:
                kinds.setdefault("BMI", f"{function}: {text}")
    assert process.returncode == 0
    return found


def test_no_wide_instruction_outside_its_namespace() -> None:
    found = _instructions()
    assert set(found) == {"", "portable", "avx2", "avx512"}
    for namespace in ("", "portable"):
        for kind in ("VEX", "EVEX", "ymm", "zmm", "BMI"):
            assert kind not in found[namespace], found[namespace][kind]
    # The processor is asked for AVX2 and FMA alone.
    for kind in ("EVEX", "zmm", "BMI"):
        assert kind not in found["avx2"], found["avx2"][kind]
    assert "BMI" not in found["avx512"], found["avx512"]["BMI"]


def test_wide_instructions_are_found_where_they_belong() -> None:
    """The patterns match what they are meant to: otherwise the test above shows nothing."""
    found = _instructions()
    assert {"ymm", "VEX"} <= found["avx2"].keys()
    assert {"zmm", "VEX", "EVEX"} <= found["avx512"].keys()


def test_every_kernel_exists_for_every_level() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    listed = subprocess.run([nm, str(STATUS.path)], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in listed.stdout.splitlines()]
    declared = re.findall(
        r"template <typename T>\s*\\\n\s*void (\w+)\(",
        (ROOT / "csrc" / "cpu" / "kernels.hpp").read_text(),
    )
    assert len(declared) >= len(library.operators())
    for level in library.SIMD_LEVELS:
        for name in declared:
            for real in ("f", "d"):
                start = f"_ZN10riskernels{len(level)}{level}{len(name)}{name}I{real}E"
                assert any(s.startswith(start) for s in symbols), f"{level}::{name}<{real}>"
