# SPDX-License-Identifier: Apache-2.0
"""Builds the block executor with the kernels of one operator, and runs single calls on it."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "cuda_on_cpu"
INCLUDES = (HERE, ROOT / "csrc")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Calls at every access, which races.cpp answers; the ThreadSanitizer runtime is not linked.
RACES = ("-fsanitize=thread",)
FLAGS = ("-std=c++20", "-g1", "-Wall", "-Wextra", *(f"-I{path}" for path in INCLUDES))
SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory that a block of an H200 may have."""
MULTIPROCESSORS = 132
"""Multiprocessors of an H200."""


class ExecutorError(AssertionError):
    """What the executor or a sanitizer reported."""


@dataclass(frozen=True)
class Unit:
    """One object file: a source, and how it is compiled."""

    source: str
    flags: tuple[str, ...]


# The executor itself is compiled without instrumentation: it switches stacks millions of times,
# and only what kernels touch needs checking.
EXECUTOR = Unit("cuda_on_cpu.cpp", ("-O2",))
RACE_RUNTIME = Unit("races.cpp", ("-O2",))


OPERATORS = (
    "tikhonov",
    "hermitian_nmse",
    "factored",
    "factored_spectrum",
    "blend_covariance",
    "subspace_leakage",
    "steering_power",
)
"""By source file."""


def kernels(source: str, races: bool, *definitions: str) -> Unit:
    """A unit with kernels, instrumented to find data races, or wrong accesses and arithmetic."""
    return Unit(source, ("-Og", *(RACES if races else SANITIZE), *definitions))


def operator_units(operator: str, races: bool) -> list[Unit]:
    """Precisions and passes of an operator, compiled apart to be compiled at once."""
    passes = [
        kernels(
            f"{operator}.cpp",
            races,
            f"-DRISKERNELS_REAL={real}",
            f"-DRISKERNELS_BACKWARD={backward}",
        )
        for backward in (1, 0)
        for real in (("float",) if races else ("double", "float"))
    ]
    if races:
        return [*passes, EXECUTOR, RACE_RUNTIME, Unit("case.cpp", ("-O1", "-DRISKERNELS_RACES=1"))]
    return [*passes, EXECUTOR, Unit("case.cpp", ("-O1", *SANITIZE))]


def _sources(path: Path, seen: dict[Path, None]) -> Iterator[Path]:
    """A source and all files of the repository that it includes."""
    if path in seen:
        return
    seen[path] = None
    yield path
    for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
        for folder in (path.parent, *INCLUDES):
            if (folder / name).is_file():
                yield from _sources((folder / name).resolve(), seen)
                break


def _compiler() -> str:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ExecutorError(f"the block executor needs a C++20 compiler; {compiler} is not there")
    return compiler


@functools.cache
def _compiler_version(compiler: str) -> str:
    return _call([compiler, "--version"])


def _call(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ExecutorError(
            f"{' '.join(command)}\nexit status {done.returncode}\n{done.stderr[-4000:]}\n"
            "(the executor needs g++ or clang++ with libasan and libubsan)"
        )
    return done.stdout


def compiled(unit: Unit) -> Path:
    """The object of a unit; compiled unless one of its sources, flags and compiler is there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    compiler = _compiler()
    digest = hashlib.sha256(repr((unit, FLAGS, _compiler_version(compiler))).encode())
    for path in _sources(HERE / unit.source, {}):
        digest.update(path.read_bytes())
    target = CACHE / f"{Path(unit.source).stem}-{digest.hexdigest()[:24]}.o"
    # One process compiles it, the others wait.
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_suffix(".partial")
            _call(
                [compiler, *FLAGS, *unit.flags, "-c", str(HERE / unit.source), "-o", str(partial)]
            )
            partial.rename(target)
    return target


def build(name: str, units: Sequence[Unit]) -> Path:
    """The executable of these units."""
    # Addresses in the reports of races.cpp are those in the file.
    mode = ("-no-pie",) if RACE_RUNTIME in units else SANITIZE
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, units))
    digest = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:24]
    target = CACHE / f"{name}-{digest}"
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = f"{target}.partial"
            _call([_compiler(), *mode, *map(str, objects), "-o", partial])
            Path(partial).rename(target)
    return target


@functools.cache
def executable(operator: str, races: bool) -> Path:
    return build(operator + "-races" * races, operator_units(operator, races))


def execute(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run an executable of the executor with strict sanitizer settings."""
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=1:strict_init_order=1:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=98",
    }
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, env=environment
    )
    if done.returncode == 97:
        done.stderr += "".join(_lines(command[0], re.findall(r"code (0x[0-9a-f]+)", done.stderr)))
    return done


