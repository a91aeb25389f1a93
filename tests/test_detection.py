# SPDX-License-Identifier: Apache-2.0
"""The threshold for a false-alarm rate."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from localize_inputs import SMALL, factors_of, scenes_of

from ris_pytorch_pipeline.configs import (
    SystemConfig,
)
from ris_pytorch_pipeline.detection import detection_threshold, peak_levels, white_null
from ris_pytorch_pipeline.localize import SearchConfig, estimate_positions


@pytest.mark.lasts(20)
@pytest.mark.parametrize("name", ["mvdr", "music", "back-projection"])
def test_false_alarms_come_at_their_rate(seed: int, name: str) -> None:
    """In fresh noise, counts beyond four standard deviations of both estimates would be chance."""
    system = dataclasses.replace(SMALL, snapshots=6)
    rate, trials = 0.1, 600
    search = SearchConfig(spectrum=name, false_alarm_rate=rate, candidates=8)  # type: ignore[arg-type]
    threshold = detection_threshold(system, search, trials=trials, seed=seed)
    noise = white_null(system)(trials, torch.Generator().manual_seed(seed + 1))
    found = estimate_positions(noise, None, system, search, threshold=threshold)
    alarms = int(found.valid.any(1).sum())
    deviation = math.sqrt(2 * rate * (1 - rate) * trials)
    assert abs(alarms - rate * trials) < 4 * deviation, alarms
    # The power of the noise does not matter, nor the form.
    levels = peak_levels(noise, system, search)
    assert int((levels >= threshold).sum()) == alarms
    louder = (1e3 * noise[0][:40], noise[1][:40])
    torch.testing.assert_close(peak_levels(louder, system, search), levels[:40])


def test_music_of_fewer_snapshots_than_sources_is_calibrated_too(seed: int) -> None:
    system = dataclasses.replace(SMALL, snapshots=1)
    noise = white_null(system)(3, torch.Generator().manual_seed(seed))
    levels = peak_levels(noise, system, SearchConfig(spectrum="music"))
    assert bool(torch.isfinite(levels).all())


def test_strong_sources_are_counted(seed: int) -> None:
    system = SystemConfig(max_sources=3, snapshots=16)
    scenes = scenes_of(system, seed, 12, min_separation=2.0)
    x, _ = factors_of(system, scenes)
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randn(12, x.shape[2], 16, dtype=torch.complex128, generator=generator)
    noise = torch.randn(12, x.shape[1], 16, dtype=torch.complex128, generator=generator)
    snapshots = x @ symbols + 0.3 * noise
    search = SearchConfig(false_alarm_rate=0.02, candidates=8)
    threshold = detection_threshold(system, search, trials=100, seed=seed)
    found = estimate_positions((snapshots, torch.zeros(12)), None, system, search)
    assert abs(threshold - detection_threshold(system, search)) < 1.0
    counted = found.valid.sum(1)
    assert int((counted == scenes.num_sources).sum()) >= 10, (counted, scenes.num_sources)


def test_rates_that_trials_cannot_resolve_are_refused() -> None:
    search = SearchConfig(false_alarm_rate=0.001)
    with pytest.raises(ValueError, match="use at least 1000"):
        detection_threshold(SMALL, search, trials=100)


def test_the_default_trials_resolve_every_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def null(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(count)
        return torch.ones(count, SMALL.elements, 1, dtype=torch.complex128), torch.ones(count)

    def heights(covariance: tuple[torch.Tensor, torch.Tensor], *_: object) -> torch.Tensor:
        return torch.ones(len(covariance[1]))

    monkeypatch.setattr("ris_pytorch_pipeline.detection.peak_levels", heights)
    for rate, trials in ((0.2, 200), (0.01, 2000), (0.001, 4000), (1e-4, 10000)):
        drawn.clear()
        detection_threshold(SMALL, SearchConfig(false_alarm_rate=rate), null=null)
        assert sum(drawn) == trials
