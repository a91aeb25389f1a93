# SPDX-License-Identifier: Apache-2.0
"""The machine, versions and commit that a measurement belongs to.

Nothing here names a host, a user or a path. Imports no numerical library at the top, so that a
benchmark can set up its threads after importing this.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""Root of the source tree, if the package is in one."""
SOURCES = ("csrc", "riskernels", "python", "CMakeLists.txt", "setup.py")
PACKAGES = ("torch", "numpy")
X86_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "bmi1", "bmi2", "fma", "f16c", "movbe"}),
    ("x86-64-v2", {"sse4_2", "popcnt", "ssse3"}),
)


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


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _gpu(index: int | None) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch_cuda": torch.version.cuda,
    }


def machine(device: str = "cpu", index: int | None = None) -> dict[str, Any]:
    """CPU model, instruction-set level, logical CPUs and caches; the GPU for device "cuda"."""
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
        **({"gpu": _gpu(index)} if device == "cuda" else {}),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Versions of Python, ``packages`` and riskernels; None for one that is not installed."""
    from riskernels import info

    facts = info.collect()
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["riskernels"] = facts["riskernels"]
    found["simd_level"] = facts["simd"]
    found["compiler"] = facts["build"].get("compiler")
    return found


def commit(sources: Sequence[str] = SOURCES, root: Path = ROOT) -> dict[str, Any]:
    """Commit of the sources, and whether those measured differ from it; None outside git."""
    if not (root / ".git").exists():
        return {"commit": None, "modified": None}
    git = ("git", "-C", str(root))
    changed = _output(*git, "status", "--porcelain", "--", *sources)
    return {
        "commit": _output(*git, "rev-parse", "HEAD"),
        "modified": None if changed is None else bool(changed),
    }


def slug(report: dict[str, Any]) -> str:
    """Part of a file's name: gpu_<its name>, or cpu_<instruction set>_<threads>threads."""
    gpu = report["machine"].get("gpu")
    if gpu is not None:
        words = re.findall(r"[a-z0-9]+", gpu["name"].lower())
        return "_".join(["gpu", *(word for word in words if word != "nvidia")])
    threads = report["threads"]
    return f"cpu_{report['versions']['simd_level']}_{threads}thread{'s' * (threads > 1)}"
