# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

"""Complex tensors inside Triton kernels, which know real numbers only.

A complex array enters a kernel as a pointer to its (re, im) pairs and strides that count complex
elements; element e lies at 2 e. Loads and stores move whole pairs, so that a warp's accesses are
as wide as those of a real array of twice the width. Offsets are int64 throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_complex(pointer, offsets, mask):
    """Real and imaginary parts of [R, C] elements; 0 where the mask is off."""
    pairs = 2 * tl.expand_dims(offsets, 2) + tl.arange(0, 2)[None, None, :]
    inside = tl.expand_dims(mask, 2) & (tl.arange(0, 2) >= 0)[None, None, :]
    return tl.split(tl.load(pointer + pairs, mask=inside, other=0.0))


@triton.jit
def store_complex(pointer, offsets, re, im, mask):
    """Store [R, C] elements where the mask is on."""
    pairs = 2 * tl.expand_dims(offsets, 2) + tl.arange(0, 2)[None, None, :]
    inside = tl.expand_dims(mask, 2) & (tl.arange(0, 2) >= 0)[None, None, :]
    tl.store(pointer + pairs, tl.join(re, im), mask=inside)


@triton.jit
def load_tile(pointer, rows, row_stride, row_count, columns, column_stride, column_count):
    """[R, C] elements of a strided matrix; 0 outside of it."""
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * (
        column_stride
    )
    mask = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    return load_complex(pointer, offsets, mask)


@triton.jit
def store_tile(pointer, rows, row_count, columns, column_count, re, im):
    """[R, C] elements into a row-major matrix of ``column_count`` columns."""
    offsets = rows.to(tl.int64)[:, None] * column_count + columns.to(tl.int64)[None, :]
    mask = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    store_complex(pointer, offsets, re, im, mask)


@triton.jit
def product(a, b):
    """Matrix product in full precision."""
    # The default would round float32 operands to tf32.
    return tl.dot(a, b, input_precision="ieee", out_dtype=a.dtype)


@triton.jit
def product_conj(ar, ai, br, bi):
    """a @ conj(b) in full precision."""
    return product(ar, br) + product(ai, bi), product(ai, br) - product(ar, bi)
