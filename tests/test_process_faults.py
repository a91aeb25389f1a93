# SPDX-License-Identifier: Apache-2.0
"""The processes of a training stop together, end together and continue together."""

from __future__ import annotations

import dataclasses
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
from process_helpers import Team, before_step
from training_helpers import assert_same_run, experiment

from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.cli import main
from ris_pytorch_pipeline.configs import ConfigError, DataConfig, ExperimentConfig
from ris_pytorch_pipeline.distributed import training_processes
from ris_pytorch_pipeline.interrupts import DeferredInterrupt
from ris_pytorch_pipeline.shards import ShardError
from ris_pytorch_pipeline.train import fit
from ris_pytorch_pipeline.trainer import Trainer

KILLS = int(os.environ.get("RISKERNELS_KILLS", "3"))
"""Rounds of the test that kills one of several processes at a random moment."""


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
            before_step(step, lambda: signal.raise_signal(number))
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
                # Before they have met, nothing tells a process of another's end but the time that
                # it waits, and that is longer than this test.
                before_step(1, timer.start)
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
            before_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
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
            before_step(2, lambda: os.kill(os.getpid(), signal.SIGSTOP))
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
            before_step(2, fail)
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


def test_another_number_of_processes_with_dropout_is_refused(pair):
    config, run, _ = pair
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=4))
    with pytest.raises(ConfigError, match=r"saved by 2 process\(es\) with a random stream of"):
        fit(longer, run, resume=True, quiet=True)


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
