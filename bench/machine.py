# SPDX-License-Identifier: Apache-2.0
"""What a benchmark records about its run, and the pinning of its threads.

Imports no numerical library at the top: :func:`pin` must run before they start their thread pools.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

from ris_pytorch_pipeline import machine as recorded
from ris_pytorch_pipeline.machine import machine, slug

__all__ = [
    "ROOT",
    "commit",
    "keep_freed_memory",
    "machine",
    "package_versions",
    "pin",
    "slug",
    "versions",
]

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "scipy", "jax", "jaxlib", "numba", "llvmlite")
"""JAX takes its LAPACK from SciPy."""
SOURCES = ("csrc", "riskernels", "bench", "CMakeLists.txt", "setup.py", ":!bench/results")


def versions() -> dict[str, Any]:
    """Versions of Python, riskernels, its peers and their BLAS; None for one not installed."""
    return {**recorded.versions(PACKAGES), "blas": blas()}


@functools.cache
def package_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of installed packages by name."""
    return {name: importlib.metadata.version(name) for name in packages}


def blas() -> dict[str, str]:
    """The libraries that multiply and factorise matrices for PyTorch and NumPy."""
    import numpy
    import torch

    mkl = re.search(r"Math Kernel Library Version (\d[\d.]*)", torch.__config__.show())
    named = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    build = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "torch": f"MKL {mkl[1]}" if mkl else (named[1] if named else "unknown"),
        "numpy": f"{build['name']} {build['version']}",
    }


def commit() -> dict[str, Any]:
    """Commit of what is measured, and whether it was changed since; None outside git."""
    return recorded.commit(SOURCES, ROOT)


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
    # What chooses kernels for an old OpenBLAS slows the one that NumPy and SciPy bring today.
    for override in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(override, None)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    # XLA sizes its pool from the affinity; with one thread this spares it the hand-over too.
    eigen = "true" if threads > 1 else "false"
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={eigen}"
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return chosen


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, so that large outputs are not fresh pages in every call.

    Faulting in and zeroing a fresh output above 32 MiB takes longer than the arithmetic that fills
    it, for every peer alike. False where the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in settings)
