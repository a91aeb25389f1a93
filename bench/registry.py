# SPDX-License-Identifier: Apache-2.0
"""What is measured: operators with their cases, and the peers that serve them."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
"""Tensors by name, each with the B scenes as its first dimension."""
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One operator on one kind of input at one shape."""

    operator: str
    variant: str
    """Key of the kind of input, such as ``forward`` or ``forward-varying-modulus``."""
    title: str
    sizes: Mapping[str, int]
    gradients: tuple[str, ...] = ()
    """Inputs whose gradients are computed too; empty for the forward alone."""
    tolerance: float = 2e-6
    """Largest relative error of the kernel against complex128, in any scene and output."""
    verified_scenes: int | None = None
    """Scenes compared with complex128 where that takes longer than the timing; all if None."""

    @property
    def shape(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.sizes.items())

    @property
    def identifier(self) -> str:
        return f"{self.operator}/{self.variant}/{self.shape.replace('=', '').replace(' ', '-')}"


@dataclass(frozen=True)
class Cost:
    """The least work a case needs, from which its floor follows."""

    flops: float
    bytes_read: float
    bytes_written: float
    footprint: float
    """Distinct bytes touched: it decides which level of the memory hierarchy they come from."""
    formula: str
    double_flops: float = 0.0
    """Those that the contract wants in float64, at a rate of their own, beside ``flops``."""


@dataclass(frozen=True)
class Operator:
    """An operator of the library, or a composition of several, as the benchmark sees it."""

    name: str
    cases: tuple[Case, ...]
    outputs: tuple[str, ...]
    """Names of the forward's outputs; ``grad_*`` follow for the gradients of a case."""
    inputs: Callable[[Case, torch.Generator], Inputs]
    kernel: Callable[[Case, Inputs], Callable[[], Outputs]]
    """Prepares a call of the kernel: nothing but the call itself is timed."""
    oracle: Callable[[Case, Inputs], Outputs]
    """The same outputs in complex128, by a formula independent of the kernel."""
    cost: Callable[[Case], Cost]
    uses: tuple[str, ...] = ()
    """Operators of the library that a composition calls; empty for one of the library's own."""

    def output_names(self, case: Case) -> tuple[str, ...]:
        return self.outputs + tuple(f"grad_{name}" for name in case.gradients)


def first_scenes(inputs: Inputs, scenes: int) -> Inputs:
    return {name: value[:scenes] for name, value in inputs.items()}


def as_tuple(outputs: Any) -> Outputs:
    """A tensor or a sequence of tensors as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@dataclass(frozen=True)
class Peer:
    """A rival implementation."""

    name: str
    title: str
    serves: Callable[[Case], bool]
    prepare: Callable[[Case, Inputs], Callable[[], Any]]
    """Returns the call to time; conversions and compilation happen here or in the warm-up."""
    requires: tuple[str, ...] = ()
    """Modules without which the peer is skipped by name."""
    to_torch: Callable[[Any], Outputs] = as_tuple
    tolerance: float = 1e-4
    """Largest relative error at which a speed is still printed."""
    scenes: int | None = None
    """Scenes that are timed where the whole batch takes too long; scaled to B, and said so."""
    finish: Callable[[Any], None] | None = None
    """Waits for the outputs of a peer that queues its work on a GPU, but not on PyTorch's stream.
    It is timed by the wall clock, and cannot enter a CUDA graph of PyTorch."""
    capturable: bool = True
    """Whether its replay as a CUDA graph is measured as well; False where it waits for the GPU."""
    measure_memory: bool = False
    """Whether its peak memory on the CPU is measured beside the kernel's."""
    note: str = ""

    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.requires if importlib.util.find_spec(name) is None)

    def measures_memory_of(self, case: Case) -> bool:
        return self.measure_memory and self.serves(case) and not self.missing()


def _modules(package: str) -> list[Any]:
    folder = importlib.import_module(package)
    names = sorted(found.name for found in pkgutil.iter_modules(folder.__path__))
    return [importlib.import_module(f"{package}.{n}") for n in names if not n.startswith("_")]


def operators() -> dict[str, Operator]:
    """Every operator by name."""
    return {module.OPERATOR.name: module.OPERATOR for module in _modules("bench.operators")}


def peers() -> tuple[Peer, ...]:
    """Every peer, by file name and then in the order of its file."""
    return tuple(peer for module in _modules("bench.peers") for peer in module.PEERS)


def reshape(case: Case, shape: str) -> Case:
    """The case at another shape, given as ``B=8,N=256``; sizes not named stay.

    Raises:
        ValueError: a size that the case does not have, or that is no positive integer.
    """
    sizes = dict(case.sizes)
    for part in shape.split(","):
        name, _, value = part.partition("=")
        if name not in sizes:
            raise ValueError(
                f"shape {shape!r}: {case.operator} has the sizes {', '.join(sizes)}, not {name!r}"
            )
        if not value.isdigit() or int(value) < 1:
            raise ValueError(f"shape {shape!r}: {name} needs a positive integer, got {value!r}")
        sizes[name] = int(value)
    return replace(case, sizes=sizes)


def select(
    operator_names: Sequence[str] = (), patterns: Sequence[str] = (), shapes: Sequence[str] = ()
) -> list[Case]:
    """Cases of the named operators whose identifier contains a pattern; all by default.

    ``shapes`` replaces the default shapes: every variant at every shape given.

    Raises:
        ValueError: no such operator, no case left, or a shape that does not fit.
    """
    known = operators()
    for name in operator_names:
        if name not in known:
            raise ValueError(f"unknown operator {name!r}, expected one of {', '.join(known)}")
    chosen: dict[str, Case] = {}
    for name in operator_names or known:
        variants: dict[str, Case] = {}
        for case in known[name].cases:
            variants.setdefault(case.variant, case)
        reshaped = [reshape(case, shape) for shape in shapes for case in variants.values()]
        for case in reshaped if shapes else known[name].cases:
            if not patterns or any(pattern in case.identifier for pattern in patterns):
                chosen[case.identifier] = case
    if not chosen:
        wanted = " or ".join(map(repr, patterns))
        raise ValueError(f"no case contains {wanted}; `python -m bench --list` shows them")
    return list(chosen.values())
