# SPDX-License-Identifier: Apache-2.0
"""What every launch of a Triton kernel needs: operands, block sizes, the device of the tensors."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

OPTIONS = {"enable_fp_fusion": True}
"""Launch options of every kernel. Multiply-adds may be fused, whatever Triton's default is."""

ALL_REGISTERS = {"maxnreg": 255}
"""For kernels that live in their registers (up to 8 warps), where ptxas would rather spill."""


def pairs(tensor: Tensor) -> Tensor:
    """The (re, im) pairs of a complex tensor, a view unless it is a conjugated or negated one."""
    return torch.view_as_real(tensor.resolve_conj().resolve_neg())


def blocks(size: int, block: int) -> int:
    """Number of blocks that cover ``size``."""
    return -(-size // block)


def padded(size: int, smallest: int, largest: int) -> int:
    """``size`` rounded up to a power of two within limits that are powers of two."""
    return int(min(max(triton.next_power_of_2(size), smallest), largest))


DEVICES = {"cuda", "cpu"} if triton.knobs.runtime.interpret else {"cuda"}
"""Types of devices that the kernels run on: the interpreter takes any memory."""


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device the current one, where Triton launches."""
    if tensor.device.type not in DEVICES:
        raise RuntimeError(
            f"riskernels: the Triton kernels run on CUDA tensors, got one on {tensor.device}; move "
            "it to the GPU, or set TRITON_INTERPRET=1 to run them slowly on the CPU"
        )
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
