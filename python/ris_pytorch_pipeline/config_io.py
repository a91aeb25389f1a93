# SPDX-License-Identifier: Apache-2.0
"""Configurations as dictionaries and JSON files, and the checks that their classes share.

:mod:`.configs` holds the classes themselves and passes on the public names of this module.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from .durable import write_atomically

ConfigT = TypeVar("ConfigT")


class ConfigError(ValueError):
    """A configuration value or key that cannot be used; the message says which and why."""


def require(condition: bool, owner: object, message: str) -> None:
    """Raise :class:`ConfigError`, with the class of ``owner`` before the message, unless met."""
    if not condition:
        raise ConfigError(f"{type(owner).__name__}: {message}")


def require_finite(owner: object) -> None:
    """Refuse a field that is infinite or not a number."""
    for name, value in vars(owner).items():
        finite = not isinstance(value, float) or math.isfinite(value)
        require(finite, owner, f"{name} is {value}, expected a finite number")


def require_range(
    owner: object, names: str, accepts: Callable[[float], bool], expected: str
) -> None:
    """Refuse a field of ``names`` (separated by blanks) whose value is not accepted."""
    for name in names.split():
        value = getattr(owner, name)
        require(accepts(value), owner, f"{name} is {value}, expected {expected}")


def require_counts(owner: object, names: str) -> None:
    """Refuse a field of ``names`` (separated by blanks) that is below 1."""
    require_range(owner, names, lambda value: value >= 1, "at least 1")


def require_positive(owner: object, names: str) -> None:
    """Refuse a field of ``names`` (separated by blanks) that is not above 0."""
    require_range(owner, names, lambda value: value > 0, "more than 0")


def require_not_negative(owner: object, names: str) -> None:
    """Refuse a field of ``names`` (separated by blanks) that is below 0."""
    require_range(owner, names, lambda value: value >= 0, "at least 0")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary of a configuration."""
    return dataclasses.asdict(config)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _coerce(next(o for o in options if o is not type(None)), value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where}: got {value!r}, expected one of {typing.get_args(hint)}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: an integer beyond the largest float") from None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: got {value!r}, expected {hint.__name__}")
    return value


def from_dict(cls: type[ConfigT], data: Any, where: str = "config") -> ConfigT:
    """Build ``cls`` from a nested dictionary; unknown keys and wrong types are refused by name.

    >>> from ris_pytorch_pipeline.configs import CovarianceConfig
    >>> from_dict(CovarianceConfig, {"beta": 0.5}).beta
    0.5
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: got {type(data).__name__}, expected a mapping")
    hints = typing.get_type_hints(cls)
    names = {spec.name for spec in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - names)
    if unknown:
        raise ConfigError(
            f"{where}: unknown key{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}; "
            f"known keys: {', '.join(sorted(names))}"
        )
    return cls(**{k: _coerce(hints[k], v, f"{where}.{k}") for k, v in data.items()})


def save_config(config: Any, path: str | Path) -> None:
    """Write ``config`` as indented JSON."""
    write_atomically(Path(path), json.dumps(to_dict(config), indent=2) + "\n")


def load_config(cls: type[ConfigT], path: str | Path) -> ConfigT:
    """Read a configuration written by :func:`save_config`."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    return from_dict(cls, data, str(path))
