# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the native libraries; decides, explains and selects the backend.

An operator runs on the first of these that serves its device:

- CPU tensors: the native CPU library, else the reference.
- CUDA tensors: the native CUDA library, else Triton, else the reference.

The choice is the dispatcher's: a library that loads registers ``CPU`` or ``CUDA`` kernels, and what
it does not register falls to the reference. A fallback warns once per device, and
``RISKERNELS_REQUIRE=cpu|cuda|triton`` (comma-separated) turns a missing backend into an
ImportError.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import pkgutil
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MINIMUM_TORCH = (2, 10)
BACKENDS = ("reference", "cpu", "cuda", "triton")
SIMD_LEVELS = ("portable", "avx2", "avx512")
LIBRARY_FOLDER = Path(os.environ.get("RISKERNELS_LIBRARY_FOLDER") or Path(__file__).parent / "lib")


@dataclass
class BackendStatus:
    """What became of one backend."""

    name: str
    available: bool = False
    reason: str = "not loaded yet"
    """Why it is not available, load errors verbatim; empty when it is."""
    path: str | None = None
    operators: tuple[str, ...] = ()


_status = {name: BackendStatus(name) for name in BACKENDS}
_references: dict[str, Callable[..., Any]] = {}
_triton: dict[str, Callable[..., Any]] = {}
_registrations: list[torch.library.Library] = []
_warned: set[str] = set()
_passing = threading.local()


def check_torch_version() -> None:
    """Refuse a torch older than the stable ABI that the libraries are built on."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MINIMUM_TORCH:
        raise ImportError(
            f"riskernels needs torch >= {'.'.join(map(str, MINIMUM_TORCH))}, found "
            f"{torch.__version__}; upgrade torch"
        )


def register_reference(op: str, reference: Callable[..., Any]) -> None:
    """Remember the input-checking reference of an operator for :func:`use_backend`."""
    _references[op] = reference


def operators() -> tuple[str, ...]:
    """Names of the operators that have kernels of their own."""
    return tuple(sorted(_references))


def has_kernel(op: str, key: str) -> bool:
    """Whether the dispatcher holds a kernel for the operator at this dispatch key."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"riskernels::{op}", key))


def note_fallback(op: str, device_type: str) -> None:
    """Warn once per device that an operator runs on the reference for want of a native kernel."""
    native = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device_type)
    if native is None or device_type in _warned:
        return
    _warned.add(device_type)
    why = "; ".join(f"{name}: {_status[name].reason}" for name in native)
    warnings.warn(
        f"riskernels::{op} runs on the PyTorch reference on {device_type} ({why}). It is correct "
        "but slow; see `python -m riskernels.info`",
        RuntimeWarning,
        stacklevel=3,
    )


def _load_native(name: str) -> None:
    status = _status[name]
    path = LIBRARY_FOLDER / f"libriskernels_{name}.so"
    status.path = str(path)
    if name == "cuda" and torch.version.cuda is None:
        status.reason = f"torch {torch.__version__} is a build without CUDA"
        return
    if not path.is_file():
        status.reason = "the library was not built; run `pip install -e .`"
        return
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        # Some versions of torch wrap the loader's message.
        status.reason = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
        return
    status.operators = tuple(op for op in operators() if has_kernel(op, name.upper()))
    status.available, status.reason = True, ""
    if name == "cpu" and simd_level() not in SIMD_LEVELS:
        raise ImportError(simd_level())


