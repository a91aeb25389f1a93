# SPDX-License-Identifier: Apache-2.0
"""Where a search keeps its study: a SQLite file, a journal file, or a database server.

SQLite serves one worker: Optuna gives a trial out by a lock on its row, which SQLite does not
have, so two workers could run the same one. A journal is a text file to which every worker appends
under a lock; it serves several on one shared disk. A server (PostgreSQL) serves any number.

The journal's lock is a file that is created with ``O_EXCL``: one of any number of hosts succeeds,
also on NFS from version 3 on, where ``flock`` depends on how the disk is mounted. Optuna's other
lock, a symbolic link, is judged by the age of the file it points at; from a relative path it points
nowhere, and is then never given up after its holder was killed.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configs import ConfigError
from .hpo import HpoError
from .locking import FolderLock

if TYPE_CHECKING:
    import optuna

SQLITE, JOURNAL = ".db", ".journal"
LOCK_GRACE = 15
"""Seconds after which the lock of a journal is taken from a process that died with it."""
CONNECT_TIMEOUT = 10
"""Seconds to wait for a database server."""
SEVERAL = (
    "for several workers give a journal file on a disk that all share (--storage "
    "folder/study.journal) or a database server (--storage postgresql+psycopg://user@host/name)"
)


class StorageError(HpoError):
    """A storage that was opened and cannot be used any more."""


def reason(error: BaseException) -> str:
    """What a driver says, in one line: of a chain, the error that came first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


@dataclass(frozen=True)
class Storage:
    """A place to keep a study, not yet opened."""

    target: str | Path
    """URL, or path of a SQLite or journal file."""

    @property
    def single(self) -> bool:
        """Whether it serves one worker at a time."""
        journal = isinstance(self.target, Path) and self.target.suffix == JOURNAL
        return self.file is not None and not journal

    @property
    def file(self) -> Path | None:
        """Its file; None for a server."""
        if isinstance(self.target, Path):
            return self.target
        from sqlalchemy.engine import make_url

        url = make_url(self.target)
        return Path(url.database or "") if url.get_backend_name() == "sqlite" else None

    def __str__(self) -> str:
        if isinstance(self.target, Path):
            return str(self.target)
        from sqlalchemy.engine import make_url

        return make_url(self.target).render_as_string(hide_password=True)

    def lock(self) -> FolderLock | None:
        """The held lock of a storage for one worker.

        Raises:
            ConfigError: another worker holds it.
        """
        file = self.file
        if file is None or not self.single:
            return None
        lock = FolderLock(file.absolute().parent, f"{file.name}.lock")
        if not lock.try_acquire():
            raise ConfigError(
                f"{file}: another worker is using it, and SQLite serves one at a time; {SEVERAL}"
            )
        return lock

    def open(self) -> optuna.storages.BaseStorage:
        """The storage as Optuna's.

        Raises:
            ConfigError: it cannot be used.
        """
        try:
            if isinstance(self.target, Path):
                return _journal(self.target) if self.target.suffix == JOURNAL else _sqlite(self)
            return _server(self.target) if self.file is None else _sqlite(self)
        except ConfigError:
            raise
        except Exception as error:
            # Every database driver has exceptions of its own; all mean the same to the user.
            raise ConfigError(f"{self}: cannot be opened as a storage ({reason(error)})") from error


def find_storage(given: str | None, out: Path, workers: int) -> Storage:
    """The storage that ``--storage`` names, or else the one in the results folder.

    A new study of several workers goes into a journal, that of one worker into SQLite; what is in
    the folder already is used again.

    Raises:
        ConfigError: it is no storage, or not one for that many workers.
    """
    if given is not None:
        storage = _named(given)
        if storage.file is not None and not storage.file.absolute().parent.is_dir():
            raise ConfigError(f"--storage {given}: its folder does not exist")
    else:
        there = [
            path for path in (out / f"study{JOURNAL}", out / f"study{SQLITE}") if path.exists()
        ]
        if len(there) > 1:
            raise ConfigError(
                f"{out} holds {there[0].name} and {there[1].name}: name one (--storage)"
            )
        storage = Storage(
            there[0] if there else out / f"study{SQLITE if workers == 1 else JOURNAL}"
        )
    if workers > 1 and storage.single:
        raise ConfigError(
            f"{storage}: SQLite serves one worker, not {workers}; {SEVERAL}; optuna.copy_study "
            "brings a study over"
        )
    return storage


def _named(text: str) -> Storage:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if "://" not in text:
        if Path(text).suffix in (SQLITE, JOURNAL):
            return Storage(Path(text))
        raise ConfigError(
            f"--storage {text}: expected a file named *{JOURNAL} or *{SQLITE}, or the URL of a "
            "database server (postgresql+psycopg://user@host/name)"
        )
    try:
        url = make_url(text)
        url.get_dialect()
    except (ArgumentError, ValueError) as error:
        scheme = text.partition("://")[0]
        raise ConfigError(
            f"--storage {scheme}://...: not a URL of a database ({reason(error)})"
        ) from None
    except ImportError:
        raise ConfigError(_missing(text)) from None
    if url.get_backend_name() == "sqlite" and (url.database or ":memory:").startswith(
        (":", "file:")
    ):
        raise ConfigError(f"--storage {text}: keeps nothing; name a file (folder/study{SQLITE})")
    return Storage(text)


def _missing(text: str) -> str:
    return (
        f"--storage {text.partition('://')[0]}://...: its driver is not installed "
        "(for PostgreSQL: pip install 'riskernels[postgres]')"
    )


def _sqlite(storage: Storage) -> optuna.storages.BaseStorage:
    """SQLite in a file, whatever the file's name: a URL would end at a ``?`` in it."""
    import optuna

    if not isinstance(storage.target, Path):
        return optuna.storages.RDBStorage(storage.target)
    connect = partial(sqlite3.connect, storage.target.absolute(), check_same_thread=False)
    return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})


def _server(url: str) -> optuna.storages.BaseStorage:
    import optuna
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    # A connection that broke while a trial was training is made anew.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if make_url(url).get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": CONNECT_TIMEOUT}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except ImportError:
        raise ConfigError(_missing(url)) from None
    except (IntegrityError, ProgrammingError):
        # Another worker is creating the same tables in an empty database.
        time.sleep(1.0)
        return optuna.storages.RDBStorage(url, engine_kwargs=options)


def _journal(path: Path) -> optuna.storages.BaseStorage:
    import optuna

    from .journal import Journal

    journal = Journal(path.absolute(), LOCK_GRACE)
    journal.check()
    return optuna.storages.JournalStorage(journal)
