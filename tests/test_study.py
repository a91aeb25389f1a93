# SPDX-License-Identifier: Apache-2.0
"""The study that several workers share: slots, leases, recovery, draws, locks."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from process_helpers import in_a_child
from search_helpers import STORAGES, empty_storage

from ris_pytorch_pipeline import leases
from ris_pytorch_pipeline.configs import ConfigError
from ris_pytorch_pipeline.leases import LeaseWatch
from ris_pytorch_pipeline.locking import FolderLock
from ris_pytorch_pipeline.slots import ERROR, LEASE, MAX_INTERRUPTIONS, SLOT, counting
from ris_pytorch_pipeline.storage import Storage, StorageError, find_storage
from ris_pytorch_pipeline.study import SharedStudy, TakenOverError

STATES = optuna.trial.TrialState
FINISHED = (STATES.COMPLETE, STATES.PRUNED)


def shared(folder: Path, **changes: Any) -> SharedStudy:
    values: dict[str, Any] = {
        "storage": Storage(folder / "study.journal"),
        "settings": {"a": {"b": 1}},
        "first": {"x": 0.25},
        "seed": 0,
    }
    folder.mkdir(exist_ok=True)
    return SharedStudy("s", folder / "s", **{**values, **changes})


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage for several workers."""
    return find_storage(empty_storage(request.param, tmp_path, "s"), tmp_path, 2)


def asked(study: SharedStudy, total: int) -> tuple[optuna.Trial, FolderLock]:
    found = study.ask(total)
    assert found is not None
    return found


def test_only_trials_without_a_living_process_are_recovered(tmp_path: Path) -> None:
    study = shared(tmp_path)
    for count in range(1, MAX_INTERRUPTIONS + 1):
        trial, lock = asked(study, 1)
        assert trial.suggest_float("x", 0.0, 1.0) == 0.25
        assert study.ask(1) is None
        other = shared(tmp_path)
        assert other.recover() == {}
        # What the kernel does when the process dies.
        lock.release()
        assert other.recover() == {trial.number: count < MAX_INTERRUPTIONS}
        assert other.recover() == {}
    # The slot is not lost: other parameters are drawn.
    trial, _ = asked(study, 1)
    assert trial.suggest_float("x", 0.0, 1.0) != 0.25
    study.tell(trial, STATES.COMPLETE, 1.0, {})
    assert study.ask(1) is None
    states = [t.state for t in study.trials()]
    assert states == [STATES.FAIL] * MAX_INTERRUPTIONS + [STATES.COMPLETE]


def test_one_worker_recovers_at_once_what_it_left_in_sqlite(tmp_path: Path) -> None:
    place = Storage(tmp_path / "study.db")
    study = shared(tmp_path, storage=place)
    trial, _ = asked(study, 1)
    with pytest.raises(ConfigError, match=r"another worker is using it.*study\.journal"):
        shared(tmp_path, storage=place)
    with pytest.raises(ConfigError, match="another worker"):
        shared(tmp_path, storage=Storage(f"sqlite:///{tmp_path}/study.db"))
    study.__exit__(None, None, None)
    with shared(tmp_path, storage=place) as again:
        assert again.recover() == {trial.number: True}


def test_a_failed_trial_is_not_repeated_by_the_run_that_saw_it_fail(tmp_path: Path) -> None:
    study = shared(tmp_path)
    trial, lock = asked(study, 2)
    study.tell(trial, STATES.FAIL, None, {ERROR: "broken"})
    lock.release()
    second, _ = asked(study, 2)
    assert second.user_attrs[SLOT] == 1 and study.ask(2) is None
    # Who comes later tries again, once, with other parameters.
    later = shared(tmp_path)
    third, _ = asked(later, 2)
    assert third.user_attrs[SLOT] == 0 and third.suggest_float("x", 0.0, 1.0) != 0.25
    later.tell(third, STATES.FAIL, None, {ERROR: "broken"})
    assert later.ask(2) is None


