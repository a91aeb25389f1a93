# SPDX-License-Identifier: Apache-2.0
"""What an evaluation computes of the scenes of a cell: positions, bounds, errors of covariances.

A task turns scenes into one record for each, of plain values for a JSON file. What it makes of
a scene does not depend on the other scenes, so that an evaluation can stop and go on anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .bounds import deterministic_bound, position_error_bound, stochastic_bound
from .configs import CovarianceConfig, SystemConfig
from .covariance import sample_covariance
from .estimators import Estimator, receiver_view
from .metrics import covariance_errors
from .model import infer
from .simulate import DrawnScenes, true_covariance, true_steering
from .source_digest import source_digest
from .suite import Cell

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

Record = dict[str, Any]
BOUNDS_BLOCK = 40
"""Scenes whose bounds are computed at once."""


class EvaluationError(RuntimeError):
    """An estimator that broke its contract, or an evaluation that cannot go on."""


class Task(Protocol):
    """One kind of record; ``key`` names it in files and in messages."""

    @property
    def key(self) -> str: ...

    @property
    def title(self) -> str:
        """What it is called in a message."""
        ...

    @property
    def code(self) -> str | None:
        """Digest of the source that makes the records, if there is one: :func:`.source_digest`."""
        ...

    def accepts(self, record: Record, cell: Cell) -> bool:
        """Whether a record from a file is one that the task could have made of the cell."""
        ...

    def __call__(self, drawn: DrawnScenes) -> list[Record]:
        """One record for each of the scenes."""
        ...


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(values: object, count: int) -> bool:
    """Whether ``values`` is a list of ``count`` finite numbers."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(_is_number(value) and math.isfinite(value) for value in values)
    )


def _bounds(values: Sequence[object]) -> bool:
    """Whether every one of ``values`` is a number, or none for infinity."""
    return all(value is None or _is_number(value) for value in values)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class EstimatorTask:
    """Positions of an estimator, ``{"xyz": [[x, y, z], ...], "seconds": ...}`` for each scene.

    Seconds are those of the whole call over the number of its scenes. The estimator is given
    scenes without their labels, and K only where it is known.
    """

    estimator: Estimator
    known: bool
    device: torch.device

    @property
    def key(self) -> str:
        return f"{self.estimator.name}-{'known' if self.known else 'unknown'}"

    @property
    def title(self) -> str:
        return f"estimator {self.estimator.name}"

    @cached_property
    def code(self) -> str | None:
        # Of the source at the start: an edit while it runs is not what runs. The module of an
        # object is that of its class; a function has one of its own.
        return source_digest(getattr(self.estimator, "__module__", ""))

    def accepts(self, record: Record, cell: Cell) -> bool:
        places = record.get("xyz")
        return (
            isinstance(places, list)
            and all(_numbers(place, 3) for place in places)
            and _numbers([record.get("seconds")], 1)
        )

    def __call__(self, drawn: DrawnScenes) -> list[Record]:
        scenes = receiver_view(drawn.scenes).to(self.device)
        count = drawn.scenes.num_sources.to(self.device) if self.known else None
        _synchronise(self.device)
        started = time.perf_counter()
        found = self.estimator(scenes, count)
        _synchronise(self.device)
        seconds = (time.perf_counter() - started) / len(scenes)
        places, valid = found.cartesian.double().cpu(), found.valid.cpu()
        if valid.dtype != torch.bool or valid.ndim != 2 or len(valid) != len(scenes):
            raise EvaluationError(
                f"estimator {self.estimator.name}: valid is {valid.dtype} of shape "
                f"{list(valid.shape)}, expected bool [{len(scenes)}, K_max]"
            )
        if not bool(torch.isfinite(places[valid]).all()):
            raise EvaluationError(
                f"estimator {self.estimator.name}: returned a position that is not finite; one "
                "that is no estimate must not be marked valid"
            )
        return [
            {"xyz": places[row][valid[row]].tolist(), "seconds": seconds}
            for row in range(len(scenes))
        ]


