# SPDX-License-Identifier: Apache-2.0
"""The study that several runs share: recovery, draws, storages, and the lock of a folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import optuna
import pytest

from ris_pytorch_pipeline.configs import ConfigError
from ris_pytorch_pipeline.locking import FolderLock
from ris_pytorch_pipeline.study import MAX_INTERRUPTIONS, SharedStudy

STATES = optuna.trial.TrialState


def shared(folder: Path, **changes: Any) -> SharedStudy:
    values: dict[str, Any] = {
        "storage": f"sqlite:///{folder}/study.db",
        "shared_storage": False,
        "settings": {"a": {"b": 1}},
        "first": {"x": 0.25},
        "seed": 0,
    }
    folder.mkdir(exist_ok=True)
    return SharedStudy("s", folder / "s", **{**values, **changes})


def test_only_trials_without_a_living_process_are_recovered(tmp_path: Path) -> None:
    study = shared(tmp_path)
    for count in range(1, MAX_INTERRUPTIONS + 1):
        asked = study.ask(1)
        assert asked is not None
        trial, lock = asked
        assert trial.suggest_float("x", 0.0, 1.0) == 0.25
        assert study.ask(1) is None
        other = shared(tmp_path)
        assert other.recover() == {}
        # What the kernel does when the process dies.
        lock.release()
        assert other.recover() == {trial.number: count < MAX_INTERRUPTIONS}
        waiting = [t for t in other.study.trials if t.state == STATES.WAITING]
        assert len(waiting) == (count < MAX_INTERRUPTIONS)
    assert [t.state for t in study.study.trials] == [STATES.FAIL] * MAX_INTERRUPTIONS

    remote = shared(tmp_path, shared_storage=True)
    remote.study.ask()
    assert remote.recover() == {}
    assert len(shared(tmp_path).recover()) == 1


def test_workers_draw_different_points_and_a_run_does_not_change_them(tmp_path: Path) -> None:
    def draw(study: SharedStudy) -> float:
        asked = study.ask(10)
        assert asked is not None
        return asked[0].suggest_float("x", 0.0, 1.0)

    one, other = shared(tmp_path / "a"), shared(tmp_path / "a")
    points = [draw(one), draw(other), draw(one), draw(other)]
    assert points[0] == 0.25 and len(set(points)) == 4
    alone = shared(tmp_path / "b")
    assert [draw(alone) for _ in points] == points
    assert draw(shared(tmp_path / "c", seed=1)) == 0.25
    assert draw(shared(tmp_path / "c", seed=1)) not in points


def test_parameters_survive_an_interruption_before_they_are_drawn(tmp_path: Path) -> None:
    study = shared(tmp_path, first={"x": 0.25, "y": 0.5})
    for drawn in (0, 1):
        asked = study.ask(2)
        assert asked is not None
        trial, lock = asked
        with lock:
            for name in ("x", "y")[:drawn]:
                trial.suggest_float(name, 0.0, 1.0)
            assert study.interrupt(trial)
    asked = study.ask(2)
    assert asked is not None
    assert [asked[0].suggest_float(name, 0.0, 1.0) for name in ("x", "y")] == [0.25, 0.5]
    # A trial of the sampler's has nothing to lose before its first draw.
    asked = study.ask(2)
    assert asked is not None and not study.interrupt(asked[0])


@pytest.mark.parametrize("name", ["what?mode=memory", "100%41", "{SCHEMA_VERSION}", "a b#c"])
def test_any_folder_can_hold_the_study(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    trial = shared(out, storage=out / "study.db").study.ask()
    assert (out / "study.db").is_file()
    again = shared(out, storage=out / "study.db").study.trials
    assert [t.number for t in again] == [trial.number]


def test_lock_is_exclusive_and_ends_with_its_holder(tmp_path: Path) -> None:
    assert not FolderLock.is_held(tmp_path)
    with FolderLock(tmp_path):
        assert FolderLock.is_held(tmp_path)
    assert not FolderLock.is_held(tmp_path)


def test_storages_and_settings_are_checked(tmp_path: Path) -> None:
    shared(tmp_path)
    with pytest.raises(ConfigError, match=r"a\.b 1 -> 2"):
        shared(tmp_path, settings={"a": {"b": 2}})
    with pytest.raises(ConfigError, match="storage cannot be opened"):
        shared(tmp_path, storage="nonsense://x")
    (tmp_path / "bad.db").write_bytes(b"not a database, whatever its name says")
    with pytest.raises(ConfigError, match="storage cannot be opened"):
        shared(tmp_path, storage=f"sqlite:///{tmp_path}/bad.db")


def test_a_held_lock_is_not_dropped_by_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("locked again")

    lock = FolderLock(tmp_path).acquire()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        lock.__enter__()
    assert FolderLock.is_held(tmp_path)
    with lock:
        assert FolderLock.is_held(tmp_path)
    assert not FolderLock.is_held(tmp_path)
