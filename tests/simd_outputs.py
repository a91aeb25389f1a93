# SPDX-License-Identifier: Apache-2.0
"""Every operator, forward and backward, on inputs that depend on nothing but the case.

Run as a program it saves what the instruction set of RISKERNELS_SIMD computes, and which operators
ran: ``python simd_outputs.py FILE``.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import factored_inputs as fi
import tikhonov_inputs as ti
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import riskernels
from riskernels import library

SCENES, SNAPSHOTS, SOURCES, POINTS = 3, 5, 3, 19
DIVIDED = {"elements": 200, "points": 8200}
"""So many points where there are so many elements: more than one sum of steering_power takes."""
SIZES = ((1, 1), (7, 31), (17, 133))
"""M and N: neither a multiple of a vector of any instruction set."""
DTYPES = (torch.complex64, torch.complex128)
ALPHA, RIDGE, WAVELENGTH = 0.1, 1e-2, 0.3


@dataclass(frozen=True)
class Call:
    """``function(*leaves, *others)``; gradients are taken to the leaves."""

    name: str
    function: Callable[..., Any]
    leaves: tuple[Tensor, ...]
    others: tuple[Any, ...] = ()

    def __call__(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Outputs, and gradients of a weighted sum of their squares."""
        leaves = [t.detach().requires_grad_() for t in self.leaves]
        result = self.function(*leaves, *self.others)
        results = result if isinstance(result, tuple) else (result,)
        loss = sum((r.abs().square() * _weights(r)).sum() for r in results)
        return results, torch.autograd.grad(loss, leaves)


def _weights(like: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, like.numel(), dtype=torch.float64).view(like.shape)
    return weights.to(like.dtype.to_real())


def _calls(m: int, n: int, dtype: torch.dtype, computed_in: torch.dtype) -> Iterator[Call]:
    """Every case; the values are exact in ``dtype``."""

    def values(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            t.to(dtype).to(computed_in)
            if t.is_complex()
            else t.to(dtype.to_real()).to(computed_in.to_real())
            for t in tensors
        )

    drawn = ti.make(SCENES, SNAPSHOTS, m, n, modulus="varying", seed=n).tensors
    factors = fi.make(SCENES, n, SNAPSHOTS, SOURCES, torch.complex128, seed=n)
    other = fi.make(SCENES, n, SNAPSHOTS, SOURCES, torch.complex128, seed=n + 1)
    mixed = 0.1 * other.x @ factors.x.mH
    channel = values(drawn)
    matrices = values((factors.x @ factors.x.mH + mixed, other.x @ other.x.mH + mixed))
    x, rho, y = values(factors.tensors)
    snapshots, samp = values((other.x.mT,))[0], matrices[1]
    counts = torch.tensor([0, 1, SOURCES]).repeat(SCENES)[:SCENES]
    mask = torch.arange(n) % 5 != 1
    strided = tuple(matrix.mT for matrix in matrices)

    yield Call("tikhonov_covariance", riskernels.tikhonov_covariance, channel, (ALPHA,))
    for option in ("center", "relative"):
        function = functools.partial(riskernels.tikhonov_covariance, **{option: True})
        yield Call(f"tikhonov_covariance, {option}", function, channel, (ALPHA,))
    yield Call("tikhonov_snapshots", riskernels.tikhonov_snapshots, channel, (ALPHA,))
    yield Call("hermitian_nmse", riskernels.hermitian_nmse, matrices)
    yield Call("hermitian_nmse, transposed", riskernels.hermitian_nmse, strided)
    if n > 1:
        masked = functools.partial(riskernels.hermitian_nmse, element_mask=mask)
        yield Call("hermitian_nmse, masked", masked, matrices)
        # Of a single element the leakage is a constant.
        yield Call(
            "subspace_leakage", riskernels.subspace_leakage, matrices[:1], (y, counts, RIDGE)
        )
        yield Call("factored_leakage", riskernels.factored_leakage, (x, rho), (y, counts, RIDGE))
    loaded = functools.partial(riskernels.blend_covariance, loading=1e-2)
    yield Call("blend_covariance", loaded, matrices[:1], (samp,))
    loaded = functools.partial(riskernels.factored_blend, loading=1e-2)
    yield Call("factored_blend", loaded, (x,), (snapshots,))
    yield Call("factored_nmse", riskernels.factored_nmse, (x, rho, y))
    yield Call("factored_spectrum", riskernels.factored_spectrum, (x, rho))
    # One scene of many points: fewer than threads.
    divided = n >= DIVIDED["elements"]
    g, scenes = (DIVIDED["points"], 1) if divided else (POINTS, SCENES)
    angles = torch.linspace(-1.0, 1.0, g, dtype=torch.float64)
    places = 0.3 * torch.sin(torch.arange(3.0 * n, dtype=torch.float64)).view(n, 3)
    points = (angles, 0.5 * angles.flip(0), 3.0 + 2 * angles, places, WAVELENGTH)
    for taper in (False, True):
        power = functools.partial(riskernels.steering_power, taper=taper)
        yield Call(f"steering_power, taper {taper}", power, (x[:scenes],), points)


def outputs(computed_in: torch.dtype | None = None) -> dict[str, Tensor]:
    """Outputs and gradients of every case, by name.

    Args:
        computed_in: complex dtype that the inputs are converted to first; their own when None.
    """
    found = {}
    for m, n in SIZES:
        for dtype in DTYPES:
            for call in _calls(m, n, dtype, computed_in or dtype):
                for kind, values in zip(("output", "gradient"), call(), strict=True):
                    for i, value in enumerate(values):
                        name = f"{call.name}, M={m}, N={n}, {dtype}: {kind} {i}"
                        found[name] = value.detach().resolve_conj()
    return found


Recorded: TypeAlias = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operator, its arguments, and those that it takes by name."""


def digests(calls: list[Recorded]) -> list[str]:
    """One of every output of every call, which calls operators and nothing else of torch."""
    found = []
    with torch.no_grad():
        for function, args, kwargs in calls:
            result = function(*args, **kwargs)
            for value in result if isinstance(result, tuple) else (result,):
                found.append(hashlib.sha256(value.detach().numpy().tobytes()).hexdigest())
    return found


class Recorder(TorchDispatchMode):
    """The riskernels operators that run inside it: their names, and every call."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()
        self.calls: list[Recorded] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "riskernels":
            self.ran.add(func.name().split("::")[1].split(".")[0])
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with Recorder() as recorder:
        computed = outputs()
    torch.save(
        {"level": library.simd_level(), "ran": sorted(recorder.ran), "outputs": computed},
        sys.argv[1],
    )
