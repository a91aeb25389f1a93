# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, interrupted or cannot write, and continued, is the run that was not."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import in_a_child
from training_helpers import CPU, experiment, read_metrics, same

from ris_pytorch_pipeline import checkpoint as checkpoint_module
from ris_pytorch_pipeline import trainer as trainer_module
from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import ConfigError, DataConfig, ExperimentConfig
from ris_pytorch_pipeline.data import open_scenes
from ris_pytorch_pipeline.durable import write_atomically
from ris_pytorch_pipeline.interrupts import DeferredInterrupt, Interrupted
from ris_pytorch_pipeline.shards import write_shards
from ris_pytorch_pipeline.train import fit
from ris_pytorch_pipeline.trainer import Trainer

KILLS = int(os.environ.get("RISKERNELS_KILLS", "3"))
"""Rounds of the test that kills a training at a random moment."""
EPOCHS = 3


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, states and records of two runs are bitwise the same."""
    for name in ("last", "best"):
        a, b = load_checkpoint(one / name), load_checkpoint(other / name)
        assert same(a.net.state_dict(), b.net.state_dict())
        assert same(a.state, b.state)
    records = [
        [r for r in read_metrics(folder) if r["kind"] != "checklist"] for folder in (one, other)
    ]
    assert records[0] == records[1]


@pytest.fixture(scope="module", params=["simulated", "shards"])
def run(request, tmp_path_factory) -> tuple[ExperimentConfig, Path]:
    """A configuration that saves after every second step, and its run without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    options = dict(epochs=EPOCHS, checkpoint_every=2, accumulate=2)
    data = DataConfig(train_samples=60, val_samples=12)
    if request.param == "shards":
        config = experiment(data)
        write_shards(
            folder / "shards", config.system, config.simulation, samples=72, shard_size=40, seed=1
        )
        data = dataclasses.replace(data, shards=str(folder / "shards"))
    config = experiment(data, **options)
    child = in_a_child(lambda: fit(config, folder / "run", quiet=True) and None)
    assert os.waitpid(child, 0)[1] == 0
    return config, folder / "run"


def test_killed_at_random_moments_and_continued(run, tmp_path, seed):
    """SIGKILL, which no program sees coming, after a random time; then again, until one ends."""
    config, straight = run
    rng = random.Random(seed)
    started = time.monotonic()
    child = in_a_child(lambda: fit(config, tmp_path / "timing", quiet=True) and None)
    assert os.waitpid(child, 0)[1] == 0
    length = time.monotonic() - started
    folder = tmp_path

    def continued() -> None:
        fit(config, folder, resume=True, quiet=True)

    for number in range(KILLS):
        folder, kills = tmp_path / str(number), 0
        while True:
            child = in_a_child(continued)
            if kills < 3:
                time.sleep(rng.uniform(0, length))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            kills += 1
        assert_same_run(straight, folder)
        left = {path.name for path in folder.iterdir()} - {"tensorboard"}
        assert left == {".run.lock", "config.json", "metrics.jsonl", "last", "best"}


@pytest.mark.parametrize(
    ("run", "stop"),
    [("simulated", stop) for stop in range(1, 4 * EPOCHS)] + [("shards", s) for s in (2, 5, 8)],
    indirect=["run"],
)
def test_interrupted_after_any_step(run, tmp_path, monkeypatch, stop):
    config, straight = run
    steps, real = [], Trainer.train_step
    # Whatever was set before: a shell ignores SIGINT for what it starts in the background.
    before = signal.getsignal(signal.SIGINT)

    def counted(trainer, batches):
        steps.append(len(batches))
        if len(steps) == stop:
            signal.raise_signal(signal.SIGINT if stop % 2 else signal.SIGTERM)
        return real(trainer, batches)

    monkeypatch.setattr(Trainer, "train_step", counted)
    with pytest.raises(Interrupted, match=f"saved after step {stop} of 12 in ") as caught:
        fit(config, tmp_path, quiet=True)
    assert caught.value.status == (130 if stop % 2 else 143)
    assert signal.getsignal(signal.SIGINT) is before
    fit(config, tmp_path, resume=True, quiet=True)
    assert len(steps) == 4 * EPOCHS
    assert_same_run(straight, tmp_path)


