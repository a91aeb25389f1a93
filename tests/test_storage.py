# SPDX-License-Identifier: Apache-2.0
"""Storages of a study: which one is taken, what is refused in one line, and damaged journals."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from process_helpers import in_a_child

from ris_pytorch_pipeline import storage as storage_module
from ris_pytorch_pipeline.cli import main
from ris_pytorch_pipeline.configs import ConfigError
from ris_pytorch_pipeline.journal import Journal, MendingLock
from ris_pytorch_pipeline.storage import Storage, StorageError, find_storage


def test_the_results_folder_decides_where_no_storage_is_named(tmp_path: Path) -> None:
    def found(workers: int) -> Any:
        return find_storage(None, tmp_path, workers).target

    database, journal = tmp_path / "study.db", tmp_path / "study.journal"
    assert (found(1), found(2)) == (database, journal)
    database.touch()
    assert found(1) == database
    with pytest.raises(ConfigError, match=r"serves one worker, not 2; .*journal.*postgresql"):
        found(2)
    journal.touch()
    with pytest.raises(ConfigError, match=r"holds study\.journal and study\.db"):
        found(1)
    database.unlink()
    assert (found(1), found(4)) == (journal, journal)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", r"expected a file named \*\.journal or \*\.db, or the URL"),
        ("redis://localhost", "redis://.*not a URL of a database.*redis"),
        ("postgresql://user:secret@host:port/name", r"postgresql://\.\.\.: not a URL of"),
        ("sqlite://", "keeps nothing"),
        ("sqlite:///:memory:", "keeps nothing"),
        ("{}/none/study.db", "its folder does not exist"),
        ("{}/none/study.journal", "its folder does not exist"),
        ("sqlite:///{}/none/study.db", "its folder does not exist"),
    ],
)
def test_what_is_no_storage_is_refused(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find_storage(given.format(tmp_path), tmp_path, 1)
    assert "secret" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_sqlite_is_for_one_worker_whatever_its_file_is_called(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.journal"
    assert find_storage(url, tmp_path, 1).single
    with pytest.raises(ConfigError, match="serves one worker, not 2"):
        find_storage(url, tmp_path, 2)
    lock = Storage(url).lock()
    assert lock is not None
    with lock, pytest.raises(ConfigError, match="another worker is using it"):
        Storage(url).lock()


def test_a_command_refuses_a_storage_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a server that does not answer, without showing the password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"postgresql+psycopg://ris:secret@127.0.0.1:{free.getsockname()[1]}/search"
        search = ["hpo", "--out", str(tmp_path / "out"), "--device", "cpu", "--val_samples", "8"]
        search += ["--batch_size", "8", "--system.n_h", "4", "--system.n_v", "4"]
        assert main([*search, "--storage", url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be opened as a storage" in line and "refused" in line and "secret" not in line
    assert main([*search, "--storage", "nowhere"]) == 2
    assert main([*search, "--workers", "2", "--storage", f"{tmp_path}/study.db"]) == 2
    assert main([*search, "--workers", "1", "--devices", "cpu,cpu"]) == 2
    unknown, single, unused = capsys.readouterr().err.splitlines()
    assert "nowhere" in unknown and "not 2" in single and "unused" in unused
    assert not (tmp_path / "out").exists()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'riskernels\[postgres\]'"):
        Storage("postgresql+psycopg://ris@localhost/search").open()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    for kind in ("study.db", "study.journal"):
        (tmp_path / kind).write_bytes(b"something else, whatever its name says\n" * 4)
        for target in (tmp_path / kind, f"sqlite:///{tmp_path}/study.db"):
            with pytest.raises(ConfigError, match=r"study.*cannot be opened as a storage"):
                Storage(target).open()


# Journals


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal with a study of two trials."""
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="s", storage=Storage(path).open())
    for value in (0.0, 1.0):
        study.tell(study.ask(), value)
    return path


def values(path: Path) -> list[float | None]:
    study = optuna.load_study(study_name="s", storage=Storage(path).open())
    return [trial.value for trial in study.trials]


@pytest.mark.parametrize("damage", [b"\0" * 40, b"{", b"[]", b'{"op_code": "4"}', b"\xff\xfe"])
def test_a_damaged_line_is_named(journal: Path, damage: bytes) -> None:
    lines = journal.read_bytes().splitlines()
    for number in range(1, len(lines) + 1):
        journal.write_bytes(b"\n".join([*lines[: number - 1], damage, *lines[number:], b""]))
        with pytest.raises(ConfigError, match=rf"study\.journal: .*line {number} is damaged"):
            Storage(journal).open()
    # As the message says.
    last = lines.pop(-2), lines.pop(-1)
    assert b"1.0" in last[1]
    journal.write_bytes(b"\n".join([*lines, b""]))
    assert values(journal) == [0.0]


def test_a_line_that_is_damaged_under_a_running_worker_is_reported(journal: Path) -> None:
    study = optuna.load_study(study_name="s", storage=Storage(journal).open())
    with journal.open("ab") as file:
        file.write(b"\0" * 10 + b"\n")
    with pytest.raises(StorageError, match=r"study\.journal: damaged after record \d+"):
        for _ in range(2):
            study.ask()


def test_a_line_that_was_cut_off_is_removed(journal: Path) -> None:
    """A writer that lost its power has told nobody of the half line that it left."""
    whole = journal.read_bytes()
    study = optuna.load_study(study_name="s", storage=Storage(journal).open())
    for cut in (b"{", b'{"op_code": 4, "worker_id"', b"\0" * 9000):
        journal.write_bytes(whole + cut)
        assert values(journal) == [0.0, 1.0] and journal.read_bytes() == whole
    # Under a worker that had opened it before, too.
    journal.write_bytes(whole + b"{")
    study.tell(study.ask(), 2.0)
    assert values(journal) == [0.0, 1.0, 2.0]


def test_the_lock_of_a_killed_writer_is_taken_over(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace = 3
    monkeypatch.setattr(storage_module, "LOCK_GRACE", grace)

    def hold() -> None:
        MendingLock(journal, grace).acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.waitpid(in_a_child(hold), 0)[1] == signal.SIGKILL
    started = time.monotonic()
    assert values(journal) == [0.0, 1.0]
    assert grace <= time.monotonic() - started < grace + 5
    started = time.monotonic()
    Journal(journal, grace).check()
    assert time.monotonic() - started < grace