def _triton_kernel(module: str, op: str) -> Callable[..., Any]:
    """The operator's function in a Triton module, which the first call imports."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), op)(*args, **kwargs)

    return run


def _load_triton() -> None:
    # Importing triton and its kernels takes half a second or more, and a process that runs on the
    # CPU or on the CUDA library never needs them. So nothing is imported before the first call.
    status = _status["triton"]
    if torch.version.cuda is None and os.environ.get("TRITON_INTERPRET", "0") != "1":
        status.reason = f"torch {torch.__version__} is a build without CUDA"
        return
    if importlib.util.find_spec("triton") is None:
        status.reason = "No module named 'triton'"
        return
    package = importlib.import_module("riskernels.triton_kernels")
    modules = [found.name for found in pkgutil.iter_modules(package.__path__)]
    for op in operators():
        for name in modules:
            # Modules of an operator bear its stem; those of helpers begin with an underscore.
            if op.startswith(name):
                _triton[op] = _triton_kernel(f"{package.__name__}.{name}", op)
    status.operators = tuple(sorted(_triton))
    status.available, status.reason = True, ""
    missing = [op for op in _triton if not has_kernel(op, "CUDA")]
    if missing:
        registration = torch.library.Library("riskernels", "IMPL")
        for op in missing:
            registration.impl(op, _triton[op], "CUDA")
        _registrations.append(registration)


def load() -> None:
    """Load every backend there is, and honour ``RISKERNELS_REQUIRE``."""
    _status["reference"].available, _status["reference"].reason = True, ""
    _status["reference"].operators = operators()
    _load_native("cpu")
    _load_native("cuda")
    _load_triton()
    wanted = [w for w in os.environ.get("RISKERNELS_REQUIRE", "").replace(" ", "").split(",") if w]
    for name in wanted:
        if name not in BACKENDS:
            raise ImportError(f"RISKERNELS_REQUIRE={name}: expected one of {', '.join(BACKENDS)}")
        if not _status[name].available:
            raise ImportError(
                f"RISKERNELS_REQUIRE={name}: backend not available: {_status[name].reason}"
            )
        if name == "triton":
            # Imported late otherwise; who requires it wants to hear now of one that is broken.
            importlib.import_module("triton")


def backend_status() -> dict[str, BackendStatus]:
    """Status of every backend by name."""
    return dict(_status)


def implementation(op: str, device_type: str) -> str:
    """Which backend serves an operator on ``"cpu"`` or ``"cuda"``."""
    if not has_kernel(op, device_type.upper()):
        return "reference"
    if device_type == "cuda" and op not in _status["cuda"].operators:
        return "triton"
    return device_type


def simd_level() -> str | None:
    """Instruction set that the loaded CPU library runs on, or None without the library.

    An unusable ``RISKERNELS_SIMD`` gives the library's message instead, which :func:`load` raises.
    """
    function = _cpu_function("riskernels_simd_level")
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    level: bytes = function()
    return level.decode()


def multiply_adds(rounds: int, double_precision: bool = False) -> float | None:
    """Run multiply-adds in registers, in the instruction set of the kernels, on this thread.

    Returns how many floating-point operations that were, so that a benchmark which takes the time
    knows what the processor can do; None without the CPU library. Other threads run meanwhile.

    >>> flops = multiply_adds(1000)
    >>> flops is None or flops >= 1000
    True
    """
    function = _cpu_function("riskernels_multiply_adds")
    if function is None:
        return None
    function.argtypes, function.restype = (ctypes.c_int64, ctypes.c_bool), ctypes.c_double
    return float(function(rounds, double_precision))


def _cpu_function(name: str) -> Any:
    """A C function of the loaded CPU library, or None without the library."""
    status = _status["cpu"]
    if not status.available or status.path is None:
        return None
    return getattr(_opened(status.path), name)


@functools.cache
def _opened(path: str) -> ctypes.CDLL:
    return ctypes.CDLL(path)


class _Selection(TorchDispatchMode):
    """Runs riskernels operators on one backend; every other operator is untouched."""

    def __init__(self, backend: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backend = backend

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = func._schema.name.removeprefix("riskernels::")
        if op == func._schema.name or getattr(_passing, "through", False):
            return func(*args, **kwargs)
        if op not in _references:
            # Without an autograd key (inference mode) a composition arrives whole.
            with self:
                return func.decompose(*args, **kwargs)
        device_type = args[0].device.type
        if device_type == "meta":
            return func(*args, **kwargs)
        if self.backend == "reference":
            return _references[op](*args, **kwargs)
        if self.backend == "triton":
            return _triton[op](*args, **kwargs)
        if self.backend != device_type:
            raise RuntimeError(
                f"riskernels::{op}: backend {self.backend!r} was selected, but the input is on "
                f"{device_type}"
            )
        if op not in _status[self.backend].operators:
            raise RuntimeError(f"riskernels::{op}: backend {self.backend!r} does not serve it")
        # Selections further out must not choose again.
        _passing.through = True
        try:
            return func(*args, **kwargs)
        finally:
            _passing.through = False


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every riskernels operator of this thread on one backend while the context is open.

    A backward pass is selected by the context it runs in, so call ``backward()`` inside. For
    tests, debugging and benchmarks; without it the fastest backend of the device runs.

    Args:
        name: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend is not available (with the reason), or an input is on a device
            that it does not serve.

    Example:
        >>> import riskernels
        >>> a = torch.randn(1, 4, 4, dtype=torch.complex64)
        >>> with riskernels.use_backend("reference"):
        ...     riskernels.hermitian_nmse(a, a)
        tensor([0.])
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {', '.join(BACKENDS)}")
    status = _status[name]
    if not status.available:
        raise RuntimeError(f"backend {name!r} is not available: {status.reason}")
    with _Selection(name):
        yield
