# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton refinement on the measurements against plain least squares in complex128."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ris_pytorch_pipeline.configs import SimulationConfig, SystemConfig
from ris_pytorch_pipeline.geometry import steering, to_cartesian
from ris_pytorch_pipeline.refine import (
    Measurements,
    Symbols,
    descend,
    evaluate,
    field_of_view,
    refine_positions,
)
from ris_pytorch_pipeline.simulate import Scenes, Simulator

SMALL = SystemConfig(n_h=6, n_v=5, antennas=7, snapshots=5, max_sources=3)
SYMBOLS: tuple[Symbols, ...] = ("independent", "static")


def scenes_of(system: SystemConfig, seed: int, count: int, **simulation: Any) -> Scenes:
    return Simulator(system, SimulationConfig(**simulation), seed=seed, split="test").batch(count)


def around(scenes: Scenes, seed: int, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Starts near the truth: azimuth, elevation and 1/range are off by up to ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    shape = scenes.phi.shape
    off = spread * (2 * torch.rand(3, *shape, generator=generator, dtype=torch.float64) - 1)
    phi, theta, inverse = scenes.phi + off[0], scenes.theta + off[1], 1 / scenes.r + off[2]
    return phi, theta, 1 / inverse.clamp_min(0.05), scenes.mask


def plain_cost(scene: Scenes, places: Tensor, system: SystemConfig, symbols: Symbols) -> float:
    """f of one scene at places [K, 3] = (azimuth, elevation, 1/range), by NumPy's lstsq."""
    wave = steering(system, places[:, 0], places[:, 1], 1 / places[:, 2], dtype=torch.complex128)
    h = scene.h[0].to(torch.complex128)
    blocks = [(h * c) @ wave.mT for c in scene.codes[0].to(torch.complex128)]
    pairs = list(zip(blocks, scene.y[0].to(torch.complex128), strict=True))
    if symbols == "static":
        pairs = [(torch.cat(blocks), scene.y[0].to(torch.complex128).flatten())]
    total = 0.0
    for d, y in pairs:
        dictionary, seen = d.numpy(), y.numpy()
        symbol = np.linalg.lstsq(dictionary, seen, rcond=None)[0]
        total += float(np.sum(np.abs(seen - dictionary @ symbol) ** 2))
    return total


@pytest.mark.parametrize("symbols", SYMBOLS)
@pytest.mark.parametrize("taper", [False, True])
def test_cost_and_slope_are_those_of_plain_least_squares(
    seed: int, symbols: Symbols, taper: bool
) -> None:
    system = dataclasses.replace(SMALL, taper=taper)
    scenes = scenes_of(system, seed, 4, symbols=symbols, snr_db_min=0.0)
    phi, theta, r, mask = around(scenes, seed, 0.05)
    x = torch.stack([phi, theta, 1 / r], -1)
    fit = evaluate(Measurements.of(scenes, system, symbols), x[:, None], mask[:, None])
    for b in range(4):
        count, scale = int(scenes.num_sources[b]), float(fit.slope[b].abs().max())
        places = x[b, :count]
        cost = plain_cost(scenes[b], places, system, symbols)
        assert float(fit.cost[b, 0]) == pytest.approx(cost, rel=1e-8)
        for c in range(3):
            for k in range(SMALL.max_sources):
                slope = float(fit.slope[b, 0, c * SMALL.max_sources + k])
                if k >= count:
                    assert slope == 0
                    continue
                step = torch.zeros_like(places)
                # Differences over two widths, so that the third derivative drops out.
                halves = []
                for width in (2e-5, 1e-5):
                    step[k, c] = width
                    up = plain_cost(scenes[b], places + step, system, symbols)
                    down = plain_cost(scenes[b], places - step, system, symbols)
                    halves.append((up - down) / (2 * width))
                wanted = (4 * halves[1] - halves[0]) / 3
                assert -2 * slope == pytest.approx(wanted, abs=1e-6 * scale)


def test_normal_matrix_is_the_product_of_projected_jacobians(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 3, min_sources=3, snr_db_min=0.0)
    x = torch.stack(around(scenes, seed, 0.05)[:3], -1)
    x[..., 2] = 1 / x[..., 2]
    measurements = Measurements.of(scenes, SMALL, "independent")
    fit = evaluate(measurements, x[:, None], scenes.mask[:, None])
    step = 1e-5
    for b in range(3):
        rows = []
        for code, y in zip(scenes.codes[b], scenes.y[b], strict=True):

            def columns(places: Tensor, code: Tensor = code, b: int = b) -> Tensor:
                phi, theta, inverse = places.unbind(-1)
                wave = steering(SMALL, phi, theta, 1 / inverse, dtype=torch.complex128)
                return (scenes.h[b] * code).to(torch.complex128) @ wave.mT

            d = columns(x[b])
            inverse = torch.linalg.pinv(d)
            away = torch.eye(len(y), dtype=d.dtype) - d @ inverse
            symbol = inverse @ y.to(d.dtype)
            parts = []
            for c in range(3):
                shift = torch.zeros(3, dtype=torch.float64)
                shift[c] = step
                slope = (columns(x[b] + shift) - columns(x[b] - shift)) / (2 * step)
                parts.append(away @ slope * symbol)
            rows.append(torch.cat(parts, 1))
        jacobian = torch.cat(rows)
        wanted = (jacobian.mH @ jacobian).real
        error = (fit.normal[b, 0] - wanted).abs().max() / wanted.abs().max()
        assert float(error) < 1e-6


@pytest.mark.parametrize("symbols", SYMBOLS)
def test_noise_free_sources_are_found_to_the_last_digits(seed: int, symbols: Symbols) -> None:
    system = SystemConfig(antennas=12, snapshots=8)
    scenes = scenes_of(system, seed, 12, min_separation=2.0)
    wave = steering(system, scenes.phi, scenes.theta, scenes.r, dtype=torch.complex128)
    drawn = 1 if symbols == "static" else system.snapshots
    symbol = torch.randn(12, drawn, system.max_sources, dtype=torch.complex128)
    surface = (symbol * scenes.mask[:, None]) @ wave * scenes.codes
    exact = dataclasses.replace(scenes, y=surface @ scenes.h.to(torch.complex128).mT)
    found, residual = refine_positions(
        exact, around(scenes, seed, 0.004), system, steps=60, symbols=symbols
    )
    truth = to_cartesian(scenes.phi.double(), scenes.theta.double(), scenes.r.double())
    error = (found.cartesian - truth).norm(dim=-1)[scenes.mask]
    assert float(error.median()) < 1e-6
    assert float((residual / exact.y.abs().square().sum((1, 2))).median()) < 1e-12
    assert torch.equal(found.valid, scenes.mask)


def test_static_symbols_locate_more_sources_than_antennas(seed: int) -> None:
    system = dataclasses.replace(SMALL, n_h=12, n_v=12, antennas=3, snapshots=24, max_sources=4)
    quiet = {"snr_db_min": 60.0, "snr_db_max": 60.0, "min_separation": 2.0}
    scenes = scenes_of(system, seed, 6, min_sources=4, symbols="static", **quiet)
    start = around(scenes, seed, 0.003)
    found, _ = refine_positions(scenes, start, system, steps=60, symbols="static")
    truth = to_cartesian(scenes.phi, scenes.theta, scenes.r)
    assert float((found.cartesian - truth).norm(dim=-1).median()) < 0.05
    with pytest.raises(ValueError, match="4 sources, but 3 measurements share"):
        refine_positions(scenes, start, system)


def test_every_step_lowers_the_cost_and_stays_in_view(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 24, snr_db_min=-5.0)
    start = around(scenes, seed, 0.5)
    before = torch.full((24,), math.inf, dtype=torch.float64)
    for steps in (0, 1, 2, 4, 8, 16):
        found, residual = refine_positions(scenes, start, SMALL, steps=steps)
        assert bool((residual <= before).all())
        assert bool((found.phi.abs() <= SMALL.phi_max).all())
        assert bool((found.theta.abs() <= SMALL.theta_max).all())
        ranges = found.r[found.valid]
        assert bool(((ranges >= SMALL.r_min - 1e-12) & (ranges <= SMALL.r_max + 1e-12)).all())
        before = residual


def test_a_scene_does_not_depend_on_its_batch(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 9)
    start = around(scenes, seed, 0.1)
    found, residual = refine_positions(scenes, start, SMALL)
    for b in range(9):
        count = int(scenes.num_sources[b])
        alone, left = refine_positions(
            scenes[b],
            tuple(v[b : b + 1, :count] for v in start),
            SMALL,  # type: ignore[arg-type]
        )
        torch.testing.assert_close(left[0], residual[b], rtol=1e-7, atol=0)
        near = {"rtol": 0, "atol": 1e-3}
        torch.testing.assert_close(alone.phi[0], found.phi[b, :count], **near)
        torch.testing.assert_close(alone.theta[0], found.theta[b, :count], **near)


def test_several_starts_of_a_scene_are_independent(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 5)
    measurements = Measurements.of(scenes, SMALL, "independent")
    starts = torch.stack([torch.stack(around(scenes, seed + i, 0.2)[:3], -1) for i in range(3)], 1)
    starts[..., 2] = 1 / starts[..., 2]
    mask = scenes.mask[:, None].expand(-1, 3, -1)
    x, fit = descend(measurements, starts, mask, steps=3, tolerance=0.0)
    for p in range(3):
        one, only = descend(measurements, starts[:, p : p + 1], mask[:, :1], steps=3, tolerance=0.0)
        torch.testing.assert_close(only.cost[:, 0], fit.cost[:, p], rtol=1e-7, atol=0)
        torch.testing.assert_close(one[:, 0][scenes.mask], x[:, p][scenes.mask], rtol=0, atol=1e-6)


# Awkward input


def test_coinciding_sources_and_dead_channels_stay_finite(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 4, min_sources=3)
    phi, theta, r, mask = around(scenes, seed, 0.1)
    for value in (phi, theta, r):
        value[0] = value[0, :1]  # three times the same place
        value[1, 1] = value[1, 0] * (1 + 1e-9)
    h, codes, y = scenes.h.clone(), scenes.codes.clone(), scenes.y.clone()
    h[2] = 0
    codes[3, :2] = 0  # two snapshots of the fourth scene see nothing
    y[3, :2] = 0
    dead = dataclasses.replace(scenes, h=h, codes=codes, y=y)
    found, residual = refine_positions(dead, (phi, theta, r, mask), SMALL)
    for value in (found.phi, found.theta, found.r, residual):
        assert bool(torch.isfinite(value).all())
    energy = torch.view_as_real(dead.y).double().square().sum((1, 2, 3))
    assert float(residual[2]) == pytest.approx(float(energy[2]))
    assert bool((residual <= energy * (1 + 1e-9)).all())


def test_nan_stays_in_its_scene(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 6, min_sources=2)
    start = around(scenes, seed, 0.1)
    clean, clean_residual = refine_positions(scenes, start, SMALL)
    y, h = scenes.y.clone(), scenes.h.clone()
    y[1, 0, 0] = math.nan
    h[4, 0, 0] = math.inf
    found, residual = refine_positions(dataclasses.replace(scenes, y=y, h=h), start, SMALL)
    assert torch.isfinite(residual).tolist() == [True, False, True, True, False, True]
    assert not bool(found.valid[[1, 4]].any())
    others = [0, 2, 3, 5]
    # Smaller batches are rounded differently, and a descent along a flat valley may end elsewhere.
    torch.testing.assert_close(residual[others], clean_residual[others], rtol=1e-3, atol=0)
    assert torch.equal(found.valid[others], clean.valid[others])
    # A start that is not a number is no source.
    start[0][0, 0] = math.nan
    missing, _ = refine_positions(scenes, start, SMALL)
    assert not bool(missing.valid[0, 0])
    assert bool(missing.valid[0, 1])
    assert bool(torch.isfinite(missing.phi).all())


def test_no_scenes_no_sources_and_no_slots(seed: int) -> None:
    scenes = scenes_of(SMALL, seed, 3)
    start = around(scenes, seed, 0.1)
    none = tuple(v[:0] for v in start)
    found, residual = refine_positions(scenes[:0], none, SMALL)  # type: ignore[arg-type]
    assert found.phi.shape == (0, 3)
    assert residual.shape == (0,)
    energy = torch.view_as_real(scenes.y).double().square().sum((1, 2, 3))
    for points in ((*start[:3], torch.zeros_like(scenes.mask)), tuple(v[:, :0] for v in start)):
        found, residual = refine_positions(scenes, points, SMALL)  # type: ignore[arg-type]
        torch.testing.assert_close(residual, energy)
        assert not bool(found.valid.any())


def test_a_source_outside_the_view_ends_at_its_border(seed: int) -> None:
    wide = dataclasses.replace(SMALL, phi_max=1.3)
    scenes = scenes_of(wide, seed, 8, min_sources=1, snr_db_min=40.0, snr_db_max=40.0)
    one = scenes.mask & (torch.arange(3) == 0)
    narrow = dataclasses.replace(SMALL, phi_max=0.2)
    start = (scenes.phi, scenes.theta, scenes.r, one)
    found, _ = refine_positions(scenes, start, narrow)
    assert bool((found.phi.abs() <= 0.2).all())
    lower, upper, _ = field_of_view(narrow)
    assert float(upper[0]) == 0.2
    assert float(lower[2]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"symbols": "fixed"}, "symbols: got 'fixed'"),
        ({"steps": -1}, "steps: got -1"),
    ],
)
def test_wrong_options_are_refused(seed: int, change: dict[str, Any], message: str) -> None:
    scenes = scenes_of(SMALL, seed, 2)
    with pytest.raises(ValueError, match=message):
        refine_positions(scenes, around(scenes, seed, 0.1), SMALL, **change)
    with pytest.raises(ValueError, match=r"expected four of \[2, K\]"):
        refine_positions(scenes[:2], around(scenes[:1], seed, 0.1), SMALL)
