# SPDX-License-Identifier: Apache-2.0
"""Calls of every operator with its backward, on inputs that are made anew from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tikhonov_inputs as ti
import torch
from torch import Tensor

import riskernels


@dataclass(frozen=True)
class OperatorCase:
    """One operator with one set of options at one shape (B, L, M, N)."""

    op: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.complex64
    options: dict[str, Any] = field(default_factory=dict)
    per_snapshot: bool = False
    modulus: str = "unit"
    masked: bool = False

    def __str__(self) -> str:
        kind = [k for k, v in self.options.items() if v] + ["masked"] * self.masked
        kind += ["per_snapshot"] * self.per_snapshot + [self.modulus] * (self.modulus != "unit")
        return "-".join([self.op, *map(str, self.shape), str(self.dtype)[6:], *kind])

    def inputs(self, seed: int = 0, device: str = "cuda", b: int | None = None) -> list[Tensor]:
        """The differentiable inputs."""
        shape = (self.shape[0] if b is None else b, *self.shape[1:])
        if self.op != "hermitian_nmse":
            values = ti.make(
                *(*shape, self.dtype),
                per_snapshot=self.per_snapshot,
                modulus=self.modulus,
                device=device,
                seed=seed,
            )
            return list(values.tensors)
        g = torch.Generator().manual_seed(seed)
        n = shape[3]
        pair = (ti.complex_normal(shape[0], n, n, dtype=self.dtype, seed=g) for _ in range(2))
        return [value.to(device) for value in pair]

    def function(self, device: str = "cuda") -> Callable[..., Tensor]:
        """The operator with its options."""
        operator, options = getattr(riskernels, self.op), dict(self.options)
        if self.masked:
            g = torch.Generator().manual_seed(1)
            options["element_mask"] = (torch.rand(self.shape[3], generator=g) < 0.7).to(device)
        return lambda *inputs: operator(*inputs, **options)


def in_precision(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A complex tensor in ``dtype``, a real one in its precision."""
    return value.to(dtype if value.is_complex() else dtype.to_real())


def weight_of(value: Tensor, seed: int = 7) -> Tensor:
    """A fixed gradient to a value."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if value.is_complex() else torch.float64
    return torch.randn(value.shape, dtype=wide, generator=g).to(value.device, value.dtype)


def forward_and_backward(
    function: Callable[..., Tensor], inputs: list[Tensor], weight: Tensor | None = None
) -> list[Tensor]:
    """The value, and the gradients to all inputs."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    value = function(*leaves)
    weight = weight_of(value) if weight is None else weight
    return [value.detach(), *torch.autograd.grad(value, leaves, weight)]


DEFAULT = (4, 16, 16, 144)
SMALL = (3, 5, 7, 31)
STAGED = (3, 5, 48, 100)
DOUBLE = torch.complex128
BOTH = {"relative": True, "center": True}
CASES = [
    OperatorCase("tikhonov_covariance", DEFAULT),
    OperatorCase("tikhonov_covariance", DEFAULT, modulus="varying", options=BOTH),
    OperatorCase("tikhonov_covariance", DEFAULT, per_snapshot=True),
    OperatorCase("tikhonov_covariance", SMALL, DOUBLE, options=BOTH, modulus="varying"),
    OperatorCase("tikhonov_covariance", (2, 16, 33, 257), DOUBLE, per_snapshot=True),
    OperatorCase("tikhonov_covariance", STAGED, options={"center": True}),
    OperatorCase("tikhonov_snapshots", DEFAULT),
    OperatorCase("tikhonov_snapshots", DEFAULT, modulus="varying", options={"relative": True}),
    OperatorCase("tikhonov_snapshots", SMALL, DOUBLE, per_snapshot=True),
    OperatorCase("tikhonov_snapshots", STAGED, DOUBLE),
    OperatorCase("hermitian_nmse", DEFAULT),
    OperatorCase("hermitian_nmse", DEFAULT, masked=True),
    OperatorCase("hermitian_nmse", SMALL, DOUBLE, masked=True),
]
