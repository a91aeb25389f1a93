# SPDX-License-Identifier: Apache-2.0
"""What the targets share: choices read from a case's bytes, and the call of the fuzzer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Choice = TypeVar("Choice")

ROOT = Path(__file__).resolve().parents[1]
CORPUS = Path(__file__).resolve().parent / "corpus"


class FindingError(AssertionError):
    """What no input may cause: a wrong result accepted, or a refusal of the wrong kind."""


class Choices:
    """Reads the bytes of a case from the front; where they end, every choice is the first one.

    So the empty case is the plain valid one, and each further byte departs from it somewhere.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._next = 0

    def byte(self) -> int:
        """The next byte, 0 at the end."""
        self._next += 1
        return self._data[self._next - 1] if self._next <= len(self._data) else 0

    def rest(self) -> bytes:
        """All that is left."""
        rest, self._next = self._data[self._next :], len(self._data)
        return rest

    def of(self, options: Sequence[Choice]) -> Choice:
        """One of ``options``."""
        return options[self.byte() % len(options)]

    def number(self) -> int:
        """16 bits."""
        return self.byte() | self.byte() << 8

    def sometimes(self, one_in: int) -> bool:
        """True for about one byte in ``one_in``, never at the end of the data."""
        return self.byte() >= 256 - 256 // one_in


def fuzz(name: str, test: Callable[[bytes], None], instrument: Sequence[str]) -> None:
    """Give ``test`` to libFuzzer, with the arguments of the command line.

    ``instrument`` names the packages whose branches count as coverage. They must not be imported
    before ``test`` is first called.
    """
    import atheris

    # Thousands of small files are written, and none has to outlive a power failure.
    os.fsync = lambda file: None
    with atheris.instrument_imports(include=list(instrument)):
        test(b"")
    atheris.Setup([name, *sys.argv[1:]], test)
    atheris.Fuzz()
