# SPDX-License-Identifier: Apache-2.0
"""Builds the CPU library under sanitizers, and runs the operators on it.

``python tests/sanitizers/sanitize.py address`` (with UBSan) or ``thread``; without a name both.
``python tests/sanitizers/sanitize.py address -- COMMAND`` runs Python's COMMAND in that set-up.

First a fault of every kind that is planted on purpose must be reported (else a clean run shows
nothing), then every operator must run without a report. The exit status is that of the first
failure. Needs GCC.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXIT_CODE = 66
"""Of a process that a sanitizer has ended."""

SANITIZERS = {"address": "address,undefined", "thread": "thread"}
RUNTIME = {"address": "libasan.so", "thread": "libtsan.so"}
PLANTED = {
    "address": {
        "overflow": "AddressSanitizer: heap-buffer-overflow",
        "undefined": "signed integer overflow",
    },
    "thread": {"race": "ThreadSanitizer: data race"},
}
"""What must be reported of planted_faults.cpp."""

# Python and torch leak on purpose at exit, and an allocation that cannot be made is refused as it
# is elsewhere. Nothing else is switched off, and nothing is suppressed.
OPTIONS = {
    "address": {
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:exitcode={EXIT_CODE}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:exitcode={EXIT_CODE}",
    },
    "thread": {"TSAN_OPTIONS": f"halt_on_error=1:exitcode={EXIT_CODE}"},
}
TESTS = ("tests/test_errors.py",)
"""Operator tests that run under AddressSanitizer beside the workload, which runs everywhere."""


def folder(kind: str) -> Path:
    """Where the build of ``kind`` lies."""
    return ROOT / "build" / f"sanitize-{kind}"


def _simd_level() -> str:
    """The widest instruction set of this processor: long vectors have long tails."""
    flags = Path("/proc/cpuinfo").read_text().split()
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= set(flags):
        return "avx512"
    return "avx2" if {"avx2", "fma"} <= set(flags) else "portable"


def build(kind: str) -> None:
    """Configure and compile the library, of one instruction set, and the planted faults."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    # Tools that pip has put beside this Python come first.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    for command in (
        ["-S", str(ROOT), "-B", str(folder(kind)), "-G", "Ninja", "-Wno-dev",
         f"-DRISKERNELS_TORCH_DIR={Path(spec.origin).parent}",
         f"-DRISKERNELS_SANITIZE={SANITIZERS[kind]}", f"-DRISKERNELS_SIMD_LEVELS={_simd_level()}"],
        ["--build", str(folder(kind))],
    ):  # fmt: skip
        done = subprocess.run(
            ["cmake", *command],
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"sanitize {kind}: the build failed\n{done.stdout}")


def environment(kind: str) -> dict[str, str]:
    """Variables under which Python runs on the build of ``kind``."""
    compiler = os.environ.get("CXX", "").split()[:1] or [shutil.which("g++") or "c++"]

    def library(name: str) -> str:
        found = subprocess.run(
            [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).is_absolute():
            raise SystemExit(f"sanitize: {compiler[0]} has no {name}; install GCC's sanitizers")
        return found

    paths = [ROOT, ROOT / "python", ROOT / "tests", os.environ.get("PYTHONPATH")]
    return {
        **os.environ,
        **OPTIONS[kind],
        # The C++ library as well, since Python is not linked to it: the sanitizer must find what
        # throws exceptions when it starts.
        "LD_PRELOAD": f"{library(RUNTIME[kind])} {library('libstdc++.so.6')}",
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
        "RISKERNELS_LIBRARY_FOLDER": str(folder(kind)),
        "RISKERNELS_REQUIRE": "cpu",
        # Four threads divide few scenes. ThreadSanitizer would report torch's, which are not
        # instrumented: for it csrc/cpu/ranges.hpp has four of its own.
        "OMP_NUM_THREADS": "1" if kind == "thread" else "4",
    }


def run(kind: str, arguments: Sequence[str], *, capture: bool = False) -> tuple[int, str]:
    """Exit status and error output of Python with ``arguments`` in the set-up of ``kind``."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(kind),
        stderr=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr or ""


def check_planted(kind: str) -> int:
    """0 where every planted fault is reported, and what has none is not."""
    program = str(HERE / "planted.py")
    for fault, expected in {**PLANTED[kind], "no_race": ""}.items():
        status, report = run(kind, [program, fault], capture=True)
        found = status == EXIT_CODE and expected in report if expected else status == 0
        print(f"sanitize {kind}: planted {fault}: {'as expected' if found else 'NOT AS EXPECTED'}")
        if not found:
            print(f"exit status {status}\n{report}", file=sys.stderr)
            return 1
    return 0


def check(kind: str) -> int:
    """Build, planted faults, workload, operator tests."""
    start = time.monotonic()
    build(kind)
    built = time.monotonic()
    status = check_planted(kind) or run(kind, [str(HERE / "workload.py")])[0]
    if kind == "address":
        options = ["-q", "-p", "no:cacheprovider", "-k", "not reference-cpu"]
        status = status or run(kind, ["-m", "pytest", *options, *TESTS])[0]
    times = f"built in {built - start:.0f} s, run in {time.monotonic() - built:.0f} s"
    print(f"sanitize {kind}: {'no report' if status == 0 else f'FAILED ({status})'}, {times}")
    return status


def main(arguments: list[str]) -> int:
    kinds, command = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        kinds, command = arguments[:cut], arguments[cut + 1 :]
    unknown = set(kinds) - set(SANITIZERS)
    if unknown or (command and len(kinds) != 1):
        print(__doc__, file=sys.stderr)
        return 2
    if command:
        build(kinds[0])
        return run(kinds[0], command)[0]
    return next((status for kind in kinds or SANITIZERS if (status := check(kind))), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