def test_a_second_interrupt_acts_at_once():
    with DeferredInterrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interrupt.signum == signal.SIGTERM
    found = []
    thread = threading.Thread(target=lambda: found.append(DeferredInterrupt().__enter__().signum))
    thread.start()
    thread.join()
    assert found == [None]


class DiskFullError(OSError):
    pass


@pytest.mark.parametrize("name", ["save_file", "save_config", "sync"])
def test_a_full_disk_keeps_the_last_good_checkpoint(run, tmp_path, monkeypatch, name):
    config, straight = run
    count, real = [], getattr(checkpoint_module, name)

    def failing(*args):
        count.append(1)
        if len(count) == 6:
            raise DiskFullError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(checkpoint_module, name, failing)
    with pytest.raises(DiskFullError):
        fit(config, tmp_path, quiet=True)
    load_checkpoint(tmp_path / "last")
    assert not list(tmp_path.glob("*.writing-*"))
    fit(config, tmp_path, resume=True, quiet=True)
    assert_same_run(straight, tmp_path)


def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *a: (_ for _ in ()).throw(DiskFullError(28, "full")))
        with pytest.raises(DiskFullError):
            write_atomically(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_two_processes_do_not_train_in_one_folder(tmp_path, monkeypatch):
    config = experiment(epochs=1)
    real = trainer_module.save_checkpoint

    def meanwhile(*args):
        with pytest.raises(ConfigError, match="another process is training there"):
            fit(config, tmp_path, resume=True, quiet=True)
        return real(*args)

    monkeypatch.setattr(trainer_module, "save_checkpoint", meanwhile)
    fit(config, tmp_path, quiet=True)
    monkeypatch.undo()
    (tmp_path / "last.writing-1").mkdir()
    (tmp_path / "config.json.writing-1").touch()
    fit(config, tmp_path, resume=True, quiet=True)
    assert not list(tmp_path.glob("*.writing-*"))


@pytest.mark.parametrize("kind", ["simulated", "shards"])
@pytest.mark.parametrize("ahead", [False, True])
def test_data_continue_between_any_two_batches(tmp_path, kind, ahead):
    """Also where batches are made ahead of the consumer."""
    data = DataConfig(train_samples=30, val_samples=4)
    if kind == "shards":
        config = experiment()
        write_shards(
            tmp_path / "s", config.system, config.simulation, samples=34, shard_size=20, seed=1
        )
        data = dataclasses.replace(data, shards=str(tmp_path / "s"))
    config = experiment(data)

    def source():
        made = open_scenes(config, CPU)
        if ahead:
            made.ahead = trainer_ahead
        return made

    def trainer_ahead(batches):
        from ris_pytorch_pipeline.prefetch import prefetch

        return prefetch(batches)

    straight = source()
    expected = [scenes.y for _ in range(2) for scenes in straight.epoch()]
    for stop in range(len(expected)):
        first, got = source(), []
        while len(got) < stop:
            with contextlib.closing(first.epoch()) as batches:
                for scenes in batches:
                    got.append(scenes.y)
                    if len(got) == stop:
                        break
        state = first.state_dict()
        second = source()
        second.load_state_dict(state)
        # Who leaves early and comes back finds the same batches as who starts from the state.
        rest = next(first.epoch()).y
        while len(got) < len(expected):
            got += [scenes.y for scenes in second.epoch()]
        assert torch.equal(rest, expected[stop])
        assert same(got, expected)


def test_the_documented_faults_have_their_tests():
    folder = Path(__file__).parent
    sources = "".join(path.read_text() for path in folder.glob("test_*.py"))
    table = (folder.parent / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(test_\w+)`", table)
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in sources] == []
