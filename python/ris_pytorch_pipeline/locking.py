# SPDX-License-Identifier: Apache-2.0
"""Folders shared by several processes: a lock that ends with its process.

POSIX ``flock`` is used, because the kernel drops it when a process dies, however it dies.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType
from typing import IO

LOCK = ".lock"


class FolderLock:
    """Exclusive lock of a folder, held by one process at a time; makes the folder if needed.

    Locks of one folder under different names do not know of each other.

    Use it in a ``with`` statement, or :meth:`acquire` and :meth:`release` it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, FolderLock(Path(name)):
    ...     FolderLock.is_held(Path(name))
    True
    """

    def __init__(self, folder: Path, name: str = LOCK) -> None:
        self.path = folder / name
        self._file: IO[str] | None = None

    def acquire(self) -> FolderLock:
        """Wait for the lock and take it; one that is held already stays held throughout."""
        if self._file is not None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return self

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it; whether it is held now."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            self._file = file
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> FolderLock:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @staticmethod
    def is_held(folder: Path) -> bool:
        """Whether a living process holds the lock of ``folder``."""
        path = folder / LOCK
        if not path.exists():
            return False
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False
