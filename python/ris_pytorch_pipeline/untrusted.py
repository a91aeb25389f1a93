# SPDX-License-Identifier: Apache-2.0
"""Reading of files that a stranger may have made: bounded, of regular files alone, never unpickled.

A file is refused by its size before memory is taken for it, a named pipe or a device is refused
instead of waited for, and JSON is taken in its strict form. Every refusal is the caller's kind of
error with one line that names the file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL, LARGE = 1 << 20, 64 << 20
"""Limits of JSON files in bytes: of configurations, and of lists that grow with the data."""
LINE = 300
"""Characters of another library's message that an error quotes."""


def shown(value: object) -> str:
    """``repr`` of a value from a file, shortened to what fits an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened, or the error's kind.

    >>> first_line(ValueError("short\\nand long")), first_line(KeyError())
    ('short', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), "")[:LINE] or type(error).__name__


@contextlib.contextmanager
def open_regular(
    path: Path, error: type[ValueError], *, links: bool = True
) -> Iterator[tuple[int, os.stat_result]]:
    """Descriptor and status of the regular file ``path``, for reading.

    Args:
        path: the file.
        error: raised where it cannot be opened, or is no regular file.
        links: whether ``path`` may be a symbolic link.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    try:
        # Looked at before it is opened: opening a pipe or a device can have effects.
        regular = stat.S_ISREG(os.stat(path, follow_symlinks=links).st_mode)
        handle = os.open(path, flags) if regular else -1
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path}: cannot be read ({reason})") from None
    if handle < 0:
        raise error(f"{path}: not a regular file")
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path}: not a regular file")
        yield handle, status
    finally:
        os.close(handle)


def read_bytes(path: Path, limit: int, error: type[ValueError], *, links: bool = True) -> bytes:
    """Everything in the regular file ``path``, of at most ``limit`` bytes."""
    with open_regular(path, error, links=links) as (handle, status):
        size = status.st_size
        if size > limit:
            raise error(f"{path}: has {size} bytes, expected at most {limit}")
        try:
            with open(handle, "rb", closefd=False) as file:
                data = file.read(size + 1)
        except OSError as problem:
            raise error(f"{path}: cannot be read ({problem.strerror})") from None
    if len(data) != size:
        raise error(f"{path}: changed while it was read")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"key {shown(twice)} is there twice")
    return found


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is beyond the largest float")
    return value


def parse_json(
    data: bytes, where: str | Path, error: type[ValueError], *, finite: bool = True
) -> Any:
    """The value of strict JSON in UTF-8: no key twice and, where ``finite``, no NaN or infinity."""
    number = {"parse_constant": _constant, "parse_float": _finite} if finite else {}
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, **number)  # type: ignore[arg-type]
    except RecursionError:
        raise error(f"{where}: not valid JSON (nested too deeply)") from None
    except ValueError as problem:
        raise error(f"{where}: not valid JSON ({problem})") from None


def read_json(path: Path, limit: int, error: type[ValueError], *, finite: bool = True) -> Any:
    """The value in a JSON file of at most ``limit`` bytes; see :func:`parse_json`."""
    return parse_json(read_bytes(path, limit, error), path, error, finite=finite)
