# SPDX-License-Identifier: Apache-2.0
"""A training's state as two files, JSON for plain values and safetensors for tensors.

Neither format can hold code, whatever a file says. JSON has no tuple, no key but text, no NaN and
no tensor; each of them becomes an object with one key, its kind::

    {"map": {...}}   {"items": [[key, value], ...]}   {"tuple": [...]}   {"float": "nan"}
    {"tensor": 3}    the tensor of that name in the other file
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .untrusted import first_line, parse_json, shown

_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """``tensors`` in the safetensors format."""
    return bytes(save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}))


def read_tensors(data: bytes, where: str, error: type[ValueError]) -> dict[str, Tensor]:
    """The tensors of a safetensors file; its header is checked against its size first."""
    try:
        return load(data)
    except (SafetensorError, ValueError, RuntimeError, TypeError, LookupError, AssertionError) as e:
        line = f"{type(e).__name__}: {first_line(e)}"
        raise error(f"{where}: not a safetensors file ({line})") from None


def pack(state: dict[str, Any]) -> tuple[bytes, bytes]:
    """``state`` as JSON and safetensors.

    Args:
        state: tensors, and plain values (None, bool, int, float, str) in dictionaries, lists and
            tuples. Keys are text or integers.

    Raises:
        TypeError: names the place of something else.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value
            return {"tensor": len(tensors) - 1}
        if isinstance(value, dict):
            inner = {k: plain(v, f"{place}[{k!r}]") for k, v in value.items()}
            if all(isinstance(k, str) for k in inner):
                return {"map": inner}
            if all(isinstance(k, (int, str)) for k in inner):
                return {"items": [[k, v] for k, v in inner.items()]}
            raise TypeError(f"{place}: a key is neither text nor an integer")
        if isinstance(value, (list, tuple)):
            items = [plain(v, f"{place}[{i}]") for i, v in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(float(value))}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(
            f"{place} is a {type(value).__name__}: a checkpoint holds tensors and plain values only"
        )

    return json.dumps(plain(state, "state")).encode(), tensor_bytes(tensors)


def unpack(
    text: bytes,
    tensors: dict[str, Tensor],
    where: str,
    error: type[ValueError],
    device: torch.device | str,
) -> dict[str, Any]:
    """The state that :func:`pack` was given, with its tensors on ``device``.

    Raises:
        error: ``text`` is not of :func:`pack`'s form, or names a tensor that is not there.
    """

    def value(packed: Any) -> Any:
        if isinstance(packed, list):
            return [value(item) for item in packed]
        if not isinstance(packed, dict):
            return packed
        if len(packed) == 1:
            [(kind, content)] = packed.items()
            if kind == "map" and isinstance(content, dict):
                return {name: value(item) for name, item in content.items()}
            if kind == "items" and isinstance(content, list):
                return {_key(item[0]): value(item[1]) for item in content}
            if kind == "tuple" and isinstance(content, list):
                return tuple(value(item) for item in content)
            if kind == "float" and isinstance(content, str):
                return _FLOATS[content]
            if kind == "tensor" and type(content) is int:
                return tensors[str(content)].to(device)
        raise ValueError(f"{shown(packed)} is no value")

    parsed = parse_json(text, where, error)
    try:
        state = value(parsed)
    except (ValueError, LookupError, TypeError, RecursionError) as problem:
        raise error(f"{where}: not the state of a checkpoint ({shown(problem)})") from None
    if not isinstance(state, dict):
        raise error(f"{where}: not the state of a checkpoint (a {type(state).__name__})")
    return state


def _key(key: Any) -> str | int:
    if not isinstance(key, (str, int)):
        raise ValueError(f"key {shown(key)}")
    return key
