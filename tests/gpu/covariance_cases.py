# SPDX-License-Identifier: Apache-2.0
"""Cases of the operators on covariances and their factors, with the interface of OperatorCase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import riskernels

SNAPSHOTS = 16
POINTS = 150
"""Of steering_power: two tiles and a part of a third."""


def _normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """The same numbers in every precision, up to rounding."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(*shape, dtype=wide, generator=g).to(dtype)


def _num_sources(b: int, columns: int, device: str) -> Tensor:
    """Every number from 0 to K in turn."""
    return torch.arange(b, device=device) % (columns + 1)


@dataclass(frozen=True)
class CovarianceCase:
    """One operator with one set of options at one shape (B, N, r, k).

    What is constant (samples, steering vectors) is made by :meth:`function` for any B.
    """

    op: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.complex64
    options: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    own_points: bool = False
    """Of steering_power: every scene has its own points."""

    def __str__(self) -> str:
        kind = [k for k, v in self.options.items() if v] + ["masked"] * self.masked
        kind += ["own_points"] * self.own_points
        return "-".join([self.op, *map(str, self.shape), str(self.dtype)[6:], *kind])

    def inputs(self, seed: int = 0, device: str = "cuda", b: int | None = None) -> list[Tensor]:
        """The differentiable inputs."""
        scenes, n, r, k = self.shape
        scenes = scenes if b is None else b
        shapes: dict[str, list[tuple[int, ...]]] = {
            "blend_covariance": [(scenes, n, n)],
            "subspace_leakage": [(scenes, n, n)],
            "factored_blend": [(scenes, n, k)],
            "factored_nmse": [(scenes, n, r), (scenes,), (scenes, n, k)],
            "factored_leakage": [(scenes, n, r), (scenes,)],
            "factored_spectrum": [(scenes, n, r), (scenes,)],
            "steering_power": [(scenes, n, r)],
        }
        values = []
        for number, shape in enumerate(shapes[self.op]):
            dtype = self.dtype.to_real() if len(shape) == 1 else self.dtype
            values.append(_normal(*shape, dtype=dtype, seed=10 * seed + number).to(device))
        if self.op == "blend_covariance":
            # A trace far from zero, as a covariance has it.
            values[0] += 3 * torch.eye(n, dtype=self.dtype, device=device)
        return values

    def function(self, device: str = "cuda") -> Callable[..., Tensor]:
        """The operator with its options and constants."""
        if self.op == "steering_power":
            return self._steering_function(device)
        _, n, _, k = self.shape
        operator, options = getattr(riskernels, self.op), dict(self.options)
        if self.masked:
            g = torch.Generator().manual_seed(1)
            options["element_mask"] = (torch.rand(n, generator=g) < 0.7).to(device)

        def constant(like: Tensor, *shape: int) -> Tensor:
            value = _normal(*shape, dtype=like.dtype, seed=99).to(device)
            return value.expand(like.shape[0], *shape)

        def call(first: Tensor, *more: Tensor) -> Tensor:
            b = first.shape[0]
            if self.op == "blend_covariance":
                samp = constant(first, n, 4)
                return operator(first, samp @ samp.mH, **options)
            if self.op == "factored_blend":
                return operator(first, constant(first, SNAPSHOTS, n), **options)[0]
            if self.op == "factored_nmse":
                return operator(first, *more, **options)
            if self.op == "factored_spectrum":
                return operator(first, *more)
            known = (constant(first, n, k), _num_sources(b, k, device))
            return operator(first, *more, *known, **options)

        return call

    def _steering_function(self, device: str) -> Callable[..., Tensor]:
        g = torch.Generator().manual_seed(3)
        draw = torch.rand(3, POINTS, dtype=torch.float64, generator=g)
        phi, theta, r = (draw + torch.tensor([[-0.5], [-0.5], [0.5]])).to(device)
        positions = torch.rand(self.shape[1], 3, dtype=torch.float64, generator=g).to(device)
        options = dict(self.options)

        def call(factor: Tensor) -> Tensor:
            points = (phi, theta, r)
            if self.own_points:
                shift = 0.01 * torch.arange(factor.shape[0], device=device)[:, None]
                points = (phi + shift, theta - shift, r + shift)
            return riskernels.steering_power(factor, *points, positions, 0.3, **options)

        return call


BLEND = {"beta": 0.4, "loading": 0.05, "shrinkage": 0.1, "target_trace": 7.0}
DEFAULT = (4, 144, 21, 5)
SMALL = (3, 31, 7, 3)
LARGE = (2, 257, 40, 5)
DOUBLE = torch.complex128
OPERATORS = (
    "blend_covariance",
    "subspace_leakage",
    "factored_blend",
    "factored_nmse",
    "factored_leakage",
    "factored_spectrum",
    "steering_power",
)
CASES = [
    CovarianceCase(op, shape, dtype)
    for op in OPERATORS
    for shape, dtype in ((DEFAULT, torch.complex64), (SMALL, DOUBLE), (LARGE, torch.complex64))
]
CASES += [
    CovarianceCase("blend_covariance", DEFAULT, options=BLEND),
    CovarianceCase("factored_blend", SMALL, options=BLEND),
    CovarianceCase("factored_nmse", DEFAULT, masked=True),
    CovarianceCase("factored_nmse", SMALL, DOUBLE, masked=True),
    CovarianceCase("steering_power", DEFAULT, options={"taper": True}, own_points=True),
    CovarianceCase("steering_power", SMALL, DOUBLE, own_points=True),
    CovarianceCase("steering_power", (1, 144, 144, 5)),
]
