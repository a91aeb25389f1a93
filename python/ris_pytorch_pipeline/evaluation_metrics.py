# SPDX-License-Identifier: Apache-2.0
"""From the records of a cell to the numbers of the report.

Every number of a cell is a mean, a median or a count over its scenes or over the pairs of estimates
and sources in them; :data:`COLUMNS` says what each is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .evaluation_tasks import Record
from .geometry import to_cartesian
from .metrics import coordinate_errors, match_positions
from .set_metrics import Detections, detections, gospa, ospa
from .suite import Cell, Suite

SCHEMA = "riskernels evaluation 1"
TOLERANCES = (0.5, 1.0)
"""Metres of the F1 scores."""
RANGE_EDGES = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
"""Metres between the bins of the range error."""
COLUMNS = {
    "gospa": "root mean squared GOSPA of a scene, m",
    "gospa_error": "standard error of gospa over the choice of scenes, by jackknife, m",
    "gospa_localisation": "mean squared error of the assigned pairs of a scene, summed, m^2",
    "gospa_missed": "c^2 / 2 for each missed source, mean over scenes, m^2",
    "gospa_false": "c^2 / 2 for each false estimate, mean over scenes, m^2",
    "gospa_mean": "mean GOSPA of a scene, m",
    "ospa": "mean OSPA of a scene, m",
    "f1_0.5m": "F1 score of all scenes together, estimates within 0.5 m of a source",
    "f1_1m": "F1 score of all scenes together, estimates within 1 m of a source",
    "median_error": "median distance of the matched pairs, m",
    "rms_error": "root mean squared distance of the matched pairs, m",
    "median_azimuth_error": "median magnitude over the matched pairs, rad",
    "median_elevation_error": "median magnitude over the matched pairs, rad",
    "median_range_error": "median magnitude over the matched pairs, m",
    "rms_azimuth_error": "root mean square over the matched pairs, rad",
    "rms_elevation_error": "root mean square over the matched pairs, rad",
    "rms_range_error": "root mean square over the matched pairs, m",
    "sources": "sources in all scenes",
    "estimates": "estimates in all scenes",
    "missed": "sources with no estimate assigned by GOSPA, in all scenes",
    "false": "estimates with no source assigned by GOSPA, in all scenes",
    "seconds_per_scene": "median over the batches of their time per scene, s",
}


def _number(value: float) -> float | None:
    """Six digits; JSON has no NaN or infinity, and they become null."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _mean(values: npt.ArrayLike) -> float | None:
    return _number(float(np.mean(np.asarray(values, dtype=np.float64))))


def _median(values: npt.ArrayLike) -> float | None:
    array = np.asarray(values, dtype=np.float64)
    return _number(float(np.median(array))) if array.size else None


def _rms(values: npt.ArrayLike) -> float | None:
    array = np.asarray(values, dtype=np.float64)
    return _number(float(np.sqrt(np.mean(array**2)))) if array.size else None


def _rms_error(values: npt.ArrayLike) -> float | None:
    """Standard error of the root mean square, by the jackknife: every value left out once."""
    squares = np.asarray(values, dtype=np.float64) ** 2
    if squares.size < 2:
        return None
    rest = np.maximum(squares.sum() - squares, 0) / (squares.size - 1)
    return _number(float(np.sqrt(squares.size - 1) * np.std(np.sqrt(rest))))


def _binned(ranges: npt.ArrayLike, values: npt.ArrayLike) -> list[dict[str, Any]]:
    """Median of ``values`` and their number in every bin of :data:`RANGE_EDGES`."""
    at, value = np.asarray(ranges, np.float64), np.asarray(values, np.float64)
    # A source at the far end of the zone belongs to the last bin.
    which = np.clip(np.digitize(at, RANGE_EDGES) - 1, 0, len(RANGE_EDGES) - 2)
    return [
        {"median": _median(value[which == index]), "count": int((which == index).sum())}
        for index in range(len(RANGE_EDGES) - 1)
    ]


