# SPDX-License-Identifier: Apache-2.0
"""Drives the CMake build; everything else about the package stands in pyproject.toml.

Environment:
    RISKERNELS_CUDA       auto (default), on or off
    TORCH_CUDA_ARCH_LIST  CUDA architectures, e.g. "8.0;9.0+PTX"
    CUDA_HOME, CUDACXX    where to look for nvcc
    CXX                   C++ compiler
    MAX_JOBS              parallel compilations
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 10)


def stop(message: str) -> NoReturn:
    """End the build with one line."""
    sys.exit(f"riskernels: {message}")


def find_torch() -> Path:
    """Folder of the torch that will run, without importing it.

    Under build isolation the import path holds only the build requirements, while ``sysconfig``
    still names the folders of the environment that asked for the build.
    """
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    folders = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    folders += [sysconfig.get_path(kind, vars=base) for kind in ("purelib", "platlib")]
    for folder in folders:
        if (Path(folder) / "torch" / "version.py").is_file():
            return Path(folder) / "torch"
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    stop(
        f"torch is not installed in {folders[0]}; install it first, e.g. `pip install torch`, and "
        "with a build tool that isolates by a virtual environment add --no-build-isolation"
    )


def torch_facts(torch: Path) -> tuple[str, str | None]:
    """Version of torch, and of the CUDA it was built with."""
    text = (torch / "version.py").read_text()
    version = re.search(r"^__version__ = ['\"](.+)['\"]", text, re.MULTILINE)
    cuda = re.search(r"^cuda(?:: .+)? = ['\"](.+)['\"]", text, re.MULTILINE)
    if version is None:
        stop(f"{torch / 'version.py'} names no version; reinstall torch")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version[1])[:2])
    if numbers < MINIMUM_TORCH:
        stop(
            f"torch {version[1]} is too old, {MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]} or later needed"
        )
    return version[1], cuda[1] if cuda else None


def find_compiler() -> str:
    """The C++ compiler; CMake reads CXX itself, with its flags, where it is set."""
    words = shlex.split(os.environ.get("CXX", ""))
    names = words[:1] or ["c++", "g++", "clang++"]
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    stop(
        f"no C++ compiler found (tried {', '.join(names)}); install one, e.g. "
        "`apt-get install g++`, or point CXX at it"
    )


def find_nvcc() -> str | None:
    """nvcc from CUDACXX, CUDA_HOME or the path."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [os.environ.get("CUDACXX"), str(Path(home) / "bin/nvcc") if home else None, "nvcc"]
    for candidate in candidates:
        path = shutil.which(candidate) if candidate else None
        if path:
            return path
    return None


def cuda_obstacle(nvcc: str | None, torch_version: str, torch_cuda: str | None) -> str | None:
    """Why the CUDA library cannot be built, or None when it can."""
    if nvcc is None:
        return "nvcc was not found; install the CUDA toolkit or set CUDA_HOME"
    if torch_cuda is None:
        return f"torch {torch_version} is a build without CUDA; install a CUDA build of torch"
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", output)
    if release is None:
        return f"`{nvcc} --version` names no release"
    if release[1] != torch_cuda.split(".")[0]:
        return (
            f"nvcc is CUDA {release[1]}.{release[2]}, but torch {torch_version} was built with "
            f"CUDA {torch_cuda}; install the toolkit of that major version"
        )
    if not any((ROOT / "csrc/cuda").glob("*.cu")):
        return "this version has no CUDA kernels"
    return None


def cuda_architectures(listed: str) -> str:
    """TORCH_CUDA_ARCH_LIST as CMake's list: "8.0;9.0+PTX" -> "80-real;90-real;90-virtual"."""
    result = []
    for entry in listed.replace(",", " ").replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
        if match is None:
            stop(f"TORCH_CUDA_ARCH_LIST entry {entry!r} is not of the form 8.0 or 9.0+PTX")
        number = f"{match[1]}{match[2]}{match[3]}"
        result += [f"{number}-real"] + ([f"{number}-virtual"] if match[4] else [])
    return ";".join(result)


