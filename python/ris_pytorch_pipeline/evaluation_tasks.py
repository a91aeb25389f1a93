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
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .bounds import deterministic_bound, position_error_bound, stochastic_bound
from .configs import CovarianceConfig, SystemConfig
from .covariance import sample_covariance
from .estimators import Estimator, receiver_view
from .metrics import covariance_errors
from .model import infer
from .simulate import DrawnScenes, true_covariance, true_steering

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

Record = dict[str, Any]


class EvaluationError(RuntimeError):
    """An estimator that broke its contract, or an evaluation that cannot go on."""


class Task(Protocol):
    """One kind of record; ``key`` names it in files and in messages."""

    @property
    def key(self) -> str: ...

    def __call__(self, drawn: DrawnScenes) -> list[Record]:
        """One record for each of the scenes."""
        ...


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

    def __call__(self, drawn: DrawnScenes) -> list[Record]:
        scenes = drawn.scenes
        points = (scenes.phi.double(), scenes.theta.double(), scenes.r.double())
        common = (scenes.h, scenes.codes)
        deterministic = deterministic_bound(
            points, *common, drawn.symbols, drawn.noise_power, self.system, mask=scenes.mask
        )
        stochastic = stochastic_bound(
            points, *common, scenes.power, drawn.noise_power, self.system, mask=scenes.mask
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

    The network is told the signal-to-noise ratio, as in its training; an estimator is not.
    """

    system: SystemConfig
    covariance: CovarianceConfig
    device: torch.device
    checkpoint: Checkpoint | None = None
    key: str = "covariances"

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
