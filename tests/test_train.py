# SPDX-License-Identifier: Apache-2.0
"""Whole runs: results, continuation, data, early stopping."""

import dataclasses
import io
import math
import signal
import sys

import pytest
import torch
from rich.console import Console
from training_helpers import CPU, experiment, read_metrics, same

from ris_pytorch_pipeline import outcome, progress
from ris_pytorch_pipeline import trainer as trainer_module
from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import (
    ConfigError,
    DataConfig,
)
from ris_pytorch_pipeline.data import open_scenes, resolve_device
from ris_pytorch_pipeline.interrupts import Interrupted
from ris_pytorch_pipeline.model import infer
from ris_pytorch_pipeline.shards import write_shards
from ris_pytorch_pipeline.simulate import Scenes
from ris_pytorch_pipeline.train import Trainer, fit


def test_a_whole_run(tmp_path, capsys):
    data = DataConfig(train_samples=96, val_samples=20)
    config = experiment(data, epochs=4, lr_backbone=3e-3, lr_head=3e-3)
    seen = []
    result = fit(config, tmp_path, on_epoch=lambda epoch, m: seen.append((epoch, m["val_loss"])))
    out = capsys.readouterr().out
    assert "[GRAD] backbone=" in out and "[DEBUG] R_blend rank: 5" in out and "left" in out
    assert result.last_train_loss < result.first_train_loss
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3]
    assert [v for _, v in seen] == [m["val_loss"] for m in result.history]
    assert result.best_val_loss <= min(v for _, v in seen)
    assert result.skipped_steps == 0 and result.checkpoint == tmp_path / "best"
    records = read_metrics(tmp_path)
    kinds = [r["kind"] for r in records]
    assert kinds[0] == "checklist" and kinds.count("epoch") == 4 and "swa" in kinds
    assert sum(m["train_existence"] > 0 for m in result.history) == 4
    loaded = load_checkpoint(result.checkpoint, expect=config.covariance)
    assert loaded.config == config and loaded.state["val_loss"] == result.best_val_loss
    trainer = Trainer(config, CPU)
    again = trainer_module.validate(loaded.net, trainer.loss, trainer.data.validation)
    assert again["total"] == pytest.approx(result.best_val_loss, rel=1e-6)


def test_validation_uses_the_inference_pass_and_the_averaged_weights(tmp_path, monkeypatch):
    seen = []

    def spy(net, scenes, *args):
        result = infer(net, scenes, *args)
        seen.append((net, scenes, result.r_blend.detach()))
        return result

    monkeypatch.setattr(outcome, "infer", spy)
    config = experiment(epochs=1, swa_start=1.0)
    result = fit(config, tmp_path, quiet=True)
    net, scenes, blend = seen[-1]
    loaded = load_checkpoint(result.checkpoint).net
    assert torch.equal(infer(loaded, scenes, config.covariance).r_blend.detach(), blend)
    assert not net.training and loaded.covariance == config.covariance
    last = load_checkpoint(tmp_path / "last")
    assert same(last.state["ema"]["weights"], loaded.state_dict())
    assert not same(last.net.state_dict(), loaded.state_dict())


class StoppedError(Exception):
    pass


def test_a_resumed_run_is_the_uninterrupted_run(tmp_path):
    config = experiment(epochs=3)
    straight = fit(config, tmp_path / "straight", quiet=True)

    def stop(epoch, metrics):
        if epoch == 0:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(config, tmp_path / "resumed", on_epoch=stop, quiet=True)
    # What a run that was killed in its second epoch leaves behind.
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "step", "step": 5, "loss": 0.0}\n{"kind": "st')
    epochs = []
    resumed = fit(
        config,
        tmp_path / "resumed",
        on_epoch=lambda e, m: epochs.append(e),
        resume=True,
        quiet=True,
    )
    assert epochs == [1, 2]
    assert dataclasses.replace(resumed, checkpoint=straight.checkpoint) == straight
    for name in ("last", "best"):
        one, other = (load_checkpoint(tmp_path / run / name) for run in ("straight", "resumed"))
        assert same(one.net.state_dict(), other.net.state_dict())
        assert same(one.state, other.state)
    records = [
        [r for r in read_metrics(tmp_path / run) if r["kind"] != "checklist"]
        for run in ("straight", "resumed")
    ]
    assert records[0] == records[1]
    again = fit(config, tmp_path / "resumed", resume=True, quiet=True)
    assert dataclasses.replace(again, checkpoint=resumed.checkpoint) == resumed
    longer = fit(
        dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=4)),
        tmp_path / "resumed",
        resume=True,
        quiet=True,
    )
    assert len(longer.history) == 4


def test_first_and_last_losses_of_a_short_run_share_no_step(tmp_path, monkeypatch):
    losses, real = [], Trainer.train_step

    def spy(trainer, batches):
        report, terms = real(trainer, batches)
        losses.append(report.loss)
        return report, terms

    monkeypatch.setattr(Trainer, "train_step", spy)
    result = fit(experiment(epochs=1, log_every=10), tmp_path, quiet=True)
    assert len(losses) == 4
    assert result.first_train_loss == pytest.approx(sum(losses[:2]) / 2)
    assert result.last_train_loss == pytest.approx(sum(losses[2:]) / 2)


