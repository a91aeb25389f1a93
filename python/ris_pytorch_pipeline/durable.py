# SPDX-License-Identifier: Apache-2.0
"""Files that survive: whole or not at all for every reader, and on the disk once they are there.

A rename is atomic for readers, but not by itself on the disk: after a power failure the new name
may lead to a file without its data. So data are synchronised before the rename, and the folder that
holds the name after it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

DRAFT = ".writing-"
"""Part of the name of everything that is being written; the process number follows."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system that do not say which file they are about, as a full disk's, get
    ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def draft_of(path: Path) -> Path:
    """Where this process writes what is going to be ``path``."""
    return path.with_name(f"{path.name}{DRAFT}{os.getpid()}")


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until its data are on the disk."""
    with naming(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader finds the old file or the new one, never a part.

    A write that fails leaves the old file, and nothing beside it.
    """
    draft = draft_of(path)
    try:
        write_synced(draft, text.encode())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


def remove_drafts(folder: Path) -> None:
    """Delete what processes that were killed left half written in ``folder``.

    The caller holds a lock that every writer to ``folder`` holds.
    """
    for path in folder.glob(f"*{DRAFT}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
