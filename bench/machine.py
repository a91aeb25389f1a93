# SPDX-License-Identifier: Apache-2.0
"""The machine, versions and commit a result belongs to, and the pinning of its threads.

Nothing here names a host, a user or a path. Imports no numerical library at the top, since
:func:`pin` must run before they start their thread pools.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("csrc", "riskernels", "bench", "CMakeLists.txt", "setup.py")
X86_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "bmi1", "bmi2", "fma", "f16c", "movbe"}),
    ("x86-64-v2", {"sse4_2", "popcnt", "ssse3"}),
)
PACKAGES = ("torch", "numpy", "jax", "jaxlib", "numba")


def pin(threads: int, device: str = "cpu") -> tuple[int, ...]:
    """Bind this process to as many CPUs as threads and limit every library to them.

    Call it before torch, NumPy, JAX and Numba are imported. For a CUDA device JAX is left its own
    choice of device, and kept from taking most of the memory at once.

    Raises:
        ValueError: more threads than CPUs this process may use.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(allowed):
        raise ValueError(f"--threads {threads}: this process may use {len(allowed)} CPUs")
    # The last ones: the first CPU of a machine serves most interrupts.
    chosen = tuple(allowed[-threads:])
    os.sched_setaffinity(0, chosen)
    for library in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    # XLA sizes its pool from the affinity; with one thread this spares it the hand-over too.
    eigen = "true" if threads > 1 else "false"
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={eigen}"
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return chosen


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    block = path.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = (index / "type").read_text().strip()
        if kind != "Instruction":
            name = f"L{(index / 'level').read_text().strip()}"
            found[name] = (index / "size").read_text().strip()
    return found


def _gpu() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch_cuda": torch.version.cuda,
    }


def machine(device: str = "cpu") -> dict[str, Any]:
    """CPU model, instruction-set level, logical CPUs and caches; the GPU where one is measured."""
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    levels = (name for name, needed in X86_LEVELS if needed <= flags)
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "family": info.get("cpu family"),
        "model": info.get("model"),
        "architecture": platform.machine(),
        "flags_level": next(levels, None),
        "logical_cpus": os.cpu_count(),
        "caches": _caches(),
        "system": platform.system(),
        **({"gpu": _gpu()} if device == "cuda" else {}),
    }


def slug(report: dict[str, Any]) -> str:
    """File name of a run: gpu_<its name>, or cpu_<instruction set>_<threads>threads."""
    gpu = report["machine"].get("gpu")
    if gpu is not None:
        words = re.findall(r"[a-z0-9]+", gpu["name"].lower())
        return "_".join(["gpu", *(word for word in words if word != "nvidia")])
    return f"cpu_{report['versions']['simd_level']}_{report['threads']}threads"


def versions() -> dict[str, Any]:
    """Versions of Python and of the libraries found; None for one that is not installed."""
    from riskernels import info

    facts = info.collect()
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["riskernels"] = facts["riskernels"]
    found["simd_level"] = facts["simd"]
    found["compiler"] = facts["build"].get("compiler")
    return found


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _git(*arguments: str) -> str | None:
    return _output("git", "-C", str(ROOT), *arguments)


def commit() -> dict[str, Any]:
    """Commit of the sources, and whether those measured differ from it; None outside git."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", *SOURCES, ":!bench/results")
    return {"commit": head, "modified": None if changed is None else bool(changed)}
