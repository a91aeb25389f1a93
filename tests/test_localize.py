# SPDX-License-Identifier: Apache-2.0
"""The search for sources, and localization with a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from localize_inputs import SMALL, factors_of, scenes_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ris_pytorch_pipeline.checkpoint import load_checkpoint, save_checkpoint
from ris_pytorch_pipeline.configs import (
    ConfigError,
    CovarianceConfig,
    ExperimentConfig,
    ModelConfig,
    SimulationConfig,
    SystemConfig,
)
from ris_pytorch_pipeline.geometry import steering, to_cartesian
from ris_pytorch_pipeline.localize import Positions, SearchConfig, estimate_positions
from ris_pytorch_pipeline.metrics import match_positions
from ris_pytorch_pipeline.model import LocalizationNet, infer
from ris_pytorch_pipeline.position_report import (
    as_json,
    localize_scenes,
    localize_shards,
    noise_threshold,
    predicted_count,
    table_rows,
)
from ris_pytorch_pipeline.search_grid import SearchGrid
from ris_pytorch_pipeline.shards import ShardDataset, write_shards
from ris_pytorch_pipeline.simulate import (
    Scenes,
    true_covariance,
)


def errors_of(
    system: SystemConfig, scenes: Scenes, found: Positions
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the sources from their estimates and their ranges, missed ones infinite."""
    errors, ranges = [], []
    for scene in range(len(scenes)):
        mask = scenes.mask[scene]
        truth = to_cartesian(scenes.phi[scene], scenes.theta[scene], scenes.r[scene]).double()[mask]
        match = match_positions(found.cartesian[scene][found.valid[scene]], truth)
        own = np.full(len(truth), np.inf)
        own[match.truth] = match.error
        errors.append(own)
        ranges.append(truth.norm(dim=-1).numpy())
    return np.concatenate(errors), np.concatenate(ranges)


@pytest.mark.lasts(12)
@pytest.mark.parametrize("form", ["dense", "factored"])
def test_all_sources_of_noise_free_scenes_are_found(seed: int, form: str) -> None:
    """K <= 3 sources at least 0.5 m apart: MUSIC finds all of them within 1 cm or 1 % of the range,
    MVDR with the default loading 95 % within 10 cm or 3 %. RISKERNELS_SCENES sets how many."""
    system = SystemConfig(max_sources=3)
    scenes = scenes_of(system, seed, int(os.environ.get("RISKERNELS_SCENES", "16")))
    factors = factors_of(system, scenes)
    matrix = true_covariance(system, scenes, dtype=torch.complex128)
    covariance = matrix if form == "dense" else factors
    count = scenes.num_sources
    found = estimate_positions(covariance, count, system, SearchConfig(spectrum="music"))
    assert found.valid.sum(1).tolist() == count.tolist()
    error, distance = errors_of(system, scenes, found)
    assert (error <= np.maximum(0.01, 0.01 * distance)).all(), (error, distance)
    found = estimate_positions(covariance, count, system)
    error, distance = errors_of(system, scenes, found)
    assert (error <= np.maximum(0.1, 0.03 * distance)).mean() >= 0.95, (error, distance)


def test_number_of_sources_is_respected_and_checked(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 3, min_sources=2)
    covariance = true_covariance(SMALL, scenes)
    found = estimate_positions(covariance, torch.tensor([0, 1, 2]), SMALL)
    assert found.valid.sum(1).tolist() == [0, 1, 2]
    nothing = estimate_positions(covariance, 0, SMALL)
    assert not bool(nothing.valid.any()) and nothing.phi.shape == (3, 2)
    for count in (-1, 3):
        with pytest.raises(ValueError, match="max_sources = 2"):
            estimate_positions(covariance, count, SMALL)
    with pytest.raises(ValueError, match="unknown number of sources"):
        estimate_positions(covariance, 1, SMALL, threshold=1.0)
    for wrong in (covariance[0], covariance[:, :9, :9], (covariance[:, :9, :2], torch.zeros(3))):
        with pytest.raises(ValueError, match=r"\[B, N, [Nr]\] with N = 12"):
            estimate_positions(wrong, 1, SMALL)
    for options in (
        {"candidates": 0},
        {"oversampling": 0.0},
        {"loading": -1.0},
        {"spectrum": "capon"},
        {"false_alarm_rate": 0.0},
    ):
        with pytest.raises(ConfigError):
            SearchConfig(**options)  # type: ignore[arg-type]
    with torch.inference_mode():
        again = estimate_positions(covariance * 1.0, torch.tensor([0, 1, 2]), SMALL)
    torch.testing.assert_close(again.level, found.level)


