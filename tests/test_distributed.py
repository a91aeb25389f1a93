# SPDX-License-Identifier: Apache-2.0
"""A training in several processes is the training of one, and all of them end together."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from process_helpers import Team
from training_helpers import CPU, assert_same_run, experiment, same, with_nan

from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.cli import main
from ris_pytorch_pipeline.configs import (
    ConfigError,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SystemConfig,
    TrainConfig,
)
from ris_pytorch_pipeline.data import everything, open_scenes
from ris_pytorch_pipeline.distributed import Processes, training_processes
from ris_pytorch_pipeline.interrupts import DeferredInterrupt
from ris_pytorch_pipeline.model import infer
from ris_pytorch_pipeline.shards import ShardError, write_shards
from ris_pytorch_pipeline.simulate import Scenes
from ris_pytorch_pipeline.train import fit
from ris_pytorch_pipeline.trainer import Trainer

FULL = bool(os.environ.get("RISKERNELS_FULL_DISTRIBUTED"))
"""Train networks of the default size in the comparison with one process."""
KILLS = int(os.environ.get("RISKERNELS_KILLS", "3"))
"""Rounds of the test that kills one of several processes at a random moment."""
TOLERANCE = 1e-5


def without_dropout(config: ExperimentConfig) -> ExperimentConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))


def uneven(**train) -> ExperimentConfig:
    """50 steps on batches of 9, 9 and 1 scenes, the last two of an epoch's 20 in short groups."""
    config = without_dropout(experiment(DataConfig(train_samples=172, val_samples=10)))
    options = dict(epochs=5, batch_size=9, accumulate=2, device="cpu", log_every=10, warmup_steps=5)
    if FULL:
        system, model = SystemConfig(), ModelConfig()
        config = dataclasses.replace(config, system=system, model=model)
    return dataclasses.replace(config, train=TrainConfig(**{**options, **train}))


def without_influence(name: str, width: int) -> slice:
    """The entries of a weight that softmax takes out again: a number common to all its inputs.

    Their gradient is rounding, which Adam scales to full steps in directions of its own.
    """
    if name == "power.bias":
        return slice(None)
    return slice(0, width) if name.endswith("key_value.bias") else slice(0)


def largest_difference(one: torch.nn.Module, other: torch.nn.Module, width: int) -> float:
    """Over all weights, of the difference relative to the weight's largest entry."""
    worst = 0.0
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        difference = (a - b).abs()
        difference[without_influence(name, width)] = 0
        worst = max(worst, float(difference.max() / a.abs().max()))
    return worst


