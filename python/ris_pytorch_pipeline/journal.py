# SPDX-License-Identifier: Apache-2.0
"""Optuna's journal file, mended where a writer was cut off and refused where it is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from .storage import StorageError


class MendingLock(JournalFileOpenLock):  # type: ignore[misc]
    """Lock of a journal whose holder finds only whole lines.

    A writer that was cut off (power failure, full disk) leaves a line without an end, to which the
    next record would be glued. Nobody was told that it is there, so it is cut off.
    """

    def __init__(self, path: Path, grace: int) -> None:
        super().__init__(str(path), grace)
        self._path = path

    def acquire(self) -> bool:
        """Take the lock; waits for it."""
        super().acquire()
        try:
            _cut_unfinished_line(self._path)
        except BaseException:
            self.release()
            raise
        return True


def _cut_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())


class Journal(JournalFileBackend):  # type: ignore[misc]
    """A journal at the absolute ``path``, whose lock is taken over after ``grace`` seconds."""

    def __init__(self, path: Path, grace: int) -> None:
        self._lock_of_journal = MendingLock(path, grace)
        super().__init__(str(path), self._lock_of_journal)
        self._path = path

    def check(self) -> None:
        """Read every line, while nobody writes.

        Raises:
            StorageError: one is damaged; the message says which.
        """
        self._lock_of_journal.acquire()
        try:
            with self._path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        whole = isinstance(json.loads(line)["op_code"], int)
                    except (ValueError, KeyError, TypeError):
                        whole = False
                    if not whole:
                        raise StorageError(
                            f"line {number} is damaged: {_shown(line)}; restore the file, or "
                            "delete the line to go on without what it recorded"
                        )
        finally:
            self._lock_of_journal.release()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The records from a number on."""
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise StorageError(
                f"{self._path}: damaged after record {log_number_from} ({error})"
            ) from error


def _shown(line: bytes) -> str:
    text = repr(line[:40])[1:]
    return text + ("..." if len(line) > 40 else "")
