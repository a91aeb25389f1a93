# SPDX-License-Identifier: Apache-2.0
"""Whether an accepted result is right: the reference in complex128, and how well it is determined.

A result is wrong where it is further from the reference in complex128 than the reference gets from
it when its inputs and what every step of it computes are rounded differently: Monte Carlo
arithmetic (D. S. Parker, 1997). That needs no bound per operator, and holds where a problem is ill
conditioned or its terms cancel, inputs that are zero included. A gradient is also held to output /
input: what is below rounding of that changes no digit of the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fuzz.target import FindingError
from fuzz.templates import Template

SLACK = 64.0
"""Rounding errors of a result's size that it may be off by."""
SPREAD = 32.0
"""How many times further than the reference, differently rounded, a result may be off."""
DETERMINED = 1e-2
"""Of a result: what rounding moves by more has no digit to be held to."""
PRECISION = {torch.complex64: torch.finfo(torch.float32).eps, torch.complex128: 1e-9}
"""Of the inputs and results of a call. In complex128 the reference is no more exact than the
operator, which is therefore held to fewer digits than it has."""
PERTURBED = 4
SHARES = ("subspace_leakage_forward", "factored_leakage_forward")
"""Operators whose output is what is left of 1, and as exact as that."""
LARGEST = 1e18
"""Squares of what is larger overflow in float32. Options beyond it, or below its inverse, leave
nothing to compare: a phase of 1e60 turns has no digit."""


def wide(value: Any) -> Any:
    """Numbers in double precision, in memory of their own."""
    if not isinstance(value, Tensor) or not (value.is_complex() or value.is_floating_point()):
        return value
    dtype = torch.complex128 if value.is_complex() else torch.float64
    return value.detach().to(dtype).resolve_conj().resolve_neg().clone()


def _moved(value: Any, dtype: torch.dtype, generator: torch.Generator) -> Any:
    """``value`` in the precision of ``dtype``, every number off by about a rounding of it.

    An option that float32 does not have becomes the nearest one that it has, for complex64.
    """
    if isinstance(value, float) and value and dtype is torch.complex64:
        single = torch.finfo(torch.float32)
        return math.copysign(min(max(abs(value), single.tiny), single.max), value)
    if not isinstance(value, Tensor) or not (value.is_complex() or value.is_floating_point()):
        return value
    plain = wide(value)
    noise = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    moved = plain * (1 + PRECISION[dtype] * noise)
    return moved.to(dtype if value.is_complex() else dtype.to_real())