def test_weights_without_influence_have_none():
    torch.manual_seed(1)
    trainer = Trainer(without_dropout(experiment()), CPU)
    scenes, net = trainer.data.validation[0], trainer.net.eval()
    with torch.no_grad():
        before = infer(net, scenes).prediction
        for name, weight in net.named_parameters():
            part = without_influence(name, net.model.width)
            weight[part] += (
                torch.randn(1) if name == "power.bias" else torch.randn_like(weight[part])
            )
        after = infer(net, scenes).prediction
    for name in ("factor", "phi", "theta", "r", "existence"):
        torch.testing.assert_close(
            getattr(before, name), getattr(after, name), rtol=2e-5, atol=2e-6
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of :func:`uneven` in one process."""
    folder = tmp_path_factory.mktemp("alone")
    fit(uneven(), folder, quiet=True)
    return folder


@pytest.mark.lasts(20)
@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_take_the_steps_of_one(alone, tmp_path, size):
    with Team(size, lambda rank: fit(uneven(), tmp_path / "run") and None, tmp_path) as team:
        assert team.wait() == [0] * size
    assert "validation loss" in team.printed(0)
    assert [team.printed(rank) for rank in range(1, size)] == [""] * (size - 1)
    worst = {}
    for name in ("last", "best"):
        one, other = (load_checkpoint(folder / name) for folder in (alone, tmp_path / "run"))
        worst[name] = largest_difference(one.net, other.net, one.net.model.width)
    counters = [load_checkpoint(f / "last").state["counters"] for f in (alone, tmp_path / "run")]
    assert counters[1]["real_steps"] == 50 == counters[0]["real_steps"]
    for one, other in zip(*(c["history"] for c in counters), strict=True):
        assert one.keys() == other.keys()
        worst |= {
            k: max(worst.get(k, 0), abs(one[k] - other[k]) / max(abs(one[k]), 1e-2)) for k in one
        }
    print({name: f"{value:.1e}" for name, value in worst.items()})
    assert max(worst.values()) < TOLERANCE


@pytest.mark.parametrize("kind", ["simulated", "shards"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_shares_of_a_batch_are_the_batch(tmp_path, kind, size):
    data = DataConfig(train_samples=25, val_samples=18)
    if kind == "shards":
        config = experiment()
        write_shards(
            tmp_path / "s", config.system, config.simulation, samples=43, shard_size=20, seed=1
        )
        data = dataclasses.replace(data, shards=str(tmp_path / "s"))
    config = experiment(data)

    def share(rank: int):
        processes = Processes(CPU)
        processes.rank, processes.size = rank, size
        return processes.share

    whole = open_scenes(config, CPU)
    parts = [open_scenes(config, CPU, share(rank)) for rank in range(size)]
    assert all(part.batch_sizes == whole.batch_sizes == [8, 8, 8, 1] for part in parts)
    epochs = [list(batches) for batches in zip(*(part.epoch() for part in parts), strict=True)]
    for scenes, shares in zip(whole.epoch(), epochs, strict=True):
        assert len(shares[0]) and max(map(len, shares)) - min(map(len, shares)) <= 1
        together = Scenes.concat(shares)
        for (name, one), (_, other) in zip(scenes.tensors(), together.tensors(), strict=True):
            if kind == "simulated" and name in ("y", "h"):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(one, other), name
    # As many processes as there may be continue at the same place.
    assert all(same(part.state_dict(), whole.state_dict()) for part in parts)
    held = [scenes.phi for part in parts for scenes in part.validation]
    expected = torch.cat([scenes.phi for scenes in whole.validation])
    assert all(map(len, held))
    assert torch.equal(torch.cat(held).flatten().sort()[0], expected.flatten().sort()[0])


def test_a_process_alone_has_everything():
    assert all(Processes(CPU).share(n) == everything(n) == slice(0, n) for n in (0, 1, 7))


def poisoned_fit(rank: int, size: int, folder: Path) -> None:
    """Steps 2, 4 and 6 are not finite: a sample, a gradient, the value of the loss alone."""
    real, steps = Trainer.train_step, []

    def train_step(trainer, batches):
        steps.append(None)
        number = len(steps)
        hook = None
        last = rank == size - 1
        if number == 2 and last:
            batches = [with_nan(batches[0], row=-1), *batches[1:]]
        if number == 4 and rank == 0:
            weight = trainer.net.existence.weight
            hook = weight.register_hook(lambda grad: torch.full_like(grad, math.inf))
        if number == 6 and last:
            per_scene = trainer.loss.per_scene
            trainer.loss.per_scene = lambda *a: {
                k: v.detach() * math.nan if k == "margin" else v for k, v in per_scene(*a).items()
            }
        report, means = real(trainer, batches)
        if number == 6 and last:
            trainer.loss.per_scene = per_scene
        if hook is not None:
            hook.remove()
        assert report.stepped is (number not in (2, 4, 6))
        return report, means

    Trainer.train_step = train_step
    config = without_dropout(experiment(epochs=2))
    result = fit(config, folder, quiet=True)
    assert result.skipped_steps == 3 and len(steps) == 8


def test_what_is_not_finite_in_one_process_is_skipped_in_all(tmp_path):
    with Team(1, lambda rank: None, tmp_path / "nothing") as team:
        assert team.wait() == [0]
    with Team(2, lambda rank: poisoned_fit(rank, 2, tmp_path / "two"), tmp_path) as team:
        assert team.wait() == [0, 0], [team.error(rank) for rank in range(2)]

    def one_process(rank: int) -> None:
        os.environ["WORLD_SIZE"] = "1"
        poisoned_fit(0, 1, tmp_path / "one")

    with Team(1, one_process, tmp_path) as team:
        assert team.wait() == [0], team.error(0)
    one, two = (load_checkpoint(tmp_path / name / "last") for name in ("one", "two"))
    assert one.state["skipped"] == two.state["skipped"] == 3
    assert largest_difference(one.net, two.net, one.net.model.width) < TOLERANCE


def signal_at(step: int, action) -> None:
    """Call ``action`` when this process begins a step, counted from its start."""
    real, steps = Trainer.train_step, []

    def train_step(trainer, batches):
        steps.append(None)
        if len(steps) == step:
            action()
        return real(trainer, batches)

    Trainer.train_step = train_step


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[ExperimentConfig, Path, float]:
    """A configuration with dropout, its run in two processes without a stop, and how long it took.

    Rank 1 may not change anything in the folder.
    """
    folder = tmp_path_factory.mktemp("pair")
    config = experiment(DataConfig(train_samples=60, val_samples=12), epochs=3, checkpoint_every=2)
    started = time.monotonic()

    def watched(rank: int) -> None:
        if rank == 1:
            refuse_changes(folder / "run")
        fit(config, folder / "run")

    with Team(2, watched, folder) as team:
        assert team.wait() == [0, 0], team.error(1)
    assert team.printed(1) == ""
    return config, folder / "run", time.monotonic() - started


class ChangedError(BaseException):
    pass


def refuse_changes(folder: Path) -> None:
    """From here on this process changes no file or folder in ``folder``, and makes none."""
    changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"}

    def hook(event: str, args: tuple) -> None:
        if not args or not str(args[0]).startswith(str(folder)):
            return
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in changes:
            raise ChangedError(event, args)

    sys.addaudithook(hook)


def test_changes_are_refused(tmp_path):
    def work(rank: int) -> None:
        refuse_changes(tmp_path / "run")
        for change in (
            lambda: (tmp_path / "run").mkdir(),
            lambda: (tmp_path / "run").write_text(""),
        ):
            with pytest.raises(ChangedError):
                change()

    with Team(1, work, tmp_path) as team:
        assert team.wait() == [0] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "rank", "step"), [(signal.SIGTERM, 1, 5), (signal.SIGINT, 0, 8)]
)
def test_a_signal_to_one_process_stops_all_after_the_same_step(pair, tmp_path, number, rank, step):
    config, straight, _ = pair
    folder = tmp_path / "run"

    def stopped(mine: int) -> None:
        if mine == rank:
            signal_at(step, lambda: signal.raise_signal(number))
        fit(config, folder, quiet=True)

    with Team(2, stopped, tmp_path) as team:
        assert team.wait() == [128 + number] * 2
        expected = f"Interrupted: saved after step {step} of 24 in "
        assert all(team.error(one).startswith(expected) for one in range(2))
    with Team(
        2, lambda mine: fit(config, folder, resume=True, quiet=True) and None, tmp_path
    ) as team:
        assert team.wait() == [0, 0]
    assert_same_run(straight, folder)


def test_dropout_differs_between_processes(pair):
    first, second = load_checkpoint(pair[1] / "last").state["random"]["cpu"]
    assert not torch.equal(first, second)


@pytest.mark.lasts(20)
def test_one_of_several_is_killed_at_random_moments(pair, tmp_path, seed):
    """The others end with a clear error, and all continue where the run was saved."""
    config, straight, length = pair
    rng = random.Random(seed)

    def train(folder: Path, victim: int, delay: float) -> Team:
        def work(rank: int) -> None:
            if rank == victim:
                timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
                timer.daemon = True
                timer.start()
            fit(config, folder / "run", resume=True, quiet=True)

        return Team(2, work, folder)

    for number in range(KILLS):
        folder, victim = tmp_path / str(number), number % 2
        with train(folder, victim, rng.uniform(0, length)) as team:
            killed, survivor = team.wait(victim, 1 - victim)
            assert killed in (0, -signal.SIGKILL)
            # One that is killed after its last word to the others leaves them to their end.
            if survivor != 0:
                assert team.error(1 - victim).startswith("LostProcessError: ")
        with train(folder, victim=-1, delay=0.0) as team:
            assert team.wait() == [0, 0]
        assert_same_run(straight, folder / "run")


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_ends_all_with_a_clear_error(tmp_path, victim):
    config = experiment(process_timeout=60)

    def killed(rank: int) -> None:
        if rank == victim:
            signal_at(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        fit(config, tmp_path / "run", quiet=True)

    with Team(3, killed, tmp_path) as team:
        assert team.wait(victim) == [-signal.SIGKILL]
        died, others = time.monotonic(), [rank for rank in range(3) if rank != victim]
        assert team.wait(*others) == [1, 1]
        assert time.monotonic() - died < 30
        for rank in others:
            assert re.match(
                rf"LostProcessError: process {rank} of 3 stopped, because another one was killed "
                r"or cannot be reached \(.*\); --resume auto goes on",
                team.error(rank),
            )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_ends_the_others_within_the_timeout(tmp_path, victim):
    config = experiment(process_timeout=3)

    def hanging(rank: int) -> None:
        if rank == victim:
            signal_at(2, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        fit(config, tmp_path / "run", quiet=True)

    with Team(2, hanging, tmp_path) as team:
        started = time.monotonic()
        assert team.wait(1 - victim) == [1]
        assert 3 <= time.monotonic() - started < 60
        assert "did not answer within train.process_timeout = 3 s" in team.error(1 - victim)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_process_is_told_to_the_others(tmp_path, failing):
    def work(rank: int) -> None:
        def fail():
            raise ShardError("00003.y.npy: missing")

        if rank == failing:
            signal_at(2, fail)
        fit(experiment(), tmp_path / "run", quiet=True)

    with Team(2, work, tmp_path) as team:
        assert team.wait() == [1, 1]
        assert team.error(failing) == "ShardError: 00003.y.npy: missing"
        other = 1 - failing
        assert team.error(other) == (
            f"LostProcessError: process {other} of 2 stopped, because process {failing} failed: "
            "00003.y.npy: missing"
        )


def test_settings_that_differ_are_refused(tmp_path):
    def work(rank: int) -> None:
        fit(experiment(lr_head=1e-3 * (1 + rank)), tmp_path / "run", quiet=True)

    with Team(2, work, tmp_path) as team:
        assert team.wait() == [1, 1]
        for rank in range(2):
            assert "ConfigError: process(es) [1] have another configuration" in team.error(rank)


def test_weights_that_drift_apart_are_noticed(tmp_path):
    def work(rank: int) -> None:
        real = Trainer.train_epoch

        def train_epoch(trainer, *args):
            metrics = real(trainer, *args)
            with torch.no_grad():
                trainer.net.power.bias += 1e-7 * rank
            return metrics

        Trainer.train_epoch = train_epoch
        fit(experiment(), tmp_path / "run", quiet=True)

    with Team(2, work, tmp_path) as team:
        assert team.wait() == [1, 1]
        assert "the weights of process(es) [1] are no longer those of process 0" in team.error(0)


def test_another_number_of_processes(pair, alone, tmp_path):
    config, run, _ = pair
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=4))
    with pytest.raises(
        ConfigError, match=r"saved by 2 process\(es\) with a random stream of dropout"
    ):
        fit(longer, run, resume=True, quiet=True)
    if FULL:
        pytest.skip("the small runs are continued")

    def stopped(rank: int) -> None:
        signal_at(25, lambda: signal.raise_signal(signal.SIGTERM))
        fit(uneven(), tmp_path / "run", quiet=True)

    with Team(3, stopped, tmp_path) as team:
        assert team.wait() == [143] * 3
    fit(uneven(), tmp_path / "run", resume=True, quiet=True)
    one, other = (load_checkpoint(folder / "last").net for folder in (alone, tmp_path / "run"))
    assert largest_difference(one, other, one.model.width) < TOLERANCE


def test_two_trainings_do_not_share_a_folder(tmp_path, monkeypatch):
    config = experiment(epochs=1)
    monkeypatch.setattr(Trainer, "run_epoch", lambda *a: meanwhile())

    class DoneError(Exception):
        pass

    def meanwhile():
        monkeypatch.undo()
        with Team(
            2, lambda rank: fit(config, tmp_path / "run", quiet=True) and None, tmp_path
        ) as team:
            assert team.wait() == [1, 1]
            assert "another process is training there" in team.error(0)
            assert "because process 0 failed: " in team.error(1)
        raise DoneError

    with pytest.raises(DoneError):
        fit(config, tmp_path / "run", quiet=True)


def test_the_environment_is_checked(monkeypatch, tmp_path, capsys):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with training_processes(experiment()) as processes:
        assert processes.size == 1 and not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"):
        fit(experiment(), tmp_path, quiet=True)
    assert main(["hpo", "--out", str(tmp_path / "hpo")]) == 2
    assert "hpo: started as 2 processes" in capsys.readouterr().err
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match="each of several processes has a GPU of its own"):
        fit(experiment(device="cuda:0"), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="process_timeout"):
        experiment(process_timeout=0)
    assert list(tmp_path.iterdir()) == []


def test_a_patient_interrupt_stays():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with DeferredInterrupt(patient=True):
            pass
        assert {number: signal.getsignal(number) for number in before} == before
        with DeferredInterrupt(patient=True) as interrupt:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.signum == signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
