# SPDX-License-Identifier: Apache-2.0
"""Tensors of a case: shapes, dtypes, devices, layouts and values, valid or not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fuzz.target import Choices
from fuzz.templates import TensorTemplate

SIZES = {
    "B": (2, 1, 3, 0, 5),
    "L": (3, 1, 5, 2, 8, 17, 0),
    "K": (2, 1, 3, 4, 7, 0),
    "M": (4, 1, 7, 8, 16, 17, 0),
    "N": (6, 1, 2, 8, 13, 16, 31, 33, 40, 65, 0),
    "G": (5, 1, 2, 33, 40, 0),
}
DTYPES = (
    torch.complex64, torch.complex128, torch.complex32, torch.float32, torch.float64, torch.float16,
    torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
)  # fmt: skip
HUGE = (2**20, 2**31, 2**33 + 1, 2**40)
MEMORY = 1 << 24
"""Elements of a tensor that is really made."""


def sizes(choices: Choices) -> dict[str, int]:
    """One size for every symbol."""
    drawn = {name: choices.of(options) for name, options in SIZES.items()}
    drawn["L+K"] = drawn["L"] + drawn["K"]
    drawn["2L"] = 2 * drawn["L"]
    return drawn


def _values(shape: list[int], dtype: torch.dtype, kind: str) -> Tensor:
    if dtype is torch.bool:
        return torch.rand(shape) < {"zero": 0.0, "ones": 1.1}.get(kind, 0.7)
    if not (dtype.is_complex or dtype.is_floating_point):
        return torch.randint(-1 if dtype.is_signed else 0, 6, shape, dtype=dtype)
    if kind == "zero":
        return torch.zeros(shape, dtype=dtype)
    if kind == "ones":
        return torch.ones(shape, dtype=dtype)
    scale = {"small": 1e-3, "large": 1e3, "tiny": 1e-30, "giant": 1e20}.get(kind, 1.0)
    if dtype.is_complex:
        value = torch.randn(shape, dtype=torch.complex128)
    else:
        value = torch.rand(shape, dtype=torch.float64)
    value = value * scale
    if kind in ("nan", "inf") and value.numel():
        # In the first scene: the others must not see it.
        value.reshape(-1)[0] = math.nan if kind == "nan" else math.inf
    return value.to(dtype)


def _laid_out(value: Tensor, layout: str, at: int) -> Tensor:
    """The same values, or some of them again and again, with other strides."""
    if value.dim() == 0:
        return value
    dim = at % value.dim()
    if layout == "transposed":
        other = (dim + 1) % value.dim()
        return value.transpose(dim, other).contiguous().transpose(dim, other)
    if layout == "strided":
        return torch.stack([value, torch.zeros_like(value)], -1)[..., 0]
    if layout == "offset":
        return torch.cat([torch.zeros_like(value), value, value], dim).narrow(
            dim, value.shape[dim], value.shape[dim]
        )
    if layout == "expanded" and value.shape[dim] > 0:
        return value.narrow(dim, 0, 1).expand_as(value)
    if layout == "conjugated" and value.is_complex():
        return value.conj()
    if layout == "negated" and (value.is_complex() or value.is_floating_point()):
        return torch._neg_view(value)
    return value


def draw(
    template: TensorTemplate, chosen: dict[str, int], dtype: torch.dtype, choices: Choices
) -> tuple[Any, bool]:
    """The argument, and whether it is real memory (else on the meta device, or too large)."""
    shape: list[int] = [chosen[dim] if isinstance(dim, str) else dim for dim in template.dims]
    kind = {"complex": dtype, "real": dtype.to_real()}.get(template.dtype, template.dtype)
    device, huge = "cpu", False
    if choices.sometimes(10):
        departure = choices.of(
            ("size", "symbol", "drop", "insert", "dtype", "device", "none", "huge", "permute")
        )
        at = choices.byte() % max(len(shape), 1)
        if departure == "size" and shape:
            shape[at] = choices.of((0, 1, 2, 3, 4, 5, 6, 7, 9, 16))
        elif departure == "symbol" and shape:
            shape[at] = choices.of(list(chosen.values()))
        elif departure == "drop" and shape:
            del shape[at]
        elif departure == "insert":
            shape.insert(at, choices.of((1, 0, *chosen.values())))
        elif departure == "dtype":
            kind = choices.of(DTYPES)
        elif departure == "device":
            device = "meta"
        elif departure == "none":
            return None, True
        elif departure == "huge" and shape:
            shape[at], huge = choices.of(HUGE), True
        elif departure == "permute" and len(shape) > 1:
            shape = shape[at:] + shape[:at]
    values = choices.of(
        ("normal", "normal", "normal", "normal", "normal", "normal", "small", "large", "zero",
         "ones", "nan", "inf", "tiny", "giant")
    )  # fmt: skip
    layout = choices.of(
        ("plain", "transposed", "strided", "offset", "expanded", "conjugated", "negated", "plain")
    )
    where = choices.byte()
    if huge or math.prod(shape) > MEMORY:
        # One number, seen again and again.
        return torch.zeros((), dtype=kind, device=device).expand(shape), False
    value = _laid_out(_values(shape, kind, values), layout, where)
    return value.to(device), device == "cpu"


def on_meta(value: Any) -> Any:
    """Shape, strides and dtype without memory."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
