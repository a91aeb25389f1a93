# SPDX-License-Identifier: Apache-2.0
"""Operators: the native checks, the Python checks and the fake ones agree, and results are right.

A case is one call of one operator below its public function, where only the checks of the library
itself stand between the arguments and the kernel: shapes, strides, dtypes, expanded, conjugated and
negated views, zero and huge sizes, tensors of other devices, numbers out of range. All three must
accept it or refuse it in the same words; what is accepted must have the shapes, dtypes and strides
that the fake announces; and forward operators must give the values and gradients of the reference
in complex128.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from fuzz.target import Choices, FindingError, fuzz

NUMBERS = (
    0.5, 0.0, 1.0, -1.0, -0.0, math.nan, math.inf, -math.inf, 1e-3, 1e-60, 1e39, 1e308, 1e-320, 2.0,
)  # fmt: skip
INTEGERS = (1, 0, -1, 2, 7, 2**31, 2**62, -(2**63))
WORK = 1e8
"""Operations, roughly, from which on a call is not run, only checked."""
IMPOSSIBLE = 1 << 45
"""Numbers that no machine has memory for."""


NO_MEMORY = "no memory"
"""Stands for the words of the allocation, which knows no operator."""


def _other(value: Any, choices: Choices) -> Any:
    """An argument that is no tensor."""
    if isinstance(value, bool):
        return value != choices.sometimes(3)
    if not choices.sometimes(8):
        return value
    if isinstance(value, float):
        return choices.of(NUMBERS)
    return choices.of(INTEGERS) if isinstance(value, int) else value


def _refusal(function: Any, args: Any, kwargs: Any, op: str) -> tuple[Any, str | None]:
    """What it returns, or in which words it refuses."""
    try:
        return function(*args, **kwargs), None
    except (RuntimeError, ValueError) as error:
        words = str(error).split("\n")[0]
        allocation = words.startswith("riskernels: an output of shape ")
        torch_words = ("Storage size calc", "Stride calculation overflowed")
        if (allocation and "could not be allocated" in words) or words.startswith(torch_words):
            return None, NO_MEMORY
        if f"riskernels::{op.removesuffix('_forward')}" not in words:
            raise FindingError(f"a refusal that does not name {op}: {words}") from error
        return None, words


def _facts(result: Any) -> list[tuple[Any, ...]]:
    results = result if isinstance(result, tuple) else (result,)
    return [(tuple(r.shape), r.dtype, r.is_contiguous()) for r in results]


def test(data: bytes) -> None:
    """One call."""
    import torch

    from fuzz import compare, tensors
    from fuzz.templates import TensorTemplate, templates
    from riskernels import library

    torch.set_num_threads(1)
    choices = Choices(data)
    template = choices.of(templates())
    dtype = choices.of((torch.complex64, torch.complex128))
    chosen = tensors.sizes(choices)
    torch.manual_seed(choices.byte())
    args, real = [], True
    for value in template.args:
        if isinstance(value, TensorTemplate):
            value, here = tensors.draw(value, chosen, dtype, choices)
            real &= here
        else:
            value = _other(value, choices)
        args.append(value)
    kwargs = {name: _other(value, choices) for name, value in template.kwargs.items()}
    if any(
        value is None and isinstance(t, TensorTemplate) and "Optional" not in str(argument.type)
        for value, t, argument in zip(
            args, template.args, template.overload._schema.arguments, strict=False
        )
    ):
        # torch's own parser answers.
        return
    found = [a for a in args if isinstance(a, torch.Tensor)]
    mixed = len({a.device.type for a in found}) > 1
    op, run = template.op, template.overload
    if mixed or found[0].device.type == "meta":
        # Other arguments may be wrong as well, and be named first.
        _, words = _refusal(run, args, kwargs, op)
        if mixed and words is None:
            raise FindingError(f"{op} accepted tensors of several devices")
        return

    announced, fake_words = _refusal(run, [tensors.on_meta(a) for a in args], kwargs, op)
    work = math.prod(max([1, *a.shape]) for a in found[:2]) * max([1, *found[0].shape])
    impossible = fake_words is None and any(
        math.prod(facts[0]) > IMPOSSIBLE for facts in _facts(announced)
    )
    if fake_words is None and (not real or work > WORK) and not impossible:
        return
    with torch.no_grad():
        result, words = _refusal(run, args, kwargs, op)
        reference_words = words
        if real:
            with library.use_backend("reference"):
                _, reference_words = _refusal(run, args, kwargs, op)
    if impossible:
        if words != NO_MEMORY:
            raise FindingError(f"{op}: {_facts(announced)} was answered by {words!r}")
        return
    if not words == reference_words == fake_words:
        raise FindingError(
            f"{op}: the library says {words!r}, the reference {reference_words!r}, "
            f"the fake {fake_words!r}"
        )
    if words is not None:
        return
    if _facts(result) != _facts(announced):
        raise FindingError(f"{op}: returned {_facts(result)}, announced {_facts(announced)}")
    if template.forward:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compare.check_values(template, args, kwargs)


if __name__ == "__main__":
    fuzz("operators", test, ["riskernels.ops", "riskernels.reference"])
