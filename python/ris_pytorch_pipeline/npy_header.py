# SPDX-License-Identifier: Apache-2.0
"""The header of a ``.npy`` file that a stranger may have made."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from .untrusted import first_line, shown

NPY_HEADER = 10_240
"""More than any header of a plain array in the ``.npy`` format takes, in bytes."""


def npy_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and size of the header of a ``.npy`` file.

    ``start`` holds its first bytes; :data:`NPY_HEADER` are enough.

    Raises:
        ValueError: says what is wrong with the header.
    """
    file = io.BytesIO(start[:NPY_HEADER])
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = readers[version](file)
    except Exception as problem:
        # NumPy reads the header as a Python literal: a hostile one can end in any error.
        raise ValueError(first_line(problem)) from None
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"shape {shown(shape)}")
    return shape, fortran, dtype, file.tell()
