# SPDX-License-Identifier: Apache-2.0
"""What ptxas reports about every CUDA kernel: registers, spills, stack, static shared memory.

``python tests/cuda_resources.py`` compiles all kernels for all architectures and rewrites
``tests/cuda_resources.json``. No GPU and no torch are needed: small files call the host entry
points of the ``.cuh`` files, which instantiates every kernel that these can start.

All architectures are assembled from the PTX of one compilation. That and the reports are kept under
``build/cuda_resources`` by the hash of everything that went into them, one lock for each, so that
parallel processes compile nothing twice. The table names the PTX that it was made from, by hashes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cuda_calls import CALLS

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "cuda_resources"
TABLE = ROOT / "tests" / "cuda_resources.json"

SHIPPED = ("sm_80", "sm_90")
"""What the library holds machine code for."""
ARCHITECTURES = (*SHIPPED, "sm_100")
PTX = "compute_80"
"""What all of them are assembled from, here as in CMakeLists.txt."""
FLAGS = ("-std=c++20", "-O3")


@dataclass(frozen=True)
class Job:
    """Operators that share kernels, in one precision."""

    group: str
    real: str

    @property
    def source(self) -> str:
        operators = CALLS[self.group]
        includes = "".join(f'#include "{op}.cuh"\n' for op in operators)
        names = "using namespace riskernels;\nusing namespace riskernels::cuda;\n"
        calls = "".join(operators.values())
        return f"{includes}using T = {self.real};\n{names}namespace calls {{{calls}}}\n"

    @property
    def name(self) -> str:
        return f"{self.group}-{self.real}"


Reports = dict[tuple[Job, str], dict[str, Any]]
JOBS = tuple(Job(group, real) for group in CALLS for real in ("double", "float"))


def find_nvcc() -> str | None:
    """nvcc as setup.py looks for it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [os.environ.get("CUDACXX"), f"{home}/bin/nvcc" if home else None, "nvcc"]
    return next((path for c in candidates if c and (path := shutil.which(c))), None)


@lru_cache
def nvcc_facts(nvcc: str) -> tuple[str, frozenset[str]]:
    """Release of nvcc, and the architectures it compiles for."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.findall(r"\bV(\d+\.\d+\.\d+)", text)
    codes = subprocess.run(
        [nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True
    ).stdout.split()
    return release[0], frozenset(codes)


def included(path: Path, seen: dict[Path, str]) -> dict[Path, str]:
    """The file and everything it includes by quotes, with their text."""
    path = path.resolve()
    if path not in seen and path.is_file():
        seen[path] = path.read_text()
        for name in re.findall(r'^\s*#include "(.+)"', seen[path], re.MULTILINE):
            included(path.parent / name, seen)
    return seen


def digest(job: Job, version: str) -> str:
    parts = [version, PTX, *FLAGS, job.source]
    for op in CALLS[job.group]:
        parts += [text for _, text in sorted(included(KERNELS / f"{op}.cuh", {}).items())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def parse(report: str) -> dict[str, dict[str, int]]:
    """Resources by mangled kernel name, from the output of ``nvcc -Xptxas -v``."""
    found: dict[str, dict[str, int]] = {}
    blocks = re.split(r"ptxas info\s+: Compiling entry function '", report)[1:]
    for block in blocks:
        stack = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block
        )
        used = re.search(r"Used (\d+) registers(.*)", block)
        assert stack is not None and used is not None, block
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", used[2])
        found[block.split("'")[0]] = {
            "registers": int(used[1]),
            "spill_bytes": int(stack[2]) + int(stack[3]),
            "stack_bytes": int(stack[1]),
            "static_shared_bytes": int(shared[1]) if shared else 0,
        }
    return found


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Readable kernel names without return type and parameters."""
    names = list(names)
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    readable = {}
    for name, line in zip(names, text.splitlines(), strict=True):
        line = line.removeprefix("void ").replace("riskernels::cuda::", "")
        depth, end = 0, len(line)
        for i, c in enumerate(line):
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0 and not line.startswith("(anonymous", i):
                end = i
                break
        readable[name] = line[:end]
    return readable


def _run(what: str, command: list[str]) -> tuple[str, float]:
    """Output of a command and its seconds; RuntimeError with the output where it fails."""
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed on {what}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr, round(time.monotonic() - start, 1)


