# SPDX-License-Identifier: Apache-2.0
"""What stops a search and is no fault of a trial's parameters: the trial goes on, with its own."""

from __future__ import annotations

import dataclasses
import errno
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from search_helpers import search_options
from training_helpers import same

from ris_pytorch_pipeline import trainer as trainer_module
from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import ConfigError
from ris_pytorch_pipeline.hpo import HpoError, HpoOptions, run
from ris_pytorch_pipeline.interrupts import Interrupted
from ris_pytorch_pipeline.shards import ShardError
from ris_pytorch_pipeline.slots import MAX_INTERRUPTIONS
from ris_pytorch_pipeline.storage import find_storage
from ris_pytorch_pipeline.trainer import Trainer

STATES = optuna.trial.TrialState


def trials(options: HpoOptions) -> list[optuna.trial.FrozenTrial]:
    storage = find_storage(options.storage, Path(options.out), 1).open()
    return optuna.load_study(study_name=options.name, storage=storage).trials


def with_training(options: HpoOptions, **changes: Any) -> HpoOptions:
    train = dataclasses.replace(options.base.train, **changes)
    return dataclasses.replace(options, base=dataclasses.replace(options.base, train=train))


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device", "last"),
        ShardError("00000.h.npy: truncated"),
    ],
    ids=["disk", "shard"],
)
def test_a_full_disk_or_a_damaged_shard_does_not_use_up_the_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    options = search_options(tmp_path, n_trials=2)
    real, saves = trainer_module.save_checkpoint, []

    def failing(*args: Any, **how: Any) -> Any:
        saves.append(1)
        if len(saves) > 1:
            raise fault
        return real(*args, **how)

    times = MAX_INTERRUPTIONS + 1
    message = r"trial \d cannot go on: its parameters are tried again \(.*(No space|truncated)"
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "save_checkpoint", failing)
        for _ in range(times):
            with pytest.raises(HpoError, match=message):
                run(options)
    assert run(options) == 0
    found = trials(options)
    assert [t.state for t in found] == [STATES.FAIL] * times + [STATES.COMPLETE] * 2
    assert [t.params for t in found[: times + 1]] == [found[0].params] * (times + 1)


def signal_before(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> list[int]:
    """SIGTERM in the steps of these numbers, from 1; returns the list of those that were taken."""
    real, taken = Trainer.train_step, []

    def train_step(trainer: Trainer, batches: Any) -> Any:
        taken.append(trainer.steps + 1)
        if len(taken) in steps:
            signal.raise_signal(signal.SIGTERM)
        return real(trainer, batches)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    return taken


def test_a_trial_stopped_often_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the queue of a batch system, which stops every job after a while."""
    options = search_options(tmp_path, train_samples=48)
    stops = MAX_INTERRUPTIONS + 1
    taken = signal_before(monkeypatch, list(range(1, stops + 1)))
    for number in range(1, stops + 1):
        with pytest.raises(Interrupted, match=f"saved after step {number} of 6"):
            run(options)
    assert run(options) == 0 and taken == [1, 2, 3, 4, 5, 6]
    found = trials(options)
    assert [t.state for t in found] == [STATES.FAIL] * stops + [STATES.COMPLETE]
    assert all(t.params == found[0].params for t in found)


def test_a_signal_in_the_last_step_of_a_trial_stops_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = search_options(tmp_path, n_trials=2)
    taken = signal_before(monkeypatch, [4])
    with pytest.raises(Interrupted, match="trial 0 is over; the same command goes on") as stop:
        run(options)
    assert stop.value.status == 143 and taken == [1, 2, 3, 4]
    assert [t.state for t in trials(options)] == [STATES.COMPLETE]
    assert (tmp_path / "best.json").is_file()
    assert run(options) == 0
    assert [t.state for t in trials(options)] == [STATES.COMPLETE] * 2


def test_options_that_change_no_value_may_change(tmp_path: Path) -> None:
    options = search_options(tmp_path)
    run(options)
    changed = dataclasses.replace(options, n_trials=2)
    assert run(with_training(changed, checkpoint_every=3, process_timeout=77.0)) == 0
    assert [t.state for t in trials(options)] == [STATES.COMPLETE] * 2
    with pytest.raises(ConfigError, match=r"config\.train\.patience 10 -> 3"):
        run(with_training(changed, patience=3))


def test_a_trial_goes_on_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, options = (
        with_training(search_options(tmp_path / name), checkpoint_every=1) for name in "ab"
    )
    assert run(straight) == 0
    with monkeypatch.context() as patch:
        taken = signal_before(patch, [3])
        with pytest.raises(Interrupted):
            run(options)
        path = options.folder / "trial_0000" / "last" / "state.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        assert run(options) == 0
    assert taken == [1, 2, 3, 3, 4]
    shown = capsys.readouterr().out
    assert f"trial 1: {path}: damaged" in shown and "saved before it is used" in shown
    one, other = (
        load_checkpoint(folder / "last")
        for folder in (straight.folder / "trial_0000", options.folder / "trial_0001")
    )
    assert same(one.net.state_dict(), other.net.state_dict()) and same(one.state, other.state)
