# SPDX-License-Identifier: Apache-2.0
"""The MVDR spectrum, its peak search and refinement."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ris_pytorch_pipeline.checkpoint import load_checkpoint, save_checkpoint
from ris_pytorch_pipeline.configs import (
    ConfigError,
    ExperimentConfig,
    ModelConfig,
    SimulationConfig,
    SystemConfig,
)
from ris_pytorch_pipeline.geometry import steering, to_cartesian
from ris_pytorch_pipeline.localize import (
    SearchConfig,
    estimate_positions,
    grid_peaks,
    refine_peaks,
    select_peaks,
)
from ris_pytorch_pipeline.metrics import match_positions
from ris_pytorch_pipeline.model import LocalizationNet, infer
from ris_pytorch_pipeline.position_report import (
    as_json,
    localize_shards,
    predicted_count,
    table_rows,
)
from ris_pytorch_pipeline.shards import ShardDataset, write_shards
from ris_pytorch_pipeline.simulate import Scenes, Simulator, true_covariance, true_steering
from ris_pytorch_pipeline.spectrum import (
    SearchGrid,
    grid_log_residual,
    grid_log_spectrum,
    loaded_cholesky,
    log_spectrum,
)

SMALL = SystemConfig(n_h=4, n_v=3, antennas=4, snapshots=4, max_sources=2)


def random_covariance(generator: torch.Generator, batch: int, elements: int) -> Tensor:
    factor = torch.randn(batch, elements, elements + 2, dtype=torch.complex128, generator=generator)
    return factor @ factor.mH


def scenes_of(system: SystemConfig, seed: int, count: int, **simulation: float) -> Scenes:
    config = SimulationConfig(**simulation)  # type: ignore[arg-type]
    return Simulator(system, config, seed=seed, split="test").batch(count)


# The spectrum


def test_spectrum_is_the_inverse_quadratic_form(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    covariance = random_covariance(generator, 3, SMALL.elements)
    loading = 0.05
    grid = SearchGrid.for_system(SMALL)
    level = grid_log_spectrum(loaded_cholesky(covariance, loading), grid, SMALL)

    trace = covariance.diagonal(dim1=1, dim2=2).real.sum(1)
    identity = torch.eye(SMALL.elements, dtype=torch.complex128)
    loaded = covariance * (SMALL.elements / trace)[:, None, None] + loading * identity
    phi, theta, inverse_range = torch.meshgrid(
        grid.phi, grid.theta, grid.inverse_range, indexing="ij"
    )
    vectors = steering(SMALL, phi, theta, 1 / inverse_range, dtype=torch.complex128)
    form = torch.einsum("ijkn,bnm,ijkm->bijk", vectors.conj(), torch.linalg.inv(loaded), vectors)
    torch.testing.assert_close(level, -torch.log(form.real), rtol=1e-10, atol=1e-10)


def test_spectrum_does_not_depend_on_chunks_or_scale(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    covariance = random_covariance(generator, 2, SMALL.elements)
    grid = SearchGrid.for_system(SMALL)
    factor = loaded_cholesky(covariance, 0.01)
    whole = grid_log_spectrum(factor, grid, SMALL)
    torch.testing.assert_close(grid_log_spectrum(factor, grid, SMALL, chunk_bytes=1), whole)
    scaled = grid_log_spectrum(loaded_cholesky(1e9 * covariance, 0.01), grid, SMALL)
    torch.testing.assert_close(scaled, whole)


def test_residual_is_the_energy_outside_the_span(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 3)
    points = torch.stack([scenes.phi, scenes.theta, 1 / scenes.r], -1).double()
    grid = SearchGrid.for_system(SMALL)
    share = grid_log_residual(points, scenes.mask, grid, SMALL, floor=1e-4)
    coordinates = torch.meshgrid(grid.phi, grid.theta, 1 / grid.inverse_range, indexing="ij")
    vectors = steering(SMALL, *coordinates, dtype=torch.complex128)
    for scene in range(3):
        columns = true_steering(SMALL, scenes, dtype=torch.complex128)[scene][:, scenes.mask[scene]]
        basis = torch.linalg.qr(columns).Q
        outside = vectors - (vectors @ basis.conj()) @ basis.mT
        expected = outside.abs().square().sum(-1).clamp_min(1e-4)
        torch.testing.assert_close(share[scene].exp().double(), expected, rtol=1e-4, atol=2e-6)


def test_cholesky_names_the_scenes_it_refuses() -> None:
    covariance = torch.eye(4, dtype=torch.complex64).repeat(5, 1, 1)
    covariance[1, 0, 0] = float("nan")
    covariance[3, 2, 2] = -1.0
    with pytest.raises(ValueError, match=r"scene\(s\) \[1, 3\]"):
        loaded_cholesky(covariance)
    for bad, message in (
        (torch.ones(2, 3, 4, dtype=torch.complex64), "expected"),
        (torch.ones(4, 4), "complex"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded_cholesky(bad)
    with pytest.raises(ValueError, match="loading"):
        loaded_cholesky(covariance[:1], -1.0)


def test_grid_spans_the_field_of_view_uniformly_in_inverse_range() -> None:
    system = SystemConfig()
    grid = SearchGrid.for_system(system, oversampling=3.0)
    lower, upper = grid.bounds
    assert lower.tolist() == pytest.approx([-system.phi_max, -system.theta_max, 1 / system.r_max])
    assert upper.tolist() == pytest.approx([system.phi_max, system.theta_max, 1 / system.r_min])
    for axis, step in zip((grid.phi, grid.theta, grid.inverse_range), grid.steps, strict=True):
        torch.testing.assert_close(axis.diff(), step.expand(len(axis) - 1))
    finer = SearchGrid.for_system(dataclasses.replace(system, n_h=24), oversampling=3.0)
    assert finer.steps[0] < 0.6 * grid.steps[0]
    flat = torch.tensor([0, math.prod(grid.shape) - 1])
    torch.testing.assert_close(grid.points(flat), torch.stack([lower, upper]))


# Peaks


def test_grid_peaks_are_the_axis_maxima(seed: int) -> None:
    grid = SearchGrid.for_system(SMALL)
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(2, *grid.shape, generator=generator)
    expected: list[list[float]] = []
    for volume in level.numpy():
        found = []
        for place in itertools.product(*map(range, volume.shape)):
            around = [
                tuple(p + d * (i == axis) for i, p in enumerate(place))
                for axis in range(3)
                for d in (-1, 1)
            ]
            inside = [
                q for q in around if all(0 <= i < n for i, n in zip(q, volume.shape, strict=True))
            ]
            if all(volume[place] >= volume[q] for q in inside):
                found.append(float(volume[place]))
        expected.append(sorted(found, reverse=True))
    count = max(map(len, expected)) + 5
    points, valid = grid_peaks(level, grid, count)
    for scene in range(2):
        index = (
            ((points[scene][valid[scene]] - grid.bounds[0]) / grid.steps).round().long().unbind(-1)
        )
        assert level[scene][index].tolist() == expected[scene]
    points, valid = grid_peaks(level, grid, 3)
    assert points.shape == (2, 3, 3) and bool(valid.all())


def test_refinement_reaches_a_stationary_point_inside_the_bounds(seed: int) -> None:
    system = SystemConfig()
    scenes = scenes_of(system, seed, 3)
    factor = loaded_cholesky(true_covariance(system, scenes), 1e-2)
    grid = SearchGrid.for_system(system)
    lower, upper = grid.bounds
    generator = torch.Generator().manual_seed(seed)
    start = lower + (upper - lower) * torch.rand(3, 12, 3, dtype=torch.float64, generator=generator)
    start[:, 0], start[:, 1] = lower, upper
    reached, level = refine_peaks(factor, start, grid, system, steps=60)
    assert bool((level >= log_spectrum(factor, start, system)).all())
    assert bool(((reached >= lower - 1e-12) & (reached <= upper + 1e-12)).all())
    points = reached.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_spectrum(factor, points, system).sum(), points)
    slope = gradient * grid.steps
    held = ((reached <= lower + 1e-9) & (slope < 0)) | ((reached >= upper - 1e-9) & (slope > 0))
    settled = slope.masked_fill(held, 0.0).abs().amax(-1) < 1e-5
    assert settled.double().mean() > 0.9


def test_selection_keeps_the_highest_and_suppresses_neighbours() -> None:
    phi = torch.tensor([[0.0, 0.001, 0.5, -0.5]], dtype=torch.float64)
    points = torch.stack([phi, torch.zeros_like(phi), torch.full_like(phi, 0.5)], -1)
    level = torch.tensor([[3.0, 4.0, 1.0, 2.0]], dtype=torch.float64)
    found = select_peaks(points, level, torch.tensor([3]), 4, 0.25)
    assert found.valid.tolist() == [[True, True, True, False]]
    assert found.phi[0, :3].tolist() == [0.001, -0.5, 0.5]
    alone = level.clone()
    alone[0, 2:] = -math.inf
    found = select_peaks(points, alone, torch.tensor([3]), 4, 0.25)
    assert found.valid.tolist() == [[True, False, False, False]]
    both = select_peaks(points, alone, torch.tensor([2]), 4, 0.0)
    assert both.phi[0, :2].tolist() == [0.001, 0.0]


def test_all_sources_of_noise_free_scenes_are_found(seed: int) -> None:
    system = SystemConfig()
    scenes = scenes_of(system, seed, 8, min_separation=1.5)
    found = estimate_positions(
        true_covariance(system, scenes, dtype=torch.complex128),
        scenes.num_sources,
        system,
        SearchConfig(loading=1e-4),
    )
    assert found.valid.sum(1).tolist() == scenes.num_sources.tolist()
    for scene in range(len(scenes)):
        truth = to_cartesian(scenes.phi[scene], scenes.theta[scene], scenes.r[scene]).double()
        truth = truth[scenes.mask[scene]]
        match = match_positions(found.cartesian[scene][found.valid[scene]], truth)
        assert match.missed == match.extra == 0
        allowed = np.maximum(0.01, 0.01 * truth.norm(dim=-1).numpy()[match.truth])
        assert (match.error <= allowed).all(), (match.error, allowed)


def test_number_of_sources_is_respected_and_checked(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 3, min_sources=2)
    covariance = true_covariance(SMALL, scenes)
    found = estimate_positions(covariance, torch.tensor([0, 1, 2]), SMALL)
    assert found.valid.sum(1).tolist() == [0, 1, 2]
    for count in (-1, 3):
        with pytest.raises(ValueError, match="max_sources = 2"):
            estimate_positions(covariance, count, SMALL)
    with pytest.raises(ValueError, match=r"\[B, N, N\]"):
        estimate_positions(covariance[0], 1, SMALL)
    for options in ({"candidates": 0}, {"oversampling": 0.0}, {"loading": -1.0}):
        with pytest.raises(ConfigError):
            SearchConfig(**options)  # type: ignore[arg-type]
    with torch.inference_mode():
        again = estimate_positions(covariance * 1.0, torch.tensor([0, 1, 2]), SMALL)
    torch.testing.assert_close(again.level, found.level)


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
        blend = infer(checkpoint.net, scenes).r_blend
    direct = estimate_positions(blend, scenes.num_sources, SMALL, search)
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