@contextlib.contextmanager
def _only_once(result: Path) -> Iterator[bool]:
    """Whether the result is still to be made; others who ask for it wait meanwhile."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(result.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not result.is_file()


def to_ptx(job: Job, nvcc: str) -> Path:
    """Compile a job to PTX; the file says in its first line how long that took."""
    result = CACHE / f"{job.name}-{digest(job, nvcc_facts(nvcc)[0])}.ptx"
    with _only_once(result) as missing:
        if missing:
            for stale in CACHE.glob(f"{job.name}-*"):
                # Younger ones may be in use by a run that began before the sources changed.
                if time.time() - stale.stat().st_mtime > 3600 and result.stem not in stale.name:
                    stale.unlink()
            source, partial = result.with_suffix(".cu"), result.with_suffix(".partial")
            source.write_text(job.source)
            command = [nvcc, *FLAGS, "-ptx", f"-arch={PTX}", f"-I{KERNELS}", str(source)]
            output, seconds = _run(job.name, [*command, "-o", str(partial)])
            warnings = re.findall(r"^.*\bwarning\b.*$", output, re.MULTILINE)
            facts = json.dumps({"seconds": seconds, "warnings": warnings})
            partial.write_text(f"// {facts}\n{partial.read_text()}")
            partial.rename(result)
    return result


def assemble(ptx: Path, architecture: str, nvcc: str) -> dict[str, Any]:
    """ptxas's report of what :func:`to_ptx` made, for one architecture.

    Raises:
        RuntimeError: nvcc failed; with its output.
    """
    result = ptx.with_name(f"{ptx.stem}-{architecture}.json")
    with _only_once(result) as missing:
        if missing:
            output, cubin = result.with_suffix(".partial"), result.with_suffix(".cubin")
            command = [nvcc, "-cubin", "-Xptxas", "-v", f"-arch={architecture}", str(ptx)]
            text, seconds = _run(result.stem, [*command, "-o", str(cubin)])
            cubin.unlink()
            output.write_text(json.dumps({"kernels": parse(text), "seconds": seconds}))
            output.rename(result)
    return dict(json.loads(result.read_text()))


def ptx_digest(job: Job, nvcc: str) -> str:
    """Hash of the PTX, which depends on the sources and the release of nvcc alone."""
    return hashlib.sha256(to_ptx(job, nvcc).read_bytes().partition(b"\n")[2]).hexdigest()


def kernels_of(job: Job, nvcc: str) -> set[str]:
    """Readable names of the kernels in the PTX."""
    return set(demangle(re.findall(r"\.entry (\w+)", to_ptx(job, nvcc).read_text())).values())


def ptx_facts(job: Job, nvcc: str) -> dict[str, Any]:
    """Warnings of the compiler, and its seconds."""
    with open(to_ptx(job, nvcc)) as file:
        return dict(json.loads(file.readline().removeprefix("//")))


def compile_all(architectures: Sequence[str], nvcc: str) -> Reports:
    """Reports of every job for the architectures, as many at once as there are CPUs."""
    work = [(job, architecture) for job in JOBS for architecture in architectures]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ptx = dict(zip(JOBS, pool.map(lambda job: to_ptx(job, nvcc), JOBS), strict=True))
        reports = pool.map(lambda item: assemble(ptx[item[0]], item[1], nvcc), work)
        return dict(zip(work, reports, strict=True))


def by_kernel(reports: Reports) -> dict[str, dict[str, dict[str, int]]]:
    """Resources by readable kernel name and architecture."""
    by_name: dict[str, dict[str, dict[str, int]]] = {}
    readable = demangle(sorted({name for report in reports.values() for name in report["kernels"]}))
    for (_, architecture), report in reports.items():
        for mangled, used in report["kernels"].items():
            by_name.setdefault(readable[mangled], {})[architecture] = used
    of_all = sorted(by_name.items())
    return {name: {a: by[a] for a in ARCHITECTURES if a in by} for name, by in of_all}


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print("nvcc was not found; install the CUDA toolkit or set CUDA_HOME", file=sys.stderr)
        return 1
    version, codes = nvcc_facts(nvcc)
    if missing := [a for a in ARCHITECTURES if a not in codes]:
        print(f"nvcc {version} does not know {', '.join(missing)}", file=sys.stderr)
        return 1
    reports = compile_all(ARCHITECTURES, nvcc)
    for job in JOBS:
        print(f"{job.name} {PTX}: {ptx_facts(job, nvcc)['seconds']} s")
    for (job, architecture), report in reports.items():
        count, seconds = len(report["kernels"]), report["seconds"]
        print(f"{job.name} {architecture}: {count} kernels, {seconds} s")
    result = {
        "nvcc": version,
        "ptx": PTX,
        "flags": list(FLAGS),
        "ptx_digests": {job.name: ptx_digest(job, nvcc) for job in JOBS},
        "kernels": by_kernel(reports),
    }
    TABLE.write_text(json.dumps(result, indent=1) + "\n")
    kernels = result["kernels"].items()
    spilling = [name for name, by in kernels if any(use["spill_bytes"] for use in by.values())]
    print(f"{TABLE.relative_to(ROOT)}: {len(result['kernels'])} kernels, nvcc {version}")
    if spilling:
        print(f"spilling: {', '.join(spilling)}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
