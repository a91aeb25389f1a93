# SPDX-License-Identifier: Apache-2.0
"""GOSPA, OSPA and F1 against every assignment there is, and as metrics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ris_pytorch_pipeline.set_metrics import Detections, detections, gospa, ospa

# A coarse lattice makes equal points, and distances at the cut-off exactly, common.
POINT = st.one_of(st.integers(-3, 3).map(float), st.floats(-3, 3, allow_nan=False, width=32))
SETS = st.integers(0, 4).flatmap(lambda count: arrays(np.float64, (count, 3), elements=POINT))
ORDERS = st.sampled_from([1.0, 2.0, 3.0])
CUTOFFS = st.sampled_from([0.5, 1.0, 2.0, 5.0])


def partial_assignments(found: int, known: int):
    """Every way to pair some of ``found`` with some of ``known``."""
    for count in range(min(found, known) + 1):
        for rows in itertools.combinations(range(found), count):
            for columns in itertools.permutations(range(known), count):
                yield list(zip(rows, columns, strict=True))


def brute_gospa(x: np.ndarray, y: np.ndarray, c: float, p: float) -> float:
    """The definition: any pairs, of any distance."""
    return min(
        sum(np.linalg.norm(x[i] - y[j]) ** p for i, j in pairs)
        + c**p / 2 * (len(x) + len(y) - 2 * len(pairs))
        for pairs in partial_assignments(len(x), len(y))
    ) ** (1 / p)


def brute_ospa(x: np.ndarray, y: np.ndarray, c: float, p: float) -> float:
    """The definition: permutations of the larger set."""
    if len(x) > len(y):
        x, y = y, x
    if not len(y):
        return 0.0
    best = min(
        sum(min(c, np.linalg.norm(a - y[j])) ** p for a, j in zip(x, order, strict=False))
        for order in itertools.permutations(range(len(y)))
    )
    return ((best + c**p * (len(y) - len(x))) / len(y)) ** (1 / p)


def brute_hits(x: np.ndarray, y: np.ndarray, tolerance: float) -> int:
    return max(
        len(pairs)
        for pairs in partial_assignments(len(x), len(y))
        if all(np.linalg.norm(x[i] - y[j]) <= tolerance for i, j in pairs)
    )


@settings(max_examples=80, deadline=None)
@given(SETS, SETS, CUTOFFS, ORDERS)
def test_metrics_are_their_definitions(x, y, c, p) -> None:
    got = gospa(x, y, cutoff=c, order=p)
    assert got.distance == pytest.approx(brute_gospa(x, y, c, p), rel=1e-12, abs=1e-12)
    parts = got.localisation + got.missed + got.false
    assert got.distance**p == pytest.approx(parts, rel=1e-12, abs=1e-12)
    assert got.assigned + got.missed_sources == len(y)
    assert got.assigned + got.false_estimates == len(x)
    assert got.missed == pytest.approx(got.missed_sources * c**p / 2)
    assert got.false == pytest.approx(got.false_estimates * c**p / 2)
    assert ospa(x, y, cutoff=c, order=p) == pytest.approx(
        brute_ospa(x, y, c, p), rel=1e-12, abs=1e-12
    )
    found = detections(x, y, c)
    hits = brute_hits(x, y, c)
    assert (found.hits, found.missed, found.false) == (hits, len(y) - hits, len(x) - hits)


@settings(max_examples=80, deadline=None)
@given(SETS, SETS, SETS, CUTOFFS, ORDERS)
def test_gospa_and_ospa_are_metrics(x, y, z, c, p) -> None:
    for metric in (
        lambda a, b: gospa(a, b, cutoff=c, order=p).distance,
        lambda a, b: ospa(a, b, cutoff=c, order=p),
    ):
        assert metric(x, x[::-1]) == 0
        assert metric(x, y) == pytest.approx(metric(y, x), rel=1e-12)
        assert metric(x, y) <= metric(x, z) + metric(z, y) + 1e-9
        same = sorted(map(tuple, x)) == sorted(map(tuple, y))
        # Below this a difference raised to the power p is nothing in double precision.
        apart = brute_gospa(x, y, c, p) > 1e-100
        assert (metric(x, y) > 0) == (not same and apart)
    swapped = gospa(y, x, cutoff=c, order=p)
    straight = gospa(x, y, cutoff=c, order=p)
    assert (swapped.missed, swapped.false) == (straight.false, straight.missed)


def test_by_hand() -> None:
    truth = [[1.0, 0, 0], [5.0, 0, 0], [0, 8.0, 0]]
    found = [[5.0, 0.6, 0], [1.0, 0, 0.3], [0, 0, -7.0]]
    got = gospa(found, truth)
    assert (got.assigned, got.missed_sources, got.false_estimates) == (2, 1, 1)
    assert got.localisation == pytest.approx(0.36 + 0.09)
    assert (got.missed, got.false) == (2.0, 2.0)
    assert got.distance == pytest.approx(math.sqrt(4.45))
    # Min(d, c) caps the third pair at the cut-off.
    assert ospa(found, truth) == pytest.approx(math.sqrt((0.45 + 4) / 3))
    assert detections(found, truth, 0.5) == Detections(1, 2, 2)
    assert detections(found, truth, 1.0) == Detections(2, 1, 1)
    total = sum((detections(found, truth, t) for t in (0.5, 1.0)), Detections())
    assert total == Detections(3, 3, 3) and total.f1 == 0.5


def test_a_pair_at_the_cutoff_is_a_miss_and_a_false_alarm() -> None:
    got = gospa([[0, 0, 0]], [[2.0, 0, 0]])
    assert (got.assigned, got.missed_sources, got.false_estimates) == (0, 1, 1)
    assert got.distance == 2.0


def test_empty_sets() -> None:
    nothing, one = np.empty((0, 3)), [[1.0, 2.0, 3.0]]
    assert gospa(nothing, nothing).distance == 0 and ospa([], []) == 0
    assert gospa(one, nothing).false == 2 and gospa([], one).missed == 2
    assert ospa(one, nothing) == ospa(nothing, one) == 2
    assert math.isnan(detections([], [], 1).f1) and detections(one, [], 1).f1 == 0


def test_bad_input_is_refused() -> None:
    for function in (gospa, ospa):
        with pytest.raises(ValueError, match="cutoff"):
            function([], [], cutoff=0)
        with pytest.raises(ValueError, match="order"):
            function([], [], order=0.5)
        with pytest.raises(ValueError, match="finite"):
            function([[math.inf, 0, 0]], [])
        with pytest.raises(ValueError, match=r"expected \[count, 3\]"):
            function([[0, 0]], [])
    with pytest.raises(ValueError, match="tolerance"):
        detections([], [], 0)
