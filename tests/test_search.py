# SPDX-License-Identifier: Apache-2.0
"""Searches whose workers are killed, interrupted and replaced: every trial once, none lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from process_helpers import in_a_child
from search_helpers import STORAGES, empty_storage, search_options
from training_helpers import read_metrics, same

import ris_pytorch_pipeline.train as train_module
from ris_pytorch_pipeline import workers
from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import ExperimentConfig
from ris_pytorch_pipeline.hpo import HpoError, HpoOptions, base_config, load_best, run
from ris_pytorch_pipeline.interrupts import Interrupted
from ris_pytorch_pipeline.search_space import apply_parameters
from ris_pytorch_pipeline.slots import (
    ATTEMPT,
    CONTINUES,
    INTERRUPTIONS,
    MAX_INTERRUPTIONS,
    QUEUED,
    SLOT,
)
from ris_pytorch_pipeline.storage import find_storage
from ris_pytorch_pipeline.trainer import Trainer
from ris_pytorch_pipeline.workers import threads_per_worker

KILLS = int(os.environ.get("RISKERNELS_SEARCH_KILLS", "6"))
"""Workers killed in the middle of a trial; four times as many trials are run."""
STATES = optuna.trial.TrialState


def trials(options: HpoOptions, count: int = 2) -> list[optuna.trial.FrozenTrial]:
    storage = find_storage(options.storage, Path(options.out), count).open()
    return optuna.load_study(study_name=options.name, storage=storage).trials


def assert_best(options: HpoOptions) -> None:
    """Both ``best.json`` hold the best trial of the study."""
    done = [t for t in trials(options) if t.state == STATES.COMPLETE]
    best = min(done, key=lambda t: t.value or 0.0)
    for folder in (Path(options.out), options.folder):
        report = json.loads((folder / "best.json").read_text())
        assert (report["trial"], report["value"]) == (best.number, best.value)
        assert load_best(folder / "best.json") == apply_parameters(
            base_config(options), best.params
        )


def recording_worker(options: HpoOptions, record: Path) -> None:
    """A worker that writes down when a training starts and when it is through."""
    torch.set_num_threads(1)
    real, output = train_module.fit, record.with_suffix(f".{os.getpid()}").open("w")
    sys.stdout = sys.stderr = output

    def recorded(config: ExperimentConfig, folder: Path, **how: Any) -> Any:
        def note(word: str) -> None:
            with record.open("a") as file:
                file.write(f"{os.getpid()} {word} {folder.name}\n")

        note("start")
        result = real(config, folder, **how)
        note("end")
        return result

    train_module.fit = recorded
    run(options)
    output.flush()


@pytest.mark.parametrize("kind", STORAGES)
def test_killed_workers_lose_no_trial_and_run_none_twice(
    tmp_path: Path, seed: int, kind: str
) -> None:
    """Four workers, some killed at a random moment of a trial; every second one is replaced."""
    total, rng, record = 4 * KILLS, random.Random(seed), tmp_path / "record"
    storage = empty_storage(kind, tmp_path, "ris-narrow")
    options = search_options(tmp_path / "out", n_trials=total, storage=storage, grace_period=20.0)
    (tmp_path / "out").mkdir()
    record.touch()

    def start() -> int:
        return in_a_child(lambda: recording_worker(options, record))

    def recorded() -> list[list[str]]:
        return [line.split() for line in record.read_text().splitlines()]

    def training(child: int) -> bool:
        words = recorded()
        own = [word for pid, word, _ in words if int(pid) == child]
        return bool(own) and own[-1] == "start"

    alive, killed, late = [start() for _ in range(4)], 0, 0
    while killed < KILLS:
        victim = rng.choice(alive)
        while sum(word == "end" for _, word, _ in recorded()) < 3 * killed or not training(victim):
            assert os.waitpid(victim, os.WNOHANG) == (0, 0)
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(victim, signal.SIGKILL)
        assert os.waitpid(victim, 0)[1] == signal.SIGKILL
        alive.remove(victim)
        # Only those in the middle of a training count; some had come through it.
        killed, late = killed + training(victim), late + (not training(victim))
        if len(alive) < 3 or killed % 2:
            alive.append(start())
    assert [os.waitpid(child, 0)[1] for child in alive] == [0] * len(alive)

    done = [t for t in trials(options) if t.state == STATES.COMPLETE]
    failed = [t for t in trials(options) if t.state == STATES.FAIL and t.params]
    assert len(done) == total and all(t.state.is_finished() for t in trials(options))
    assert sorted(t.user_attrs[SLOT] for t in done) == list(range(total))
    assert len({tuple(t.params.values()) for t in done}) == total
    # The record agrees: one whole training for each finished trial, in one try.
    words = recorded()
    ended = Counter(name for _, word, name in words if word == "end")
    assert set(ended.values()) == {1} and sum(ended.values()) <= total + late
    assert {f"trial_{t.number:04d}" for t in done} <= set(ended)
    assert max(Counter(name for _, word, name in words if word == "start").values()) == 1
    # What was killed was tried again, with the same parameters.
    assert KILLS <= len(failed) <= KILLS + late
    attempts = {(t.user_attrs[SLOT], t.user_attrs[ATTEMPT]): t for t in trials(options)}
    for trial in failed:
        again = attempts[trial.user_attrs[SLOT], trial.user_attrs[ATTEMPT] + 1]
        same_parameters = trial.params.items() <= again.user_attrs[QUEUED].items()
        assert same_parameters == (trial.user_attrs[INTERRUPTIONS] + 1 < MAX_INTERRUPTIONS)
    assert_best(options)
    goes_on = [t for t in done if t.user_attrs[CONTINUES]]
    print(f"{total} trials, {killed} killed, {late} late, {len(goes_on)} retried to the end")


def test_a_killed_trial_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Bitwise the trial that was never killed, and no step is taken twice but those not saved."""

    def worker(out: Path, kill_before: int | None) -> None:
        torch.set_num_threads(1)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        real, taken = Trainer.train_step, []

        def counted(trainer: Trainer, batches: Any) -> Any:
            taken.append(len(batches))
            if len(taken) == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(trainer, batches)

        Trainer.train_step = counted  # type: ignore[method-assign]
        run(search_options(out, epochs_per_trial=2, storage=str(tmp_path / f"{out.name}.journal")))
        (out / "taken").write_text(str(len(taken)))

    def child(name: str, kill_before: int | None = None) -> int:
        (tmp_path / name).mkdir(exist_ok=True)
        number = in_a_child(lambda: worker(tmp_path / name, kill_before))
        return os.waitpid(number, 0)[1]

    assert child("straight") == 0
    # Steps 1 to 4, saved; 5 and 6, saved; 7; then in the next attempt 7, 8.
    assert child("killed", 8) == signal.SIGKILL
    assert child("killed") == 0
    assert (tmp_path / "straight" / "taken").read_text() == "8"
    assert (tmp_path / "killed" / "taken").read_text() == "2"
    runs = [tmp_path / "straight/ris-narrow/trial_0000", tmp_path / "killed/ris-narrow/trial_0001"]
    for name in ("last", "best"):
        one, other = (load_checkpoint(folder / name) for folder in runs)
        assert same(one.net.state_dict(), other.net.state_dict()) and same(one.state, other.state)
    epochs = [[r for r in read_metrics(folder) if r["kind"] == "epoch"] for folder in runs]
    assert epochs[0] == epochs[1]
    # The pruner sees what the first attempt had reported.
    (straight,), (dead, again) = (
        trials(search_options(tmp_path / name, storage=str(tmp_path / f"{name}.journal")))
        for name in ("straight", "killed")
    )
    assert dead.state == STATES.FAIL and list(dead.intermediate_values) == [0]
    assert again.intermediate_values == straight.intermediate_values
    assert (again.value, again.params) == (straight.value, straight.params)


