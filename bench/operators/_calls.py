# SPDX-License-Identifier: Apache-2.0
"""Calls of a differentiable PyTorch function, forward alone or with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.registry import Case, Inputs, Outputs, as_tuple


def torch_call(
    function: Callable[..., Any], case: Case, inputs: Inputs, arguments: Sequence[str]
) -> Callable[[], Outputs]:
    """``function(*arguments)``, and by autograd the gradients the case asks for.

    ``inputs["upstream"]`` is the gradient that arrives at the first output; none arrives at others.
    """
    if not case.gradients:
        values = [inputs[name] for name in arguments]

        # Nothing here requires a gradient; a no_grad context would be timed with the call.
        return lambda: as_tuple(function(*values))

    leaves = {
        name: inputs[name].detach().requires_grad_(name in case.gradients) for name in arguments
    }
    wanted = [leaves[name] for name in case.gradients]
    upstream = inputs["upstream"]

    def forward_and_backward() -> Outputs:
        outputs = as_tuple(function(*leaves.values()))
        gradients = torch.autograd.grad(outputs[0], wanted, upstream)
        return (*(out.detach() for out in outputs), *gradients)

    return forward_and_backward


def _double(value: Tensor) -> Tensor:
    if value.is_complex():
        return value.to(torch.complex128)
    return value.to(torch.float64) if value.is_floating_point() else value


def oracle_by_scenes(
    function: Callable[..., Any],
    case: Case,
    inputs: Inputs,
    arguments: Sequence[str],
    scenes: int = 8,
) -> Outputs:
    """The call in complex128, a few scenes at a time so that memory stays small."""
    parts = []
    for start in range(0, case.sizes["B"], scenes):
        part = {name: _double(value[start : start + scenes]) for name, value in inputs.items()}
        parts.append(torch_call(function, case, part, arguments)())
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
