# SPDX-License-Identifier: Apache-2.0
"""Calls of a differentiable PyTorch function, forward alone or with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.registry import Case, Inputs, Outputs


def torch_call(
    function: Callable[..., Tensor], case: Case, inputs: Inputs, arguments: Sequence[str]
) -> Callable[[], Outputs]:
    """``function(*arguments)``, and by autograd the gradients the case asks for.

    ``inputs["upstream"]`` is the gradient that arrives at the output.
    """
    if not case.gradients:
        values = [inputs[name] for name in arguments]

        def forward() -> Outputs:
            with torch.no_grad():
                return (function(*values),)

        return forward

    leaves = {
        name: inputs[name].detach().requires_grad_(name in case.gradients) for name in arguments
    }
    wanted = [leaves[name] for name in case.gradients]
    upstream = inputs["upstream"]

    def forward_and_backward() -> Outputs:
        out = function(*leaves.values())
        return (out.detach(), *torch.autograd.grad(out, wanted, upstream))

    return forward_and_backward


def oracle_by_scenes(
    function: Callable[..., Tensor],
    case: Case,
    inputs: Inputs,
    arguments: Sequence[str],
    scenes: int = 8,
) -> Outputs:
    """The call in complex128, a few scenes at a time so that memory stays small."""
    parts = []
    for start in range(0, case.sizes["B"], scenes):
        part = {
            name: value[start : start + scenes].to(
                torch.complex128 if value.is_complex() else torch.float64
            )
            for name, value in inputs.items()
        }
        parts.append(torch_call(function, case, part, arguments)())
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