class Rounding(TorchDispatchMode):
    """Every number that an operation computes is off by about a rounding.

    Calls in complex64 compute some steps in double precision, where single precision would not do.
    There they are rounded to it, so that who computes them in single is found.
    """

    def __init__(self, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._single, self._generator = dtype is torch.complex64, generator

    def _off(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not (value.is_complex() or value.is_floating_point()):
            return value
        real = value.dtype.to_real()
        rounding = torch.finfo(real).eps if self._single else PRECISION[torch.complex128]
        noise = torch.randn(value.shape, generator=self._generator, dtype=real)
        return value * (1 + rounding * noise)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(returned.alias_info is not None for returned in func._schema.returns):
            # A view computes nothing, and what is written in place lies in memory of the caller.
            return result
        if isinstance(result, tuple | list):
            return type(result)(self._off(value) for value in result)
        return self._off(result)


def outputs_and_gradients(
    function: Any, args: Sequence[Any], kwargs: dict[str, Any], leaves: Sequence[int]
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Differentiable outputs, then the gradients of a fixed weighting of them to ``leaves``; and
    the weighted outputs."""
    args = list(args)
    for index in leaves:
        args[index] = args[index].detach().requires_grad_()
    result = function(*args, **kwargs)
    results = [r for r in (result if isinstance(result, tuple) else (result,)) if r.requires_grad]
    weights = [
        torch.linspace(-1, 2, r.numel(), dtype=torch.float64).reshape(r.shape).to(r.dtype)
        for r in results
    ]
    gradients = torch.autograd.grad(results, [args[i] for i in leaves], weights, allow_unused=True)
    weighted = [r.detach() * w for r, w in zip(results, weights, strict=True)]
    return [*(r.detach() for r in results), *gradients], weighted


def _scene_norms(value: Tensor, scenes: int | None) -> Tensor:
    """Norms of every scene, or of the whole."""
    flat = value.reshape(scenes, -1) if scenes else value.reshape(1, -1)
    return flat.abs().square().sum(-1).sqrt()


def check_values(template: Template, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise :class:`FindingError` where outputs or gradients of a forward operator are wrong."""
    from riskernels import library

    tensors = [(i, a) for i, a in enumerate(args) if isinstance(a, Tensor)]
    numbers = [(i, a) for i, a in tensors if a.is_complex() or a.is_floating_point()]
    leaves = [i for i, _ in numbers if template.args[i].leaf]
    scenes = args[0].shape[0]
    if not leaves or not scenes:
        return
    options = [v for v in (*args, *kwargs.values()) if isinstance(v, float) and v]
    if any(not 1 / LARGEST <= abs(v) <= LARGEST for v in options):
        return
    dtype = args[0].dtype
    eps = PRECISION[dtype]
    spoiled = torch.zeros(scenes, dtype=torch.bool)
    for i, value in numbers:
        plain = wide(value)
        bad = ~torch.isfinite(plain.abs()) | (plain.abs() > LARGEST)
        bad |= (plain.abs() < 1 / LARGEST) & (plain != 0)
        # As many points as scenes are no scenes.
        if template.args[i].dims[:1] == ("B",) and value.shape[:1] == (scenes,):
            spoiled |= bad.reshape(scenes, -1).any(1)
        elif bad.any():
            return
    got, _ = outputs_and_gradients(template.overload, args, kwargs, leaves)
    plain = [wide(a) for a in args]

    def reference(values: Sequence[Any]) -> tuple[list[Tensor | None], list[Tensor]]:
        with library.use_backend("reference"):
            return outputs_and_gradients(template.overload, values, kwargs, leaves)

    want, weighted = reference(plain)
    if [g is None for g in got] != [w is None for w in want]:
        raise FindingError("a gradient is missing, or one too many")
    moved: list[Tensor] | None = None

    def movement() -> list[Tensor]:
        """How far every result gets from ``want``, at most, by rounding differently."""
        generator = torch.Generator().manual_seed(0)
        furthest = [torch.zeros(())] * len(want)
        for _ in range(PERTURBED):
            inputs = [_moved(a, dtype, generator) for a in args]
            with Rounding(dtype, generator):
                off, _ = reference(inputs)
            for i, (o, v) in enumerate(zip(off, want, strict=True)):
                if o is not None and v is not None:
                    shape = scenes if v.dim() and v.shape[0] == scenes else None
                    furthest[i] = torch.maximum(furthest[i], _scene_norms(wide(o) - v, shape))
        return furthest

    for index, (g, w) in enumerate(zip(got, want, strict=True)):
        if g is None or w is None:
            continue
        if g.shape != w.shape:
            raise FindingError(
                f"result {index} has shape {list(g.shape)}, expected {list(w.shape)}"
            )
        by_scene = scenes if w.dim() and w.shape[0] == scenes else None
        keep = ~spoiled if by_scene else ~spoiled.any().reshape(1)
        size = _scene_norms(w, by_scene)
        keep &= torch.isfinite(size) & (size < LARGEST)
        if index < len(weighted) and template.op in SHARES:
            size = torch.clamp(size, min=1.0)
        error = _scene_norms(wide(g) - w, by_scene)
        if index >= len(weighted):
            value = plain[leaves[index - len(weighted)]]
            outputs = torch.stack([_scene_norms(v, by_scene) for v in weighted]).sum(0)
            if template.op in SHARES:
                outputs = torch.clamp(outputs, min=1.0)
            inputs = _scene_norms(value, by_scene)
            size = size + torch.where(inputs > 0, outputs / inputs, 0.0)
            # Where the output overflows there is nothing to hold the gradient to.
            keep &= torch.isfinite(size)
        if not bool((keep & ~(error <= SLACK * eps * size)).any()):
            continue
        if moved is None:
            moved = movement()
        # What overflows in the reference may overflow in the operator, too.
        keep &= torch.isfinite(moved[index]) & (moved[index] <= DETERMINED * size)
        allowed = SLACK * eps * size + SPREAD * moved[index]
        if bool((wrong := keep & ~(error <= allowed)).any()):
            raise FindingError(
                f"riskernels::{template.op}, result {index} of {dtype}: errors "
                f"{error[wrong].tolist()}, allowed {allowed[wrong].tolist()}, "
                f"size {size[wrong].tolist()}"
            )
