# SPDX-License-Identifier: Apache-2.0
"""Correctness before speed: outputs against complex128, scene by scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.registry import Case, Inputs, Operator, Outputs


def relative_errors(names: Sequence[str], outputs: Outputs, exact: Outputs) -> dict[str, float]:
    """For each output the largest over scenes of |x - x*| / |x*| (Frobenius); NaN stays NaN.

    Raises:
        ValueError: an output is missing, or has another shape or kind of number.
    """
    if len(outputs) != len(exact):
        raise ValueError(f"{len(outputs)} outputs, expected {len(exact)}: {', '.join(names)}")
    errors = {}
    for name, got, want in zip(names, outputs, exact, strict=True):
        if got.shape != want.shape or got.is_complex() != want.is_complex():
            raise ValueError(
                f"{name} is {got.dtype} {tuple(got.shape)}, expected {tuple(want.shape)} and "
                f"{'complex' if want.is_complex() else 'real'} numbers"
            )
        difference = (got.to(want.dtype) - want).reshape(len(want), -1)
        size = want.reshape(len(want), -1)
        ratio = torch.linalg.vector_norm(difference, dim=1) / torch.linalg.vector_norm(size, dim=1)
        errors[name] = float(ratio.max())
    return errors


def _gate(
    entry: dict[str, Any], names: Sequence[str], outputs: Outputs, exact: Outputs, tolerance: float
) -> bool:
    """Write the errors into the entry; whether its speed may be measured."""
    entry["tolerance"] = tolerance
    try:
        entry["errors"] = relative_errors(names, outputs, exact)
    except ValueError as error:
        entry.update(status="refused", reason=str(error))
        return False
    # Written so that a NaN is refused; max() would pass it by.
    if not all(error <= tolerance for error in entry["errors"].values()):
        entry.update(status="refused", reason=f"relative error above {tolerance:g}")
        return False
    entry["error"] = max(entry["errors"].values())
    return True


@dataclass(frozen=True)
class Expected:
    """The complex128 outputs of the scenes that are verified, and which these are."""

    names: tuple[str, ...]
    outputs: Outputs
    scenes: Sequence[int]

    def gate(
        self, entry: dict[str, Any], outputs: Outputs, tolerance: float, measured: int
    ) -> bool:
        """Compare those of the first ``measured`` scenes; whether a speed may be given."""
        chosen = [scene for scene in self.scenes if scene < measured]
        exact = tuple(x[: len(chosen)] for x in self.outputs)
        # A result without these scenes has a wrong shape, which is reported as such.
        if all(len(chosen) < len(x) == measured for x in outputs):
            outputs = tuple(x[chosen] for x in outputs)
        outputs = tuple(x.to(exact[0].device) for x in outputs)
        return _gate(entry, self.names, outputs, exact, tolerance)


def expect(case: Case, operator: Operator, inputs: Inputs, at_most: int | None) -> Expected:
    """The oracle's outputs for the scenes that the case wants verified, or for ``at_most``."""
    b = case.sizes["B"]
    wanted = min(x for x in (b, at_most, case.verified_scenes) if x is not None)
    scenes: Sequence[int] = range(b)
    if b > wanted:
        scenes = [*range(wanted - wanted // 2), *range(b - wanted // 2, b)]
        inputs = {name: value[scenes] for name, value in inputs.items()}
        case = replace(case, sizes={**case.sizes, "B": len(scenes)})
    return Expected(operator.output_names(case), operator.oracle(case, inputs), scenes)
