# SPDX-License-Identifier: Apache-2.0
"""Distances between the set of estimated and the set of true positions of a scene.

Mean errors over matched pairs forgive sources that were missed or made up. The distances here do
not: GOSPA (A. S. Rahmathullah, A. F. Garcia-Fernandez and L. Svensson, "Generalized optimal
sub-pattern assignment metric", FUSION 2017) says what part of it is which, and OSPA
(D. Schuhmacher, B.-T. Vo and B.-N. Vo, IEEE Trans. Signal Processing 56, 2008) is its mean per
source. Both are metrics on finite sets; the F1 score at a tolerance is not one, and is easier to
read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

CUTOFF = 2.0
"""c of GOSPA and OSPA in metres, from which on an estimate is no estimate of a source."""
ORDER = 2.0
"""Power p to which errors are raised."""


def distances(name: str, estimate: npt.ArrayLike, truth: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Distances [J, K] of positions [J, 3] and [K, 3]; either may be empty.

    Raises:
        ValueError: a shape is another one, or a position is not finite.
    """
    sets = []
    for what, value in (("estimate", estimate), ("truth", truth)):
        points = np.asarray(value, dtype=np.float64)
        points = points.reshape(0, 3) if points.size == 0 else points
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"{name}: {what} has shape {list(points.shape)}, expected [count, 3]")
        if not np.isfinite(points).all():
            raise ValueError(f"{name}: {what}: positions must be finite")
        sets.append(points)
    distance: npt.NDArray[np.float64] = np.linalg.norm(sets[0][:, None] - sets[1][None], axis=-1)
    return distance


def _check(name: str, cutoff: float, order: float) -> None:
    if not (0 < cutoff < np.inf and 1 <= order < np.inf):
        raise ValueError(
            f"{name}: cutoff is {cutoff} and order {order}, expected a finite cutoff above 0 and a "
            "finite order of at least 1"
        )


@dataclass(frozen=True)
class Gospa:
    """GOSPA of one scene; ``distance ** order`` is the sum of the three parts."""

    distance: float
    """Metres."""
    localisation: float
    """Sum of d^p over the assigned pairs, m^p."""
    missed: float
    """(c^p / alpha) for each truth without an estimate, m^p."""
    false: float
    """(c^p / alpha) for each estimate without a truth, m^p."""
    assigned: int
    """Pairs closer than the cut-off."""
    missed_sources: int
    false_estimates: int


def gospa(
    estimate: npt.ArrayLike, truth: npt.ArrayLike, *, cutoff: float = CUTOFF, order: float = ORDER
) -> Gospa:
    """GOSPA with alpha = 2 of estimates [J, 3] and truths [K, 3] in metres::

        GOSPA^p = min over assignments of  sum_pairs d^p + (c^p / 2) (J - pairs + K - pairs)

    A pair at a distance of c or more costs what one missed source and one false estimate cost
    together, so none is made. One optimal assignment of min(d, c)^p gives the minimum.

    >>> gospa([[3, 0, 0], [8, 0, 0]], [[3, 0, 0.5]])
    Gospa(distance=1.5, localisation=0.25, missed=0.0, false=2.0, assigned=1, missed_sources=0, \
false_estimates=1)
    """
    _check("gospa", cutoff, order)
    distance = distances("gospa", estimate, truth)
    rows, columns = linear_sum_assignment(np.minimum(distance, cutoff) ** order)
    pairs = distance[rows, columns]
    pairs = pairs[pairs < cutoff]
    found, known = distance.shape
    unmatched = cutoff**order / 2
    missed, false = known - len(pairs), found - len(pairs)
    localisation = float((pairs**order).sum())
    total = localisation + unmatched * (missed + false)
    return Gospa(
        total ** (1 / order),
        localisation,
        unmatched * missed,
        unmatched * false,
        len(pairs),
        missed,
        false,
    )


def ospa(
    estimate: npt.ArrayLike, truth: npt.ArrayLike, *, cutoff: float = CUTOFF, order: float = ORDER
) -> float:
    """OSPA in metres of estimates [J, 3] and truths [K, 3], with n = max(J, K)::

        OSPA^p = (1 / n) (min over assignments of sum min(d, c)^p + c^p |J - K|)

    Between 0 and c; 0 for two empty sets.

    >>> ospa([[3, 0, 0], [8, 0, 0]], [[3, 0, 0]], cutoff=2, order=1)
    1.0
    """
    _check("ospa", cutoff, order)
    distance = distances("ospa", estimate, truth)
    if distance.size == 0:
        return 0.0 if distance.shape == (0, 0) else float(cutoff)
    cost = np.minimum(distance, cutoff) ** order
    total = cost[linear_sum_assignment(cost)].sum()
    found, known = distance.shape
    total += cutoff**order * abs(found - known)
    return float((total / max(found, known)) ** (1 / order))


@dataclass(frozen=True)
class Detections:
    """Right, missing and false answers at a tolerance; those of many scenes add up."""

    hits: int = 0
    missed: int = 0
    false: int = 0

    def __add__(self, other: Detections) -> Detections:
        return Detections(
            self.hits + other.hits, self.missed + other.missed, self.false + other.false
        )

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + missed + false); NaN where there was nothing to find or say."""
        total = 2 * self.hits + self.missed + self.false
        return 2 * self.hits / total if total else float("nan")


def detections(estimate: npt.ArrayLike, truth: npt.ArrayLike, tolerance: float) -> Detections:
    """The most pairs of estimates [J, 3] and truths [K, 3] within ``tolerance`` metres.

    >>> detections([[3, 0, 0.2], [8, 0, 0]], [[3, 0, 0]], 0.5).f1
    0.6666666666666666
    """
    if not tolerance > 0:
        raise ValueError(f"detections: tolerance is {tolerance}, expected more than 0")
    near = distances("detections", estimate, truth) <= tolerance
    hits = int(near[linear_sum_assignment(near, maximize=True)].sum())
    return Detections(hits, near.shape[1] - hits, near.shape[0] - hits)
