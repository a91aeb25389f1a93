# SPDX-License-Identifier: Apache-2.0
"""One field of one shard: a ``.npy`` file that is checked when it is opened and read by position.

A file can be truncated, replaced or removed while a training reads it. Through a memory map a
truncated file ends the process with SIGBUS, which nothing can turn into an error; so rows are read
with ``preadv``, and a file that is no longer the one that was checked is refused. No descriptor is
kept between two reads, because a process has few of them.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from .npy_header import NPY_HEADER, npy_header
from .shard_writer import MANIFEST, ShardError
from .untrusted import open_regular, shown

_BLOCK = 1 << 20
_SPAN = 1 << 16


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return memoryview(array.view(np.uint8).reshape(-1).data)


class ShardFile:
    """Rows of ``dtype`` and ``shape`` in a ``.npy`` file of ``size`` bytes.

    Raises:
        ShardError: the file is not there, is a link, has another size, or its header says
            something else.
    """

    def __init__(
        self, path: Path, dtype: str, rows: int, shape: tuple[int, ...], size: object
    ) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._row_bytes = math.prod(shape) * self.dtype.itemsize
        if not os.path.lexists(path):
            raise ShardError(f"{path}: missing, but listed in {MANIFEST}")
        with open_regular(path, ShardError, links=False) as (handle, status):
            self._identity = _identity(status)
            if status.st_size != size:
                raise ShardError(
                    f"{path}: has {status.st_size} bytes, {MANIFEST} says {shown(size)} "
                    "(truncated or altered)"
                )
            try:
                found, fortran, kind, self._offset = npy_header(os.pread(handle, NPY_HEADER, 0))
            except ValueError as error:
                raise ShardError(f"{path}: its .npy header cannot be read ({error})") from None
        if (found, fortran, kind) != ((rows, *shape), False, self.dtype):
            raise ShardError(
                f"{path}: its .npy header says {kind!s:.60} {shown(found)}"
                f"{' in Fortran order' if fortran else ''}, expected {dtype} {(rows, *shape)}"
            )
        if status.st_size != self._offset + rows * self._row_bytes:
            raise ShardError(
                f"{path}: has {status.st_size} bytes, not the size of {dtype} {(rows, *shape)}"
            )

    def _fill(self, handle: int, target: memoryview, row: int) -> None:
        """Read bytes from the start of ``row`` on until ``target`` is full."""
        position, done = self._offset + row * self._row_bytes, 0
        while done < len(target):
            got = os.preadv(handle, [target[done:]], position + done)
            if got == 0:
                raise ShardError(f"{self.path}: truncated while it was in use")
            done += got

    def rows(self, index: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
        """The rows at ``index``, in its order, in new memory.

        Raises:
            ShardError: the file is no longer the one that was opened, or cannot be read.
        """
        out = np.empty((len(index), *self.shape), self.dtype)
        if not out.size:
            return out
        low, count = int(index.min()), int(index.max() - index.min()) + 1
        try:
            with open_regular(self.path, ShardError, links=False) as (handle, status):
                if _identity(status) != self._identity:
                    raise ShardError(f"{self.path}: altered while it was in use")
                if count * self._row_bytes <= max(_SPAN, 2 * out.nbytes):
                    block = np.empty((count, *self.shape), self.dtype)
                    self._fill(handle, _bytes(block), low)
                    np.take(block, index - low, axis=0, out=out)
                else:
                    target, size = _bytes(out), self._row_bytes
                    for place, row in enumerate(index.tolist()):
                        self._fill(handle, target[place * size : (place + 1) * size], row)
        except OSError as error:
            raise ShardError(f"{self.path}: cannot be read ({error.strerror})") from None
        return out

    def digest(self) -> str:
        """SHA-256 of the whole file."""
        digest = hashlib.sha256()
        with open_regular(self.path, ShardError, links=False) as (handle, _):
            try:
                while block := os.read(handle, _BLOCK):
                    digest.update(block)
            except OSError as error:
                raise ShardError(f"{self.path}: cannot be read ({error.strerror})") from None
        return digest.hexdigest()