def _lines(program: str | Path, addresses: Sequence[str]) -> Iterator[str]:
    """Where in the sources these return addresses belong to."""
    if shutil.which("addr2line") is None:
        return
    for address in addresses:
        before = hex(int(address, 16) - 1)
        where = _call(["addr2line", "-i", "-s", "-e", str(program), before]).split()
        yield f"{address}: {' < '.join(where)}\n"


@dataclass
class Call:
    """One call of an operator: what its case file says."""

    operator: str
    dtype: torch.dtype
    backward: bool
    races: bool = False
    seed: int = 0
    multiprocessors: int = MULTIPROCESSORS
    shared_limit: int = SHARED_LIMIT
    _lines: list[str] = field(default_factory=list)
    _data: list[bytes] = field(default_factory=list)
    _shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)

    def integer(self, name: str, *values: int) -> None:
        self._lines.append(f"int {name} {' '.join(str(int(v)) for v in values)}")

    def real(self, name: str, value: float) -> None:
        self._lines.append(f"real {name} {value!r}")

    def array(self, name: str, tensor: Tensor, strides: Sequence[int] | None = None) -> None:
        """Exactly the stretch of memory that the tensor spans, at its address modulo 16."""
        tensor = tensor.detach().resolve_conj().resolve_neg()
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() == 0:
            span = 0
        stretch = tensor.as_strided((span,), (1,))
        lead = tensor.data_ptr() % 16 if span else 0
        self._lines.append(f"array {name} {span * tensor.element_size()} {lead}")
        self._data.append(stretch.contiguous().view(torch.uint8).numpy().tobytes())
        self.integer(f"{name}_stride", *(tensor.stride() if strides is None else strides))

    def output(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = torch.Size(shape).numel() * (2 if dtype.is_complex else 1)
        self.integer(name, size)
        self._shapes[name] = (shape, dtype)

    def run(self) -> dict[str, Tensor]:
        """The outputs, or ExecutorError with the report."""
        self.integer("seed", self.seed)
        self.integer("multiprocessors", self.multiprocessors)
        self.integer("shared_limit", self.shared_limit)
        self.integer("double", self.dtype == torch.complex128)
        self.integer("backward", self.backward)
        with tempfile.TemporaryDirectory() as folder:
            case, output = Path(folder, "case"), Path(folder, "output")
            case.write_bytes("\n".join([*self._lines, "data\n"]).encode() + b"".join(self._data))
            done = execute([executable(self.operator, self.races), case, output])
            if done.returncode != 0:
                report = done.stderr
                if len(report) > 6000:  # the fault first, its place in the grid last
                    report = f"{report[:5000]}\n...\n{report[-500:]}"
                raise ExecutorError(f"exit status {done.returncode}\n{report}")
            return self._read(output.read_bytes())

    def _read(self, written: bytes) -> dict[str, Tensor]:
        header, data = written.split(b"data\n", 1)
        outputs, position = {}, 0
        for line in header.decode().splitlines():
            name, size = line.split()
            piece = bytearray(data[position : position + int(size)])
            position += int(size)
            shape, dtype = self._shapes[name]
            flat = torch.frombuffer(piece, dtype=dtype) if piece else torch.empty(0, dtype=dtype)
            outputs[name] = flat.reshape(shape)
        return outputs