def test_resume_refuses_another_experiment(tmp_path):
    fit(experiment(epochs=1), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match=r"train\.lr_head: 0\.002 -> 0\.5"):
        fit(experiment(epochs=1, lr_head=0.5), tmp_path, resume=True, quiet=True)
    fit(experiment(epochs=1, lr_head=0.5), tmp_path, quiet=True)


def test_early_stopping(tmp_path, monkeypatch):
    values = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr(trainer_module, "validate", lambda *a: {"total": next(values)})
    config = experiment(epochs=9, patience=2, swa_start=1.0)
    result = fit(config, tmp_path, quiet=True)
    assert len(result.history) == 4 and result.best_val_loss == 2.0
    assert load_checkpoint(result.checkpoint).state["epoch"] == 2


def test_training_from_shards(tmp_path):
    config = experiment()
    write_shards(
        tmp_path / "shards", config.system, config.simulation, samples=40, shard_size=16, seed=1
    )
    data = DataConfig(shards=str(tmp_path / "shards"), train_samples=100, val_samples=10)
    config = experiment(data)
    source = open_scenes(config, CPU)
    assert sum(source.batch_sizes) == 30 and [len(v) for v in source.validation] == [8, 2]
    held, used = set(source.val_indices.tolist()), set(source.train_indices.tolist())
    assert not held & used and held | used == set(range(40))
    first, second = (Scenes.concat(list(source.epoch())).y[:, 0, 0] for _ in range(2))
    assert not torch.equal(first, second)
    key = torch.view_as_real
    assert torch.equal(key(first).sort(0).values, key(second).sort(0).values)
    other_seed = open_scenes(experiment(data, seed=5), CPU)
    assert torch.equal(other_seed.val_indices, source.val_indices)
    result = fit(config, tmp_path / "run", quiet=True)
    assert math.isfinite(result.best_val_loss)
    few = open_scenes(experiment(dataclasses.replace(data, train_samples=9)), CPU)
    assert few.batch_sizes == [8, 1]
    with pytest.raises(ConfigError, match="40 scenes cannot give"):
        open_scenes(experiment(dataclasses.replace(data, val_samples=40)), CPU)
    wider = dataclasses.replace(config, system=dataclasses.replace(config.system, n_h=5))
    with pytest.raises(ConfigError, match="n_h: 4 -> 5"):
        open_scenes(wider, CPU)


def test_simulated_validation_is_fixed_and_not_the_training_data():
    one, other = (open_scenes(experiment(), CPU) for _ in range(2))
    assert torch.equal(one.validation[0].y, other.validation[0].y)
    train = Scenes.concat(list(one.epoch()))
    assert not torch.isin(one.validation[0].phi[:, 0], train.phi[:, 0]).any()


def test_devices():
    assert resolve_device("cpu") == CPU
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=name):
            resolve_device(name)


def test_without_tensorboard_the_run_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    fit(experiment(epochs=1), tmp_path)
    assert "TensorBoard is not installed" in capsys.readouterr().out
    assert any(r["kind"] == "epoch" for r in read_metrics(tmp_path))


def test_a_terminal_gets_a_bar_and_the_records_stay_the_same(tmp_path, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **kw: Console(file=out, force_terminal=True, width=120, **kw)
    )
    fit(experiment(epochs=1), tmp_path)
    text = out.getvalue()
    assert "━" in text and "4/4" in text and "epoch 1/1" in text and "validation loss" in text
    assert "left" not in text
    steps = [r for r in read_metrics(tmp_path) if r["kind"] == "step"]
    assert [r["step"] for r in steps] == [1, 2, 4]
    assert all(r["lr"] > 0 and math.isfinite(r["loss"]) for r in steps)


def test_a_signal_is_not_lost_between_the_steps(tmp_path, monkeypatch):
    """In an epoch's last step, in `on_epoch` that ends the run, and in the run's last step."""
    config, real, told = experiment(epochs=2), Trainer.train_step, []

    def signalled_at(step):
        def train_step(trainer, batches):
            if trainer.steps + 1 == step:
                signal.raise_signal(signal.SIGTERM)
            return real(trainer, batches)

        monkeypatch.setattr(Trainer, "train_step", train_step)

    def ending(epoch, metrics):
        told.append(epoch)
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("pruned")

    signalled_at(4)
    with pytest.raises(Interrupted, match="saved after step 4 of 8"):
        fit(config, tmp_path, on_epoch=ending, quiet=True)
    assert told == []
    signalled_at(None)
    with pytest.raises(Interrupted, match="saved after step 8 of 8"):
        fit(config, tmp_path, on_epoch=ending, resume=True, quiet=True)
    assert told == [1]
    signalled_at(8)
    assert fit(config, tmp_path, quiet=True).signum == signal.SIGTERM
    signalled_at(None)
    assert fit(config, tmp_path, quiet=True).signum is None
