# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite is what it says, for everyone and whatever else is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation_helpers import SYSTEM, small_suite
from training_helpers import same

from ris_pytorch_pipeline.configs import ConfigError, SystemConfig
from ris_pytorch_pipeline.geometry import to_cartesian
from ris_pytorch_pipeline.simulate import Simulator, true_steering
from ris_pytorch_pipeline.suite import BLOCK, COUNTS, SNRS_DB, VERSION, Cell, Suite


def equal(one, other) -> bool:
    return same(dict(one.tensors()), dict(other.tensors()))


def test_the_suite_of_this_version_is_that_of_its_fingerprint() -> None:
    """Another digest means other scenes: raise VERSION, and evaluate everything again."""
    suite = Suite()
    assert (suite.counts, suite.snrs_db) == (COUNTS, SNRS_DB) and len(suite.cells) == 24
    assert Suite((1,), (5.0,), 7).fingerprint() == suite.fingerprint()
    assert (VERSION, suite.fingerprint()) == (1, "a43b3a5e40f66b3b")


def test_cells_and_sizes_are_independent() -> None:
    cell = Cell(2, 10.0)
    large = small_suite(2 * BLOCK + 5, (1, 2, 3), (5.0, 10.0))
    small = small_suite(7, (2,), (10.0,))
    many, few = large.draw(cell, 0, large.scenes), small.draw(cell, 0, small.scenes)
    assert len(many.scenes) == 2 * BLOCK + 5 == len(many.symbols) == len(many.noise_power)
    assert equal(many.scenes[:7], few.scenes)
    assert torch.equal(many.symbols[:7], few.symbols)
    rest = large.draw(cell, BLOCK, BLOCK + 3)
    assert equal(many.scenes[BLOCK : BLOCK + 3], rest.scenes)
    assert torch.equal(many.noise_power[BLOCK : BLOCK + 3], rest.noise_power)
    # No two blocks or cells share a scene.
    others = [large.draw(c, 0, 1).scenes for c in large.cells]
    channels = torch.view_as_real(torch.stack([s.h[0] for s in [*others, rest.scenes]])).flatten(1)
    assert torch.unique(channels, dim=0).shape[0] == len(channels)


@pytest.mark.parametrize("cell", [Cell(1, -5.0), Cell(3, 20.0)])
def test_scenes_are_as_described(cell: Cell) -> None:
    system = SystemConfig(max_sources=4)
    suite = Suite((1, 3), SNRS_DB, 60, system)
    drawn = suite.draw(cell, 0, 60)
    scenes = drawn.scenes
    assert (scenes.num_sources == cell.num_sources).all()
    assert (scenes.snr_db == cell.snr_db).all()
    assert scenes.phi.shape == (60, 4) and (scenes.r[~scenes.mask] == system.r_max).all()
    assert (scenes.power[~scenes.mask] == 0).all() and (scenes.phi[~scenes.mask] == 0).all()
    torch.testing.assert_close(scenes.power.sum(1), torch.ones(60))
    places = to_cartesian(scenes.phi, scenes.theta, scenes.r)[:, : cell.num_sources]
    first, second = torch.triu_indices(cell.num_sources, cell.num_sources, 1)
    gaps = torch.cdist(places, places)[:, first, second]
    assert (gaps >= 0.5).all()
    phases = torch.angle(scenes.codes) / (math.pi / 4)
    torch.testing.assert_close(phases, phases.round(), rtol=0, atol=1e-5)
    torch.testing.assert_close(scenes.codes.abs(), torch.ones(60, 16, 144))
    # The symbols differ between snapshots, and with the noise they make up the measurements.
    assert drawn.symbols[:, :, 0].std(1).min() > 0.1
    noise = scenes.y - signal(system, drawn)
    power = noise.abs().square().mean((1, 2)).double()
    assert ((power / drawn.noise_power - 1).abs() < 6 / 16).all()
    ratio = signal(system, drawn).abs().square().mean((1, 2)).double() / drawn.noise_power
    torch.testing.assert_close(
        10 * ratio.log10(), torch.full_like(ratio, cell.snr_db), rtol=0, atol=1e-4
    )


def signal(system, drawn):
    s = drawn.scenes
    return ((drawn.symbols @ true_steering(system, s).mT) * s.codes) @ s.h.mT


def test_a_simulator_gives_the_same_scenes_with_and_without_their_secrets() -> None:
    simulation = small_suite().simulation(Cell(2, 5.0))
    one, other = (Simulator(SYSTEM, simulation, seed=1, split="x") for _ in range(2))
    assert equal(one.batch(5), other.draw(5).scenes)


def test_what_is_not_in_the_suite_is_refused() -> None:
    for arguments, message in (
        ({"counts": (4,)}, r"counts is \[4\], expected some of"),
        ({"counts": (1, 1)}, "each once"),
        ({"counts": ()}, "expected some of"),
        ({"counts": (0,)}, r"counts is \[0\]"),
        ({"snrs_db": (3.0,)}, "snrs_db is"),
        ({"scenes": 0}, "scenes is 0, expected at least 1"),
        ({"system": SYSTEM}, "system.max_sources is 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            Suite(**arguments)
    with pytest.raises(ValueError, match="scenes 3 to 5"):
        small_suite().draw(Cell(1, 0.0), 3, 5)
