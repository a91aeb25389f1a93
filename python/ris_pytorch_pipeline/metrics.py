# SPDX-License-Identifier: Apache-2.0
"""Errors of estimated positions under the best assignment to the true ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class PositionMatch:
    """Assignment of estimates to truths of one scene, by increasing estimate."""

    estimate: npt.NDArray[np.int64]
    """Rows of the matched estimates."""
    truth: npt.NDArray[np.int64]
    """Rows of their truths."""
    error: npt.NDArray[np.float64]
    """Distances of the pairs in metres."""
    missed: int
    """Truths without an estimate."""
    extra: int
    """Estimates without a truth."""


def match_positions(estimate: npt.ArrayLike, truth: npt.ArrayLike) -> PositionMatch:
    """Match estimates [J, 3] to truths [K, 3] (metres) at the least sum of distances.

    min(J, K) pairs are made, however far apart; no distance is cut off.

    >>> match = match_positions([[0, 0, 2.5], [1, 0, 0]], [[1, 0, 0], [0, 0, 2]])
    >>> match.truth.tolist(), match.error.tolist(), match.missed
    ([1, 0], [0.5, 0.0], 0)
    """
    found = np.asarray(estimate, dtype=np.float64).reshape(-1, 3)
    known = np.asarray(truth, dtype=np.float64).reshape(-1, 3)
    distance = np.linalg.norm(found[:, None] - known[None], axis=-1)
    if not np.isfinite(distance).all():
        raise ValueError("match_positions: positions must be finite")
    rows, columns = linear_sum_assignment(distance)
    return PositionMatch(
        rows,
        columns,
        distance[rows, columns],
        missed=len(known) - len(rows),
        extra=len(found) - len(rows),
    )


@dataclass(frozen=True)
class PositionSummary:
    """Position errors over many scenes."""

    scenes: int
    sources: int
    matched: int
    missed: int
    extra: int
    median_error: float
    """Metres, over matched pairs; NaN when there is none."""
    rms_error: float

    def __str__(self) -> str:
        return (
            f"{self.scenes} scenes, {self.sources} sources: {self.matched} matched, "
            f"{self.missed} missed, {self.extra} extra; "
            f"median error {self.median_error:.3f} m, RMS {self.rms_error:.3f} m"
        )


def summarise_matches(matches: Iterable[PositionMatch]) -> PositionSummary:
    """Pool the matches of many scenes."""
    every = list(matches)
    errors = np.concatenate([match.error for match in every]) if every else np.empty(0)
    missed = sum(match.missed for match in every)
    return PositionSummary(
        scenes=len(every),
        sources=len(errors) + missed,
        matched=len(errors),
        missed=missed,
        extra=sum(match.extra for match in every),
        median_error=float(np.median(errors)) if errors.size else float("nan"),
        rms_error=float(np.sqrt(np.mean(errors**2))) if errors.size else float("nan"),
    )