def estimator_results(
    estimates: Sequence[npt.ArrayLike],
    truths: Sequence[npt.ArrayLike],
    seconds: Sequence[float] = (),
) -> dict[str, Any]:
    """The numbers of :data:`COLUMNS` for estimates [J, 3] and truths [K, 3] (metres) of scenes.

    Errors of position and coordinates are those of the pairs of least total distance, however far
    apart; what is missing or made up counts in GOSPA, OSPA and F1.

    >>> found = estimator_results([[[2.0, 0, 0]], []], [[[2.0, 0, 0.4]], [[3.0, 0, 0]]])
    >>> round(found["gospa"], 3), found["missed"], found["f1_0.5m"], found["median_error"]
    (1.039, 1, 0.666667, 0.4)
    """
    if not truths or len(estimates) != len(truths):
        raise ValueError(
            f"estimator_results: got estimates of {len(estimates)} and truths of {len(truths)} "
            "scenes, expected as many of each and at least one"
        )
    scores = [gospa(found, known) for found, known in zip(estimates, truths, strict=True)]
    matches = [
        match_positions(found, known) for found, known in zip(estimates, truths, strict=True)
    ]
    errors = np.concatenate([match.error for match in matches])
    coordinates = np.concatenate(
        [
            coordinate_errors(found, known, match)
            for found, known, match in zip(estimates, truths, matches, strict=True)
        ]
    )
    ranges = np.concatenate(
        [
            np.linalg.norm(np.asarray(known, np.float64).reshape(-1, 3)[match.truth], axis=-1)
            for known, match in zip(truths, matches, strict=True)
        ]
    )
    f1 = {
        f"f1_{tolerance:g}m": _number(
            sum(
                (detections(e, t, tolerance) for e, t in zip(estimates, truths, strict=True)),
                Detections(),
            ).f1
        )
        for tolerance in TOLERANCES
    }
    names = ("azimuth", "elevation", "range")
    return {
        "gospa": _rms([score.distance for score in scores]),
        "gospa_error": _rms_error([score.distance for score in scores]),
        "gospa_localisation": _mean([score.localisation for score in scores]),
        "gospa_missed": _mean([score.missed for score in scores]),
        "gospa_false": _mean([score.false for score in scores]),
        "gospa_mean": _mean([score.distance for score in scores]),
        "ospa": _mean([ospa(e, t) for e, t in zip(estimates, truths, strict=True)]),
        **f1,
        "median_error": _median(errors),
        "rms_error": _rms(errors),
        **{
            f"median_{name}_error": _median(np.abs(coordinates[:, i]))
            for i, name in enumerate(names)
        },
        **{f"rms_{name}_error": _rms(coordinates[:, i]) for i, name in enumerate(names)},
        "sources": sum(len(match.error) + match.missed for match in matches),
        "estimates": sum(len(match.error) + match.extra for match in matches),
        "missed": sum(score.missed_sources for score in scores),
        "false": sum(score.false_estimates for score in scores),
        "seconds_per_scene": _median(seconds),
        "range_error_by_range": _binned(ranges, np.abs(coordinates[:, 2])),
    }


def _bound_results(records: Sequence[Record], ranges: npt.ArrayLike) -> dict[str, Any]:
    """Medians of the bounds over all sources; an infinite one counts as larger than any."""

    def flat(name: str) -> npt.NDArray[np.float64]:
        values = [value for record in records for value in record[name]]
        return np.array([math.inf if value is None else value for value in values])

    deviations = np.array(
        [
            [math.inf if value is None else value for value in source]
            for record in records
            for source in record["coordinates"]
        ]
    )
    return {
        "peb_deterministic": _median(flat("deterministic")),
        "peb_stochastic": _median(flat("stochastic")),
        "azimuth_bound": _median(deviations[:, 0]),
        "elevation_bound": _median(deviations[:, 1]),
        "range_bound": _median(deviations[:, 2]),
        "range_bound_by_range": _binned(ranges, deviations[:, 2]),
    }


def _covariance_results(records: Sequence[Record]) -> dict[str, Any]:
    return {
        name: {
            "nmse": _median([record[name]["nmse"] for record in records]),
            "overlap": _median([record[name]["overlap"] for record in records]),
        }
        for name in records[0]
    }


def cell_results(
    suite: Suite, cell: Cell, records: Mapping[str, Sequence[Record]]
) -> dict[str, Any]:
    """The entry of a cell in the report, from the records of every task by its key."""
    count = len(next(iter(records.values())))
    scenes = suite.draw(cell, 0, count).scenes
    places = to_cartesian(scenes.phi.double(), scenes.theta.double(), scenes.r.double()).numpy()
    truths = [row[: cell.num_sources] for row in places]
    result: dict[str, Any] = {
        "num_sources": cell.num_sources,
        "snr_db": cell.snr_db,
        "scenes": count,
    }
    estimators = []
    for key, found in records.items():
        if key == "bounds":
            ranges = scenes.r[:, : cell.num_sources].double().flatten().numpy()
            result["bounds"] = _bound_results(found, ranges)
        elif key == "covariances":
            result["covariances"] = _covariance_results(found)
        else:
            name, _, knows = key.rpartition("-")
            numbers = estimator_results(
                [record["xyz"] for record in found],
                truths,
                [record["seconds"] for record in found],
            )
            estimators.append({"estimator": name, "sources_known": knows == "known", **numbers})
    result["estimators"] = estimators
    return result