def test_empty_batch() -> None:
    for covariance in (
        torch.zeros(0, 12, 12, dtype=torch.complex64),
        (torch.zeros(0, 12, 3, dtype=torch.complex64), torch.zeros(0)),
    ):
        for name in ("mvdr", "music", "back-projection"):
            search = SearchConfig(spectrum=name)  # type: ignore[arg-type]
            found = estimate_positions(covariance, 1, SMALL, search)
            assert found.cartesian.shape == (0, 2, 3) and found.valid.shape == (0, 2)


def test_sources_keep_their_distance(seed: int) -> None:
    """One source, two asked for: the second is another peak, not the flank of the first."""
    system = SystemConfig(max_sources=2)
    scenes = scenes_of(dataclasses.replace(system, max_sources=1), seed, 4)
    x, rho = factors_of(dataclasses.replace(system, max_sources=1), scenes)
    search = SearchConfig(separation=0.4)
    found = estimate_positions((x, rho + 0.01), 2, system, search)
    assert bool(found.valid.all())
    gap = (found.cartesian[:, 0] - found.cartesian[:, 1]).norm(dim=-1)
    assert bool((gap >= 0.4).all())
    assert bool((found.level[:, 0] > found.level[:, 1]).all())


def test_a_source_outside_the_field_of_view_is_held_at_the_border() -> None:
    system = SystemConfig(max_sources=1)
    outside = torch.tensor([system.phi_max + 0.05]), torch.tensor([0.0]), torch.tensor([3.0])
    a = steering(system, *outside, dtype=torch.complex128)
    found = estimate_positions((a.mT[None], torch.zeros(1)), 1, system)
    assert float(found.phi[0, 0]) == pytest.approx(system.phi_max)


def test_refinement_hook_gets_the_positions(seed: int) -> None:
    covariance = true_covariance(SMALL, scenes_of(SMALL, seed, 2))
    found = estimate_positions(covariance, 1, SMALL)

    def shift(positions: Positions) -> Positions:
        return dataclasses.replace(positions, r=positions.r + 1)

    moved = estimate_positions(covariance, 1, SMALL, refine=shift)
    torch.testing.assert_close(moved.r, found.r + 1)


class _LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def test_memory_stays_bounded(seed: int) -> None:
    """No allocation of a search of many scenes is above 200 MB."""
    system = SystemConfig()
    scenes = scenes_of(system, seed, 64)
    with _LargestTensor() as seen:
        estimate_positions(factors_of(system, scenes), 1, system, SearchConfig(candidates=8))
    assert 1 << 20 < seen.largest < 200 << 20


