# SPDX-License-Identifier: Apache-2.0
"""Recipes, and what their networks are not told."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ris_pytorch_pipeline import cli
from ris_pytorch_pipeline.configs import ConfigError, ModelConfig, SystemConfig
from ris_pytorch_pipeline.covariance import CovarianceConfig
from ris_pytorch_pipeline.model import LocalizationNet
from ris_pytorch_pipeline.recipes import RECIPES, recipe
from ris_pytorch_pipeline.simulate import SimulationConfig, Simulator

SYSTEM = SystemConfig(n_h=4, n_v=4, antennas=4, snapshots=4)


@pytest.mark.parametrize("known", [True, False])
def test_only_a_network_that_knows_the_snr_depends_on_it(known):
    model = ModelConfig(channels=4, width=16, heads=2, layers=1, map_ranges=2, known_snr=known)
    net = LocalizationNet(SYSTEM, model, CovarianceConfig()).eval()
    scenes = Simulator(SYSTEM, SimulationConfig(), seed=0, split="test").batch(3)
    told = [
        net(dataclasses.replace(scenes, snr_db=torch.full_like(scenes.snr_db, value)))
        for value in (-5.0, 20.0)
    ]
    same = all(
        torch.equal(getattr(told[0], name), getattr(told[1], name))
        for name in ("factor", "phi", "theta", "r", "existence")
    )
    assert same != known


def test_no_recipe_knows_the_snr_and_all_draw_their_data():
    for config in RECIPES.values():
        assert not config.model.known_snr and config.data.shards is None
    with pytest.raises(ConfigError, match="got 'none', expected one of default"):
        recipe("none")


def test_the_command_trains_what_the_recipe_says(tmp_path, capsys):
    out = str(tmp_path / "run")
    # Options given beside the recipe override it.
    small = ["--system.n_h", "4", "--system.n_v", "4", "--system.snapshots", "4"]
    small += ["--data.train_samples", "16", "--data.val_samples", "8", "--train.batch_size", "8"]
    small += ["--train.epochs", "1", "--model.width", "16", "--model.channels", "4"]
    assert cli.main(["train", "--recipe", "default", "--out", out, *small]) == 0
    saved = (tmp_path / "run" / "config.json").read_text()
    assert '"known_snr": false' in saved and '"warmup_steps": 100' in saved