@dataclass(frozen=True)
class BoundsTask:
    """Bounds of every source of a scene; ``null`` where a bound is infinite.

    ``deterministic`` and ``stochastic`` are position error bounds in metres; ``coordinates`` are
    the deterministic standard deviations of azimuth, elevation (radians) and range (metres).
    """

    system: SystemConfig
    key: str = "bounds"
    title: str = "the bounds"

    @cached_property
    def code(self) -> str | None:
        return source_digest(deterministic_bound.__module__)

    def accepts(self, record: Record, cell: Cell) -> bool:
        found = [record.get(name) for name in ("deterministic", "stochastic", "coordinates")]
        lists = [part for part in found if isinstance(part, list) and len(part) == cell.num_sources]
        if len(lists) < len(found):
            return False
        one, other, coordinates = lists
        return _bounds([*one, *other]) and all(
            isinstance(source, list) and len(source) == 3 and _bounds(source)
            for source in coordinates
        )

    def __call__(self, drawn: DrawnScenes) -> list[Record]:
        # The derivatives of every snapshot are large: 200 MB are reached at 150 scenes.
        return [
            record
            for start in range(0, len(drawn.scenes), BOUNDS_BLOCK)
            for record in self._block(drawn, slice(start, start + BOUNDS_BLOCK))
        ]

    def _block(self, drawn: DrawnScenes, part: slice) -> list[Record]:
        scenes, symbols, noise = drawn.scenes[part], drawn.symbols[part], drawn.noise_power[part]
        points = (scenes.phi.double(), scenes.theta.double(), scenes.r.double())
        common = (scenes.h, scenes.codes)
        deterministic = deterministic_bound(
            points, *common, symbols, noise, self.system, mask=scenes.mask
        )
        stochastic = stochastic_bound(
            points, *common, scenes.power, noise, self.system, mask=scenes.mask
        )
        one, other = (position_error_bound(b, points) for b in (deterministic, stochastic))
        deviation = deterministic.diagonal(dim1=1, dim2=2).sqrt().unflatten(1, (3, -1)).mT
        return [
            {
                "deterministic": _finite(one[row, :k].tolist()),
                "stochastic": _finite(other[row, :k].tolist()),
                "coordinates": [_finite(source) for source in deviation[row, :k].tolist()],
            }
            for row, k in enumerate(scenes.num_sources.tolist())
        ]


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


@dataclass(frozen=True)
class CovariancesTask:
    """NMSE and subspace overlap of R_samp, and with a network of its R_pred and R_blend.

    A network whose configuration wants the signal-to-noise ratio is told it, as in its training; an
    estimator is not.
    """

    system: SystemConfig
    covariance: CovarianceConfig
    device: torch.device
    checkpoint: Checkpoint | None = None
    key: str = "covariances"
    title: str = "the covariances' errors"

    @cached_property
    def code(self) -> str | None:
        return source_digest(covariance_errors.__module__, infer.__module__)

    def accepts(self, record: Record, cell: Cell) -> bool:
        names = {"R_samp"} if self.checkpoint is None else {"R_samp", "R_pred", "R_blend"}
        return set(record) == names and all(
            isinstance(entry, dict) and _numbers([entry.get("nmse"), entry.get("overlap")], 2)
            for entry in record.values()
        )

    @torch.no_grad()
    def __call__(self, drawn: DrawnScenes) -> list[Record]:
        scenes = drawn.scenes.to(self.device)
        blind = receiver_view(scenes)
        estimates = {"R_samp": sample_covariance(blind, self.covariance)}
        if self.checkpoint is not None:
            told = replace(blind, snr_db=scenes.snr_db)
            inference = infer(self.checkpoint.net, told, self.covariance)
            estimates |= {"R_pred": inference.r_pred, "R_blend": inference.r_blend}
        steering = true_steering(self.system, scenes)
        truth = true_covariance(self.system, scenes, steering=steering)
        records: list[Record] = [{} for _ in range(len(scenes))]
        for name, estimate in estimates.items():
            errors = covariance_errors(estimate, truth, steering, scenes.num_sources)
            for record, nmse, overlap in zip(
                records, errors.nmse.tolist(), errors.overlap.tolist(), strict=True
            ):
                record[name] = {"nmse": nmse, "overlap": overlap}
        return records