def test_predicted_count_has_a_floor() -> None:
    logits = torch.tensor([[-1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    assert predicted_count(logits, 1).tolist() == [2, 1]


# Checkpoint and shards


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of a fresh network and a folder of shards."""
    config = ExperimentConfig(
        system=SMALL, model=ModelConfig(channels=4, conv_blocks=1, width=16, heads=2, layers=1)
    )
    torch.manual_seed(3)
    net = LocalizationNet(config.system, config.model, config.covariance)
    save_checkpoint(tmp_path / "net", config, net)
    write_shards(tmp_path / "shards", SMALL, config.simulation, samples=12, shard_size=5, seed=4)
    return tmp_path / "net", tmp_path / "shards"


def test_shards_are_localized_from_the_blended_covariance(trained: tuple[Path, Path]) -> None:
    checkpoint, dataset = load_checkpoint(trained[0]), ShardDataset(trained[1])
    indices = [7, 0, 11]
    search = SearchConfig()
    every = list(localize_shards(checkpoint, dataset, indices, search=search, known_sources=True))
    assert [scene.index for scene in every] == indices

    scenes = dataset.batch(indices)
    with torch.no_grad():
        inference = infer(checkpoint.net, scenes)
    direct = estimate_positions(inference.factors, scenes.num_sources, SMALL, search)
    matrix = estimate_positions(inference.r_blend, scenes.num_sources, SMALL, search)
    torch.testing.assert_close(matrix.cartesian, direct.cartesian, atol=1e-3, rtol=1e-3)
    for row, scene in enumerate(every):
        keep = direct.valid[row]
        assert len(scene.estimate) == int(scenes.num_sources[row])
        np.testing.assert_allclose(scene.estimate[:, 0], direct.phi[row][keep].numpy(), atol=1e-9)
        place = to_cartesian(scenes.phi[row], scenes.theta[row], scenes.r[row])[scenes.mask[row]]
        again = match_positions(direct.cartesian[row][keep], place)
        np.testing.assert_allclose(scene.match.error, again.error, atol=1e-4)

    single = list(
        localize_shards(
            checkpoint, dataset, indices, search=search, known_sources=True, batch_size=1
        )
    )
    for one, other in zip(every, single, strict=True):
        np.testing.assert_allclose(one.estimate, other.estimate, atol=1e-3)

    report = json.loads(as_json(every))
    assert [entry["index"] for entry in report["scenes"]] == indices
    first = report["scenes"][0]
    pair = first["matches"][0]
    gap = np.subtract(
        first["estimates"][pair["estimate"]]["xyz_m"], first["truth"][pair["truth"]]["xyz_m"]
    )
    assert np.linalg.norm(gap) == pytest.approx(pair["error_m"])
    assert report["summary"]["sources"] == int(scenes.num_sources.sum())


def test_table_has_a_line_for_every_estimate_and_missed_source(trained: tuple[Path, Path]) -> None:
    checkpoint, dataset = load_checkpoint(trained[0]), ShardDataset(trained[1])
    for count in (1, 2):
        for scene in localize_shards(
            checkpoint, dataset, range(12), search=SearchConfig(), num_sources=count
        ):
            rows = table_rows(scene)
            assert len(rows) == len(scene.estimate) + scene.match.missed
            assert sum("missed" in row for row in rows) == scene.match.missed
            assert sum("extra" in row for row in rows) == scene.match.extra
            assert len({len(row) for row in rows}) == 1


def test_localization_refuses_what_does_not_fit(trained: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, dataset = load_checkpoint(trained[0]), ShardDataset(trained[1])
    with pytest.raises(ConfigError, match="no scene 12"):
        list(localize_shards(checkpoint, dataset, [3, 12], search=SearchConfig()))
    other = dataclasses.replace(SMALL, antennas=5)
    write_shards(tmp_path / "other", other, SimulationConfig(), samples=2, seed=0)
    with pytest.raises(ConfigError, match="antennas: 5 -> 4"):
        list(
            localize_shards(
                checkpoint, ShardDataset(tmp_path / "other"), [0], search=SearchConfig()
            )
        )
    wrong = scenes_of(other, 0, 2)
    grid = SearchGrid.for_system(SMALL)
    with pytest.raises(ConfigError, match=r"\(4, 5, 12\), expected \(4, 4, 12\)"):
        localize_scenes(checkpoint, wrong, SearchConfig(), 1, grid)


@pytest.mark.lasts(10)
def test_noise_through_the_network_raises_few_alarms(trained: tuple[Path, Path], seed: int) -> None:
    """The share of fresh noise scenes with a source: the rate, given what 200 trials know of it."""
    checkpoint, dataset = load_checkpoint(trained[0]), ShardDataset(trained[1])
    rate, trials, count = 0.1, 200, 150
    search = SearchConfig(false_alarm_rate=rate, candidates=8)
    threshold = noise_threshold(checkpoint, search, trials=trials, seed=seed)
    scenes = scenes_of(SMALL, seed, count)
    generator = torch.Generator().manual_seed(seed + 1)
    white = torch.randn(scenes.y.shape, dtype=scenes.y.dtype, generator=generator)
    power = scenes.y.abs().square().mean((1, 2), keepdim=True)
    noise = dataclasses.replace(scenes, y=power.sqrt() * white)
    grid = SearchGrid.for_system(SMALL, oversampling=search.oversampling)
    found = localize_scenes(checkpoint, noise, search, None, grid, threshold=threshold)
    alarms = int(found.valid.any(1).sum())
    # The j-th highest of n trials leaves a chance of alarm that is Beta(j, n + 1 - j) distributed.
    rank = math.floor(rate * (trials + 1))
    low, high = scipy.stats.betabinom(count, rank, trials + 1 - rank).ppf([1e-5, 1 - 1e-5])
    assert 0 < low <= alarms <= high, (low, alarms, high)
    scene = next(iter(localize_shards(checkpoint, dataset, [3], search=search, detect=True)))
    assert len(scene.estimate) <= SMALL.max_sources


def test_refinement_on_the_measurements_lowers_the_error(tmp_path: Path, seed: int) -> None:
    system = SystemConfig(n_h=8, n_v=8, antennas=8, snapshots=16, max_sources=1)
    simulation = SimulationConfig(snr_db_min=20.0, snr_db_max=20.0)
    config = ExperimentConfig(
        system=system,
        simulation=simulation,
        model=ModelConfig(channels=4, conv_blocks=1, width=16, heads=2, layers=1),
        covariance=CovarianceConfig(beta=1.0),
    )
    net = LocalizationNet(system, config.model, config.covariance)
    save_checkpoint(tmp_path / "net", config, net)
    write_shards(tmp_path / "shards", system, simulation, samples=24, shard_size=24, seed=seed)
    checkpoint, dataset = load_checkpoint(tmp_path / "net"), ShardDataset(tmp_path / "shards")
    plain, refined = (
        list(
            localize_shards(
                checkpoint,
                dataset,
                range(24),
                search=SearchConfig(),
                known_sources=True,
                refine=refine,
            )
        )
        for refine in (False, True)
    )
    errors = [np.median([scene.match.error for scene in found]) for found in (plain, refined)]
    assert errors[1] < 0.5 * errors[0], errors
    for one, other in zip(plain, refined, strict=True):
        np.testing.assert_array_equal(one.level_db, other.level_db)
