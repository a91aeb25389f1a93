# SPDX-License-Identifier: Apache-2.0
"""The checklist: its lines, what makes each of them fail, and its exit status."""

import dataclasses
import math
import re

import pytest
import torch

from ris_pytorch_pipeline import checklist
from ris_pytorch_pipeline.checklist import expected_ranks, factor_rank, main, run_checklist
from ris_pytorch_pipeline.checkpoint import save_checkpoint
from ris_pytorch_pipeline.configs import (
    ConfigError,
    CovarianceConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SystemConfig,
    TrainConfig,
)
from ris_pytorch_pipeline.model import LocalizationNet
from ris_pytorch_pipeline.simulate import Simulator

MODEL = ModelConfig(channels=8, conv_blocks=1, width=32, heads=2, layers=1)


def experiment(system=None, **covariance):
    return ExperimentConfig(
        system=system or SystemConfig(),
        model=MODEL,
        covariance=CovarianceConfig(**covariance),
        data=DataConfig(train_samples=8, val_samples=8),
        train=TrainConfig(batch_size=8, device="cpu"),
    )


def make_net(config):
    torch.manual_seed(0)
    return LocalizationNet(config.system, config.model, config.covariance)


def make_scenes(config, batch=8):
    return Simulator(config.system, config.simulation, seed=5, split="test").batch(batch)


@pytest.mark.parametrize(
    ("covariance", "rank"),
    [
        ({}, 21),
        ({"center": True}, 20),
        ({"beta": 0.0}, 5),
        ({"beta": 1.0}, 16),
        ({"loading": 0.1}, 144),
    ],
)
def test_the_lines_of_a_sound_network(covariance, rank):
    config = experiment(**covariance)
    report = run_checklist(config, make_net(config), make_scenes(config))
    text = "\n".join(report.lines)
    assert report.ok, text
    number = r"\d\.\d\de[+-]\d\d"
    assert re.search(rf"^\[GRAD\] backbone={number} head={number} ok=True$", text, re.M)
    assert "[DEBUG] R_pred rank: 5" in report.lines
    assert f"[DEBUG] R_blend rank: {rank}" in report.lines
    for name in ("channel", "loss decreases", "validation finite"):
        assert re.search(rf"^\[CHECK\] {name}: .* ok=True$", text, re.M), name


def test_the_rank_is_capped_at_the_number_of_elements():
    system = SystemConfig(n_h=3, n_v=2, antennas=6, snapshots=8, max_sources=2)
    config = experiment(system)
    assert expected_ranks(config) == (2, 6)
    report = run_checklist(config, make_net(config), make_scenes(config))
    assert "[DEBUG] R_blend rank: 6" in report.lines and report.ok, report.lines


def test_nothing_is_changed():
    config = experiment()
    net, scenes = make_net(config).train(), make_scenes(config)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    run_checklist(config, net, scenes)
    assert torch.equal(random, torch.get_rng_state())
    assert net.training and all(p.grad is None for p in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def failed(report):
    assert not report.ok
    return [line for line in report.lines if "ok=False" in line]


def test_a_dead_head_fails_the_gradient_line():
    config = experiment()
    net = make_net(config)
    net.head_norm.register_forward_hook(lambda module, args, output: output.detach() * 0)
    lines = failed(run_checklist(config, net, make_scenes(config)))
    assert any(line.startswith("[GRAD] backbone=0.00e+00") for line in lines), lines


def test_a_collapsed_factor_fails_the_rank_line():
    config = experiment()
    net = make_net(config)

    def collapse(module, args, prediction):
        factor = prediction.factor
        merged = torch.cat([factor[..., :4], factor[..., :1]], dim=-1)
        return dataclasses.replace(prediction, factor=merged)

    net.register_forward_hook(collapse)
    lines = failed(run_checklist(config, net, make_scenes(config)))
    assert "[DEBUG] R_pred rank: 4 (expected 5) ok=False" in lines


def test_an_empty_or_non_finite_channel_is_found():
    config = experiment()
    scenes = make_scenes(config)
    h = scenes.h.clone()
    h[3] = 0
    report = run_checklist(config, make_net(config), dataclasses.replace(scenes, h=h))
    assert any("missing=1" in line for line in failed(report))
    y = scenes.y.clone()
    y[1, 0, 0] = math.nan
    report = run_checklist(config, make_net(config), dataclasses.replace(scenes, y=y))
    lines = failed(report)
    assert any("non-finite=y" in line for line in lines)
    assert any("validation finite" in line for line in lines)
    assert any(line.startswith("[GRAD]") for line in lines)


def test_a_loss_that_cannot_decrease_fails(monkeypatch):
    monkeypatch.setattr(checklist, "LEARNING_RATE", 0.0)
    config = experiment()
    lines = failed(run_checklist(config, make_net(config), make_scenes(config)))
    assert len(lines) == 1 and lines[0].startswith("[CHECK] loss decreases")


def test_rank_counts_directions_and_not_rounding():
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(3, 20, 4, dtype=torch.complex64, generator=generator)
    mixed = torch.cat([basis, basis @ torch.randn(4, 3, dtype=torch.complex64)], dim=-1)
    assert factor_rank(mixed).tolist() == [4, 4, 4]
    assert factor_rank(torch.cat([basis, 1e-3 * torch.randn_like(basis)], -1)).tolist() == [8] * 3
    assert factor_rank(torch.zeros_like(basis)).tolist() == [0, 0, 0]
    basis[1, 0, 0] = math.nan
    assert factor_rank(basis).tolist() == [4, 0, 4]


def test_main_returns_the_exit_status(capsys, tmp_path, monkeypatch):
    config = experiment()
    assert main(config) == 0
    assert "[DEBUG] R_blend rank: 21" in capsys.readouterr().out
    folder = save_checkpoint(tmp_path / "net", config, make_net(config))
    assert main(checkpoint=folder) == 0
    with pytest.raises(ConfigError, match="beta"):
        main(experiment(beta=0.4), folder)
    with pytest.raises(ConfigError, match="n_h"):
        main(experiment(SystemConfig(n_h=10)), folder)
    monkeypatch.setattr(checklist, "LEARNING_RATE", 0.0)
    assert main(config) == 1
    assert "checklist FAILED" in capsys.readouterr().out
