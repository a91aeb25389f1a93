# SPDX-License-Identifier: Apache-2.0
"""A small experiment and what the training tests do with it."""

import dataclasses
import json
import math

import torch

from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SystemConfig,
    TrainConfig,
)
from ris_pytorch_pipeline.simulate import Simulator
from ris_pytorch_pipeline.train import Trainer

CPU = torch.device("cpu")


def experiment(data=None, **train):
    options = {"epochs": 2, "batch_size": 8, "warmup_steps": 2, "swa_start": 0.5, "log_every": 2}
    return ExperimentConfig(
        system=SystemConfig(n_h=4, n_v=3, antennas=4, snapshots=3, max_sources=2),
        model=ModelConfig(
            channels=8, conv_blocks=1, map_ranges=2, width=16, heads=2, layers=1, dropout=0.1
        ),
        data=data or DataConfig(train_samples=28, val_samples=12),
        train=TrainConfig(**{**options, "device": "cpu", **train}),
    )


def make_trainer(**train):
    torch.manual_seed(0)
    trainer = Trainer(experiment(**train), CPU)
    trainer.guard.scaler = torch.amp.GradScaler("cpu", enabled=True)
    return trainer


def scenes_of(trainer, *sizes):
    config = trainer.config
    simulator = Simulator(config.system, config.simulation, seed=9, split="test")
    return [simulator.batch(size) for size in sizes]


def with_nan(scenes, row=0):
    y = scenes.y.clone()
    y[row, 0, 0] = math.nan
    return dataclasses.replace(scenes, y=y)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one, other):
    """Weights, states and records of two runs are bitwise the same."""
    for name in ("last", "best"):
        a, b = load_checkpoint(one / name), load_checkpoint(other / name)
        assert same(a.net.state_dict(), b.net.state_dict())
        assert same(a.state, b.state)
    records = [
        [r for r in read_metrics(folder) if r["kind"] != "checklist"] for folder in (one, other)
    ]
    assert records[0] == records[1]
