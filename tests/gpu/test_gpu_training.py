# SPDX-License-Identifier: Apache-2.0
"""Training steps on a CUDA device: both covariance forms, and batches made beside the step."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

pytest.importorskip("ris_pytorch_pipeline.train", reason="the pipeline is not installed")

from ris_pytorch_pipeline.configs import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
)
from ris_pytorch_pipeline.data import open_scenes
from ris_pytorch_pipeline.profile import PATHS, ProfileOptions, profile
from ris_pytorch_pipeline.train import Trainer

STEPS = 12


def experiment(**train: object) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(channels=8, conv_blocks=1, width=32, heads=2, layers=1),
        data=DataConfig(train_samples=16 * STEPS, val_samples=8),
        train=TrainConfig(**{"device": "cuda", "batch_size": 16, "amp": False, **train}),
    )


def test_scenes_made_ahead_are_bitwise_those_of_a_plain_loop():
    device = torch.device("cuda")
    plain, ahead = open_scenes(experiment(), device), open_scenes(experiment(), device)
    plain.ahead = lambda batches: batches
    busy = torch.randn(2048, 2048, device=device)
    for _ in range(2):
        with contextlib.closing(ahead.epoch()) as batches:
            for expected in plain.epoch():
                # The consumer's stream is far behind when the batch is handed over.
                for _ in range(4):
                    busy = torch.tanh(busy @ busy)
                got = next(batches)
                for (name, one), (_, other) in zip(got.tensors(), expected.tensors(), strict=True):
                    assert torch.equal(one, other), name
    torch.cuda.synchronize()
    states = ahead.state_dict(), plain.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.mark.parametrize("amp", [False, True])
def test_both_forms_train_alike(amp):
    losses = {}
    for form in ("dense", "factored"):
        torch.manual_seed(0)
        trainer = Trainer(experiment(covariance=form, amp=amp), torch.device("cuda"))
        trainer.net.train()
        with contextlib.closing(trainer.data.epoch()) as batches:
            losses[form] = [trainer.train_step([scenes])[0].loss for scenes in batches]
    # Half precision rounds the same network alike; only the covariance terms differ.
    assert losses["factored"] == pytest.approx(losses["dense"], rel=1e-3 if not amp else 1e-2)


def test_a_profile_of_the_step():
    report = profile(experiment(), ProfileOptions((144,), steps=3, warmup=2))
    assert report["machine"]["gpu"]["name"] == torch.cuda.get_device_name()
    for case in report["cases"]:
        assert case["path"] in PATHS and all(value >= 0 for value in case["phases"].values())
        assert case["step"] > 0
