# SPDX-License-Identifier: Apache-2.0
"""Departures from a valid JSON document."""

from __future__ import annotations

import copy
from typing import Any

from fuzz.target import Choices

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", "x", ".", "..", "../manifest.json", "../outside.npy",
    "/etc/passwd", "sub/file.npy", "a\0b", "con:", "\\\\host\\x", "link.npy", "fifo.npy",
    "manifest.json", "\ud800", "é" * 300, [], {}, [[]], {"": 0}, [1, 2, 3], {"path": "x"},
)  # fmt: skip


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [place]
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += _places(inner, (*place, key))
    return found


def mutate(document: Any, choices: Choices) -> Any:
    """``document`` with some values replaced, removed, added, doubled or taken from elsewhere."""
    document = copy.deepcopy(document)
    for _ in range(choices.of((0, 1, 1, 2, 3, 6))):
        places = _places(document)
        place = places[choices.number() % len(places)]
        kind = choices.of(("nasty", "number", "remove", "add", "swap", "double", "nest"))
        if not place:
            if kind == "nasty":
                return choices.of(NASTY)
            continue
        owner = document
        for key in place[:-1]:
            owner = owner[key]
        key = place[-1]
        if kind == "nasty":
            owner[key] = choices.of(NASTY)
        elif kind == "number":
            step = choices.of((1, -1, 8, -8, 1000))
            value = owner[key]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            owner[key] = value + step if number else step
        elif kind == "remove":
            del owner[key]
        elif kind == "add" and isinstance(owner, dict):
            owner[choices.of(("x", "schema", "", "seed", "path"))] = choices.of(NASTY)
        elif kind == "swap":
            other = document
            for step in places[choices.number() % len(places)]:
                other = other[step]
            owner[key] = copy.deepcopy(other)
        elif kind == "double" and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        # Deep enough for what reads the document, not too deep for what copies it here.
        elif kind == "nest" and max(map(len, places)) < 100:
            for _ in range(choices.of((1, 3, 200))):
                owner[key] = [owner[key]]
    return document