def test_workers_draw_different_points_and_a_run_does_not_change_them(tmp_path: Path) -> None:
    def draw(study: SharedStudy) -> float:
        return asked(study, 10)[0].suggest_float("x", 0.0, 1.0)

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
        trial, lock = asked(study, 2)
        with lock:
            for name in ("x", "y")[:drawn]:
                trial.suggest_float(name, 0.0, 1.0)
            assert study.interrupt(trial)
    trial, _ = asked(study, 2)
    assert [trial.suggest_float(name, 0.0, 1.0) for name in ("x", "y")] == [0.25, 0.5]
    # A trial of the sampler's has nothing to lose before its first draw.
    trial, _ = asked(study, 2)
    assert not study.interrupt(trial)


def test_a_trial_stopped_on_purpose_keeps_its_parameters_however_often(tmp_path: Path) -> None:
    study = shared(tmp_path)
    for _ in range(MAX_INTERRUPTIONS + 1):
        trial, lock = asked(study, 1)
        with lock:
            assert trial.suggest_float("x", 0.0, 1.0) == 0.25
            assert study.interrupt(trial) is True
    trial, _ = asked(study, 1)
    assert trial.suggest_float("x", 0.0, 1.0) == 0.25
    study.tell(trial, STATES.COMPLETE, 1.0, {})
    assert study.interrupt(trial) is None


# Several workers


def draw_and_tell(storage: Storage, folder: Path, total: int, record: Path, delay: float) -> None:
    """A worker of another host: nothing but the storage is shared."""
    leases.host_identity = lambda: str(folder)
    with shared(folder, storage=storage, grace=5.0) as study:
        while True:
            found = study.ask(total)
            if found is None:
                if len(study.finished()) >= total:
                    return
                study.wait()
            else:
                trial, lock = found
                with lock:
                    value = trial.suggest_float("x", 0.0, 1.0)
                    time.sleep(random.uniform(0, delay))
                    word = "told"
                    try:
                        study.tell(trial, STATES.COMPLETE, value, {})
                    except TakenOverError:  # on a machine so busy that the heart stood still
                        word = "lost"
                    with record.open("a") as file:
                        file.write(f"{word} {trial.user_attrs[SLOT]}\n")
            study.recover()


def test_hosts_finish_every_slot_exactly_once(storage: Storage, tmp_path: Path, seed: int) -> None:
    """Four workers that share no lock race for every trial; two are killed on the way."""
    total, rng, record = 24, random.Random(seed), tmp_path / "record"
    shared(tmp_path / "first", storage=storage)

    def start(number: int) -> int:
        place = tmp_path / f"host{number}"
        return in_a_child(lambda: draw_and_tell(storage, place, total, record, 0.2))

    children = [start(number) for number in range(4)]
    for victim in children[:2]:
        time.sleep(rng.uniform(0.1, 0.6))
        os.kill(victim, signal.SIGKILL)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [signal.SIGKILL] * 2 + [0, 0]
    trials = shared(tmp_path / "first", storage=storage).trials()
    done = [t for t in trials if t.state in FINISHED]
    assert sorted(t.user_attrs[SLOT] for t in done) == list(range(total))
    assert {t.number for t in done} == {t.number for t in counting(trials).values()}
    assert not [t for t in trials if t.state in (STATES.RUNNING, STATES.WAITING)]
    words = [line.split() for line in record.read_text().splitlines()]
    told, lost = ([slot for word, slot in words if word == kind] for kind in ("told", "lost"))
    # What does not count was never drawn for, unless its worker was killed or seemed so.
    extra = [t for t in trials if t.state not in FINISHED and t.params]
    assert len(extra) <= 2 + len(lost)
    # A killed worker may have told and not recorded.
    assert len(told) == len(set(told)) >= total - 2


def test_a_silent_worker_is_replaced_after_the_grace_period(
    storage: Storage, tmp_path: Path
) -> None:
    """A worker of another host stops; one that wakes up later cannot spoil the study."""
    grace = 2.0
    (tmp_path / "a").mkdir()

    def stopped() -> None:
        leases.host_identity = lambda: "elsewhere"
        with shared(tmp_path / "a", storage=storage, grace=grace) as study:
            trial, _ = asked(study, 1)
            trial.suggest_float("x", 0.0, 1.0)
            time.sleep(2 * grace)  # a living worker keeps its trial for as long as it takes
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
            with pytest.raises(TakenOverError):
                study.tell(trial, STATES.COMPLETE, 0.0, {})

    child = in_a_child(stopped)
    with shared(tmp_path / "b", storage=storage, grace=grace) as study:
        while not (tmp_path / "stopped").exists():
            assert study.recover() == {}
            study.wait()
        started = time.monotonic()
        while not study.recover():
            assert time.monotonic() - started < 2 * grace + 10
            study.wait()
        assert time.monotonic() - started > grace * 0.7
        trial, _ = asked(study, 1)
        assert trial.suggest_float("x", 0.0, 1.0) == 0.25
        os.kill(child, signal.SIGCONT)
        assert os.waitpid(child, 0)[1] == 0
        study.tell(trial, STATES.COMPLETE, 1.0, {})
        assert [t.value for t in study.finished()] == [1.0]