def cuda_options(torch_version: str, torch_cuda: str | None) -> list[str]:
    """CMake options for the CUDA library, by RISKERNELS_CUDA."""
    wanted = os.environ.get("RISKERNELS_CUDA", "auto")
    if wanted not in ("auto", "on", "off"):
        stop(f"RISKERNELS_CUDA={wanted!r}, expected auto, on or off")
    if wanted == "off":
        return ["-DRISKERNELS_WITH_CUDA=OFF"]
    nvcc = find_nvcc()
    obstacle = cuda_obstacle(nvcc, torch_version, torch_cuda)
    if obstacle is not None:
        if wanted == "on":
            stop(f"RISKERNELS_CUDA=on, but {obstacle}")
        print(f"riskernels: the CUDA library is not built: {obstacle}")
        return ["-DRISKERNELS_WITH_CUDA=OFF"]
    options = ["-DRISKERNELS_WITH_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if listed:
        options.append(f"-DCMAKE_CUDA_ARCHITECTURES={cuda_architectures(listed)}")
    return options


def pybind11_headers(build: Path) -> Path:
    """Headers of pybind11 at a path that stays the same between isolated builds.

    An isolated build unpacks its requirements anew each time; compiling against a copy keeps the
    second build from recompiling what did not change.
    """
    try:
        import pybind11
    except ImportError:
        stop("pybind11 was not found; `pip install pybind11`, or build with isolation")
    copy = build / f"pybind11-{importlib.metadata.version('pybind11')}"
    if not copy.is_dir():
        partial = build / f"{copy.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(pybind11.get_include(), partial)
        partial.rename(copy)
    return copy


def forget_other_toolchain(build: Path, toolchain: str) -> None:
    """Start the build folder anew where it was made by other compilers: CMake cannot switch."""
    stamp = build / "toolchain.txt"
    if build.is_dir() and not (stamp.is_file() and stamp.read_text() == toolchain):
        shutil.rmtree(build)
    build.mkdir(parents=True, exist_ok=True)
    stamp.write_text(toolchain)


class CMakeBuild(build_ext):
    """Configures, builds and installs with CMake and ninja."""

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        torch = find_torch()
        version, torch_cuda = torch_facts(torch)
        tools = {name: shutil.which(name) for name in ("cmake", "ninja")}
        for name, path in tools.items():
            if path is None:
                stop(f"{name} was not found; `pip install {name}`, or build with isolation")
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{platform.machine()}"
        compiler = find_compiler()
        forget_other_toolchain(build, f"{os.environ.get('CXX') or compiler}\n{find_nvcc()}\n")
        destination = ROOT if in_place else Path(self.build_lib).resolve()
        cuda = cuda_options(version, torch_cuda)
        if "-DRISKERNELS_WITH_CUDA=OFF" in cuda:
            # One from an earlier build would still be loaded.
            (destination / "riskernels/lib/libriskernels_cuda.so").unlink(missing_ok=True)
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
            *([] if os.environ.get("CXX") else [f"-DCMAKE_CXX_COMPILER={compiler}"]),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DRISKERNELS_TORCH_DIR={torch}",
            f"-DRISKERNELS_PYBIND11_INCLUDE={pybind11_headers(build)}",
            *cuda,
        ]
        jobs = os.environ.get("MAX_JOBS")
        for command in (
            configure,
            ["cmake", "--build", str(build), *(["-j", jobs] if jobs else [])],
            ["cmake", "--install", str(build), "--prefix", str(destination)],
        ):
            if subprocess.run(command).returncode != 0:
                stop(f"`{' '.join(command[:2])} ...` failed; its output stands above")

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "riskernels"
        return [str(path) for path in [*package.glob("lib/*.so"), *package.glob("_build*.so")]]


if "sdist" not in sys.argv:
    # Asked before anything is resolved or downloaded: pip would fetch torch only to fail later.
    torch_facts(find_torch())
    find_compiler()

setup(ext_modules=[Extension("riskernels._build", sources=[])], cmdclass={"build_ext": CMakeBuild})
