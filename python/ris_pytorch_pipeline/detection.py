# SPDX-License-Identifier: Apache-2.0
"""When a peak is a source: the threshold for a false-alarm rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .configs import SystemConfig
from .peak_search import (
    SCENES,
    SearchConfig,
    batch_of,
    check_covariance,
    make_spectrum,
    most_signals,
    scenes_of,
    strongest_peak,
)
from .search_grid import SearchGrid
from .spectrum import Covariance, grid_log_spectrum


def peak_levels(
    covariance: Covariance,
    system: SystemConfig,
    search: SearchConfig | None = None,
    *,
    grid: SearchGrid | None = None,
) -> Tensor:
    """log P [B] at the highest peak of each scene: the statistic that a threshold is held against.

    ``covariance`` as for :func:`.localize.estimate_positions`.
    """
    search = search or SearchConfig()
    check_covariance(covariance, system)
    batch, _, device = batch_of(covariance)
    grid = grid or SearchGrid.for_system(system, oversampling=search.oversampling, device=device)
    highest = [torch.empty(0, dtype=torch.float64, device=device)]
    with torch.inference_mode(False), torch.no_grad():
        for start in range(0, batch, SCENES):
            part = scenes_of(covariance, slice(start, start + SCENES))
            spectrum = make_spectrum(part, most_signals(part, system), search)
            level = grid_log_spectrum(spectrum, grid, system)
            highest.append(strongest_peak(spectrum, level, None, grid, system, search)[1])
    return torch.cat(highest)


def white_null(system: SystemConfig) -> Callable[[int, torch.Generator], Covariance]:
    """Draws sample covariances of L = ``system.snapshots`` white circular Gaussian snapshots."""

    def draw(count: int, generator: torch.Generator) -> Covariance:
        shape = (count, system.elements, system.snapshots)
        factor = torch.randn(shape, dtype=torch.complex128, generator=generator)
        return factor, torch.zeros(count, dtype=torch.float64)

    return draw


def detection_threshold(
    system: SystemConfig,
    search: SearchConfig | None = None,
    *,
    null: Callable[[int, torch.Generator], Covariance] | None = None,
    trials: int | None = None,
    seed: int = 0,
) -> float:
    """The log level that the highest peak exceeds at ``search.false_alarm_rate`` without a source.

    The null hypothesis is what ``null(count, generator)`` draws; by default :func:`white_null`: the
    covariance is the sample covariance of L independent snapshots of white circular Gaussian noise
    of any power. The spectra are scaled by the trace, so that the power does not matter. The
    statistic is the highest peak of the field of view after refinement, and its quantile is
    estimated from ``trials`` draws (by default 20 / rate, 200 to 4000, and never
    fewer than 1 / rate): the j-th highest of n, with
    j = rate (n + 1) rounded down, is exceeded by a fresh draw with probability j / (n + 1), exactly
    so whatever the distribution.

    The rate is one of scenes: it holds for the first source of a scene without any. Sources that
    follow are held to the same level after the earlier ones are taken out.
    """
    search = search or SearchConfig()
    rate = search.false_alarm_rate
    if trials is None:
        trials = max(200, min(4000, math.ceil(20 / rate)), math.ceil(1 / rate))
    rank = math.floor(rate * (trials + 1))
    if rank < 1:
        raise ValueError(
            f"detection_threshold: {trials} trials cannot resolve a false-alarm rate of {rate:g}; "
            f"use at least {math.ceil(1 / rate)}"
        )
    if null is None:
        return _white_threshold(system, search, trials, rank, seed)
    return _threshold(system, search, null, trials, rank, seed)


def _threshold(
    system: SystemConfig,
    search: SearchConfig,
    null: Callable[[int, torch.Generator], Covariance],
    trials: int,
    rank: int,
    seed: int,
) -> float:
    generator = torch.Generator().manual_seed(seed)
    levels = [
        peak_levels(null(min(SCENES, trials - start), generator), system, search).cpu()
        for start in range(0, trials, SCENES)
    ]
    return float(torch.cat(levels).topk(rank).values[-1])


@lru_cache(maxsize=32)
def _white_threshold(
    system: SystemConfig, search: SearchConfig, trials: int, rank: int, seed: int
) -> float:
    return _threshold(system, search, white_null(system), trials, rank, seed)
