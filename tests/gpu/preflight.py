# SPDX-License-Identifier: Apache-2.0
"""What `make test-gpu` and `make bench-gpu` need of the interpreter, without a network.

Says everything that is missing at once, or installs it from a folder of wheels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cuda_resources import find_nvcc

BUILD = {"setuptools": 77, "pybind11": 2, "cmake": 3, "ninja": 1}
TEST = {"pytest": 8, "pytest-timeout": 2, "hypothesis": 6, "numpy": 1}
"""Distributions and their least major versions."""


def lacking(wanted: dict[str, int]) -> list[str]:
    """Those that are missing or too old; for cmake and ninja a program on the path is enough."""
    found = []
    for name, least in wanted.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if not (name in ("cmake", "ninja") and shutil.which(name)):
                found.append(f"{name}>={least}")
            continue
        if int(version.split(".")[0]) < least:
            found.append(f"{name}>={least}")
    return found


def device_obstacle() -> str | None:
    """Why this interpreter cannot run the GPU suite."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch; say which one has: PYTHON=/path/to/python"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no CUDA device"
    if find_nvcc() is None:
        return "nvcc was not found; install the CUDA toolkit or set CUDA_HOME"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is missing")
    options = parser.parse_args()
    missing = lacking({**BUILD, **TEST})
    if missing and options.wheels is not None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
        if subprocess.run([*command, f"--find-links={options.wheels}", *missing]).returncode:
            return 1
        missing = []
    obstacle = device_obstacle()
    obstacles = [] if obstacle is None else [obstacle]
    if missing:
        obstacles.append(
            f"missing: {', '.join(missing)}; install them, or put their wheels into a folder and "
            "say WHEELS=folder"
        )
    for line in obstacles:
        print(f"riskernels: {line}", file=sys.stderr)
    return 1 if obstacles else 0


if __name__ == "__main__":
    sys.exit(main())
