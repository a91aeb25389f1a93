# SPDX-License-Identifier: Apache-2.0
"""``python -m riskernels.info``: what was built, what was loaded, what runs where, and why."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from typing import Any

import torch

import riskernels
from riskernels import _resources, library

_VARIABLES = ("RISKERNELS_REQUIRE", "RISKERNELS_SIMD", "RISKERNELS_LIBRARY_FOLDER")


def _build_facts() -> dict[str, Any]:
    try:
        build = importlib.import_module("riskernels._build")
    except ImportError as error:
        return {"available": False, "reason": str(error)}
    names = ("compiler", "flags", "simd_levels", "torch_version", "torch_abi")
    facts = {name: getattr(build, name) for name in names}
    cuda = {"cuda": build.cuda, "cuda_architectures": build.cuda_architectures}
    return {"available": True, **facts, **cuda}


def collect() -> dict[str, Any]:
    """Everything the command prints, as plain data."""
    return {
        "riskernels": riskernels.__version__,
        "python": platform.python_version(),
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "threads": torch.get_num_threads(),
            "devices": [
                torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
            ],
        },
        "build": _build_facts(),
        "simd": library.simd_level(),
        "backends": {
            name: {
                "available": status.available,
                "reason": status.reason,
                "path": status.path,
                "operators": list(status.operators),
            }
            for name, status in library.backend_status().items()
        },
        "operators": {
            op: {device: library.implementation(op, device) for device in ("cpu", "cuda")}
            for op in library.operators()
        },
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    build = facts["build"]
    lines = [
        f"riskernels {facts['riskernels']}   python {facts['python']}   "
        f"torch {facts['torch']['version']} (CUDA {facts['torch']['cuda'] or 'no'}, "
        f"{facts['torch']['threads']} threads)"
    ]
    lines.append("GPUs: " + (", ".join(facts["torch"]["devices"]) or "none"))
    if build["available"]:
        lines += [
            f"built with {build['compiler']} against torch {build['torch_version']} "
            f"(stable ABI {build['torch_abi']}, runs on any torch from there on)",
            f"flags: {build['flags']}",
            f"CUDA library: {build['cuda']} {build['cuda_architectures']}".rstrip(),
            f"SIMD: {facts['simd'] or 'none'} (built: {build['simd_levels']})",
        ]
    else:
        lines.append(f"build facts: not available ({build['reason']})")
    for name, value in facts["environment"].items():
        if value:
            lines.append(f"{name}={value}")
    lines += ["", "backends"]
    for name, status in facts["backends"].items():
        state = "loaded" if status["available"] else f"not available: {status['reason']}"
        lines.append(f"  {name:<10} {state}")
    lines += ["", f"{'operator':<32} {'cpu':<10} cuda"]
    for op, where in facts["operators"].items():
        lines.append(f"{op:<32} {where['cpu']:<10} {where['cuda']}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Print the facts; ``--json`` as JSON, ``--verbose`` with the resources of the CUDA kernels."""
    parser = argparse.ArgumentParser(prog="python -m riskernels.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument(
        "--verbose", action="store_true", help="resources of the CUDA kernels as well"
    )
    arguments = parser.parse_args(argv)
    facts = collect()
    if arguments.verbose:
        facts["cuda_kernels"] = _resources.collect()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    print("\n".join(_lines(facts)))
    if arguments.verbose:
        print("\n" + "\n".join(_resources.lines(facts["cuda_kernels"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
