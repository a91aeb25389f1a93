# SPDX-License-Identifier: Apache-2.0
"""What arguments every operator takes, learnt from calls of it.

tests/simd_outputs.py calls every operator forward and backward; a test there fails where one is
missing, so a new operator is fuzzed as soon as it passes. The calls are recorded at sizes that all
differ, so that each dimension of a recorded tensor tells which size it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

SIZES = {"B": 6, "L": 5, "K": 2, "M": 11, "N": 13, "L+K": 7, "2L": 10, "G": 19}
"""Of the recorded calls, pairwise different, and none of them the 3 or 4 that are constants."""


@dataclass(frozen=True)
class TensorTemplate:
    """Names of the dimensions, or the constants; and the dtype, or what it follows."""

    name: str
    dims: tuple[str | int, ...]
    dtype: Any
    """"complex" and "real" for those that follow the precision of the call."""
    leaf: bool
    """Whether a gradient is taken to it."""


@dataclass(frozen=True)
class Template:
    """One way of calling one operator: TensorTemplates, and the values of other arguments."""

    overload: Any
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    forward: bool


def _tensor(name: str, value: Any) -> TensorTemplate:
    import torch

    names = {size: symbol for symbol, size in SIZES.items()}
    dims = tuple(names.get(size, size) for size in value.shape)
    dtype = {torch.complex64: "complex", torch.float32: "real"}.get(value.dtype, value.dtype)
    return TensorTemplate(name, dims, dtype, value.requires_grad)


@cache
def templates() -> list[Template]:
    """One per operator and kind of call, in the order of their names."""
    import simd_outputs
    import torch

    from riskernels import library

    sizes = {"SCENES": "B", "SNAPSHOTS": "L", "SOURCES": "K", "POINTS": "G"}
    before = {name: getattr(simd_outputs, name) for name in sizes}
    dtype = torch.complex64
    try:
        for name, symbol in sizes.items():
            setattr(simd_outputs, name, SIZES[symbol])
        with simd_outputs.Recorder() as recorder:
            for call in simd_outputs._calls(SIZES["M"], SIZES["N"], dtype, dtype):
                call()
    finally:
        for name, size in before.items():
            setattr(simd_outputs, name, size)
    found: dict[str, Template] = {}
    for overload, args, kwargs in recorder.calls:
        op = overload.name().split("::")[1].split(".")[0]
        if op not in library.operators():
            continue
        names = [argument.name for argument in overload._schema.arguments]
        described = tuple(
            _tensor(name, value) if isinstance(value, torch.Tensor) else value
            for name, value in zip(names, args, strict=False)
        )
        template = Template(overload, op, described, dict(kwargs), not op.endswith("_backward"))
        found[f"{op} {described} {kwargs}"] = template
    missing = set(library.operators()) - {template.op for template in found.values()}
    if missing:
        raise RuntimeError(f"no call was recorded of {', '.join(sorted(missing))}")
    return [found[key] for key in sorted(found)]