def test_leases_are_judged_by_the_watching_clock(tmp_path: Path) -> None:
    now = 1000.0
    watch = LeaseWatch(10.0, "here", lambda: now)
    lease = {"worker": "w", "host": "there", "folder": str(tmp_path), "grace": 20.0, "beat": 1}

    def dead(number: int = 0, **changes: Any) -> bool:
        attrs = {LEASE: {**lease, **changes}} if changes is not None else {}
        trial = optuna.trial.create_trial(value=0.0, user_attrs=attrs)
        trial.number = number
        return bool(watch.look([trial]))

    for beat in (1, 2):
        for _ in range(5):  # its own grace period counts, not the watcher's
            assert not dead(beat=beat)
            now += 4.0
    assert dead(beat=2)
    assert not dead(beat=3)
    # The watcher slept, or had no storage: nothing is known.
    now += 1000.0
    assert not dead(beat=3)
    # A lock tells at once on its own host, and says nothing on another.
    assert dead(host="here")
    with FolderLock(tmp_path):
        assert not dead(host="here")
    assert not dead(host="there", beat=9)
    # A trial whose worker died before it could sign.
    unsigned = optuna.trial.create_trial(value=0.0)
    for _ in range(4):
        assert watch.look([unsigned]) == []
        now += 3.0
    assert watch.look([unsigned]) == [unsigned]


def test_a_storage_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = shared(tmp_path, grace=2.0)
    trial, _ = asked(study, 1)
    real, calls = study._storage.set_trial_state_values, []

    def away(*args: Any, **kwargs: Any) -> bool:
        calls.append(real(*args, **kwargs) if len(calls) == 2 else None)
        if len(calls) < 4:  # the third call came through, but its answer was lost
            raise StorageInternalError from ConnectionError("server closed the connection\nhint")
        return real(*args, **kwargs)

    monkeypatch.setattr(study._storage, "set_trial_state_values", away)
    study.tell(trial, STATES.COMPLETE, 1.0, {})
    assert [t.value for t in study.finished()] == [1.0] and len(calls) == 3

    def gone(*args: Any, **kwargs: Any) -> bool:
        raise StorageInternalError from ConnectionError("server closed the connection\nhint")

    monkeypatch.setattr(study._storage, "get_all_trials", gone)
    with pytest.raises(StorageError, match=r"used \(ConnectionError: server closed the connection"):
        study.finished()


# Storages and locks


@pytest.mark.parametrize("name", ["what?mode=memory", "100%41", "{SCHEMA_VERSION}", "a b#c"])
@pytest.mark.parametrize("kind", ["study.db", "study.journal"])
def test_any_folder_can_hold_the_study(tmp_path: Path, name: str, kind: str) -> None:
    out = tmp_path / name
    with shared(out, storage=Storage(out / kind)) as study:
        trial, _ = asked(study, 1)
    assert (out / kind).is_file()
    with shared(out, storage=Storage(out / kind)) as study:
        assert [t.number for t in study.trials()] == [trial.number]


def test_lock_is_exclusive_and_ends_with_its_holder(tmp_path: Path) -> None:
    assert not FolderLock.is_held(tmp_path)
    with FolderLock(tmp_path):
        assert FolderLock.is_held(tmp_path)
    assert not FolderLock.is_held(tmp_path)


def test_another_study_under_the_same_name_is_refused(tmp_path: Path) -> None:
    shared(tmp_path)
    with pytest.raises(ConfigError, match=r"a\.b 1 -> 2"):
        shared(tmp_path, settings={"a": {"b": 2}})


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