def test_a_damaged_checkpoint_lets_the_trial_start_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy is verified; what cannot be continued is said, and nothing of it is used."""
    options = search_options(tmp_path)

    def stop(epoch: int) -> None:
        def interrupted(trainer: Trainer, *args: Any) -> Any:
            raise KeyboardInterrupt

        real, taken = Trainer.train_step, []

        def counted(trainer: Trainer, batches: Any) -> Any:
            taken.append(1)
            return (interrupted if len(taken) > epoch else real)(trainer, batches)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "train_step", counted)
            with pytest.raises(KeyboardInterrupt):
                run(options)

    stop(3)
    state = tmp_path / "ris-narrow" / "trial_0000" / "last" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"!")
    assert run(options) == 0
    shown = capsys.readouterr().out
    assert "trial 1 starts anew" in shown and "trial_0000/last/state.safetensors: damaged" in shown
    folder = tmp_path / "ris-narrow" / "trial_0001"
    assert [r["step"] for r in read_metrics(folder) if r["kind"] == "step"] == [1, 4]
    assert [t.state for t in trials(options, 1)] == [STATES.FAIL, STATES.COMPLETE]


# Local processes


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """The processes that a search starts."""
    started: list[subprocess.Popen[str]] = []
    real = subprocess.Popen

    def popen(*args: Any, **kwargs: Any) -> Any:
        started.append(real(*args, **kwargs))
        started[-1].environment = kwargs["env"]  # type: ignore[attr-defined]
        return started[-1]

    monkeypatch.setattr(workers.subprocess, "Popen", popen)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return started


def when_training(options: HpoOptions, act: Any) -> threading.Thread:
    """Call ``act`` as soon as two trials have been saved once."""

    def wait() -> None:
        while len(list(options.folder.glob("trial_*/last"))) < 2:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_search_goes_on_without_a_worker_that_was_killed(
    tmp_path: Path,
    children: list[subprocess.Popen[str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = search_options(tmp_path / "out", n_trials=3, workers=2, train_samples=160)
    thread = when_training(options, lambda: children[0].kill())
    assert run(options) == 0
    thread.join()
    shown = capfd.readouterr().out
    assert "worker 0 was killed by signal 9" in shown and "best of 3 finished trials" in shown
    assert "[1] trial" in shown and "was interrupted: marked failed" in shown
    assert "goes on from the last checkpoint" in shown
    assert Counter(t.state for t in trials(options)) == {STATES.COMPLETE: 3, STATES.FAIL: 1}
    assert_best(options)
    expected = str(threads_per_worker(2))
    assert [c.environment["OMP_NUM_THREADS"] for c in children] == [expected] * 2  # type: ignore


def test_an_interrupted_search_is_continued_by_another_number_of_workers(
    tmp_path: Path,
    children: list[subprocess.Popen[str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = search_options(tmp_path / "out", n_trials=3, workers=2, train_samples=240)
    thread = when_training(options, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="all workers have stopped; the same command") as stop:
        run(options)
    thread.join()
    assert stop.value.status == 143 and [child.returncode for child in children] == [143, 143]
    assert "ris: interrupted: saved after step" in capfd.readouterr().err
    stopped = [t for t in trials(options) if t.state == STATES.FAIL]
    assert 1 <= len(stopped) <= 2
    # One worker, in this process: it finds the journal by itself and continues both trials.
    assert run(search_options(tmp_path / "out", n_trials=3, train_samples=240)) == 0
    shown = capfd.readouterr().out
    assert shown.count("goes on from the last checkpoint") == len(stopped)
    done = [t for t in trials(options) if t.state == STATES.COMPLETE]
    assert sorted(t.user_attrs[SLOT] for t in done) == [0, 1, 2]
    params = [t.params for t in done]
    assert all(t.params in params for t in stopped)
    assert_best(options)
    # Three workers find nothing left to do, and start nothing.
    assert run(search_options(tmp_path / "out", n_trials=3, workers=3, train_samples=240)) == 0
    assert "nothing left to run" in capfd.readouterr().out and len(children) == 2


def test_a_search_without_workers_left_fails(
    tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    options = search_options(tmp_path / "out", n_trials=2, workers=2)

    def kill_all() -> None:
        while len(children) < 2:
            time.sleep(0.01)
        for child in children:
            child.kill()

    thread = threading.Thread(target=kill_all)
    thread.start()
    with pytest.raises(HpoError, match="0 of 2 trials are finished, and no worker is left"):
        run(options)
    thread.join()


def test_an_error_of_a_worker_is_shown_and_fails_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "to_dict", lambda options: {"n_trials": 0})
    with pytest.raises(HpoError, match=r"worker\(s\) \[0, 1\] ended with an error"):
        run(search_options(tmp_path / "out", workers=2))
    assert "[1] ris: error: options: hpo: n_trials is 0" in capfd.readouterr().err
