# SPDX-License-Identifier: Apache-2.0
"""Which worker of a study is alive.

The worker that runs a trial holds a lease, an attribute of the trial with a counter that it raises
several times in a grace period. A lease whose counter stands still for its grace period is dead.
Each worker measures that with its own monotonic clock, so that the hosts' clocks do not matter, and
starts again where it could not look for a while (it was suspended, or the storage was away), so
that a storage that comes back does not find all workers dead.

The trial's folder is also locked. On the same host, a lock that is free says at once that its
process is gone.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .locking import FolderLock
from .slots import LEASE

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

BEATS = 4
"""Beats, and looks at the others, in a grace period."""


def host_identity() -> str:
    """Equal for processes that see the same files and whose locks the same kernel keeps."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/mnt')}"
    except OSError:
        return uuid.uuid4().hex  # no other process is known to be on this host


class LeaseWatch:
    """What one worker has seen of the others' leases.

    Args:
        grace: seconds, for a trial without a lease (its worker died when it had just taken it).
        host: identity of this host.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, grace: float, host: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._grace, self._host, self._clock = grace, host, clock
        self._seen: dict[int, tuple[Any, float]] = {}  # trial: its counter, and since when
        self._looked = clock()

    def look(self, running: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Those of the running trials whose worker is dead."""
        now, dead = self._clock(), []
        if now - self._looked > self._grace / 2:
            self._seen.clear()
        self._looked = now
        seen: dict[int, tuple[Any, float]] = {}
        for trial in running:
            lease = trial.user_attrs.get(LEASE) or {}
            beat = (lease.get("worker"), lease.get("beat"))
            before = self._seen.get(trial.number)
            since = before[1] if before is not None and before[0] == beat else now
            seen[trial.number] = beat, since
            if now - since >= lease.get("grace", self._grace) or self._left(lease):
                dead.append(trial)
        self._seen = seen
        return dead

    def _left(self, lease: dict[str, Any]) -> bool:
        """Whether the trial's process is known to be gone, because it left its lock."""
        if lease.get("host") != self._host:
            return False
        folder = Path(lease["folder"])
        try:
            return folder.is_dir() and not FolderLock.is_held(folder)
        except OSError:  # another user's, or a disk without locks
            return False


class Heart:
    """Beats for the trial that this worker runs, and watches the others, in a thread.

    Args:
        grace: grace period of this worker's leases, in seconds.
        running: the running trials of the study; what it raises is taken as not having looked.
    """

    def __init__(self, grace: float, running: Callable[[], list[FrozenTrial]]) -> None:
        self._grace, self._running = grace, running
        self._worker, self._host = uuid.uuid4().hex, host_identity()
        self._watch = LeaseWatch(grace, self._host)
        self._trial: Trial | None = None
        self._folder = ""
        self._beats = 0
        self._guard, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a beat at hand is finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def hold(self, trial: Trial, folder: Path) -> None:
        """Take the lease of a trial whose locked folder is ``folder``."""
        with self._guard:
            self._trial, self._folder = trial, str(folder.absolute())
            self._beat()

    def let_go(self) -> None:
        """The trial is over."""
        with self._guard:
            self._trial = None

    def dead(self) -> list[FrozenTrial]:
        """Running trials of dead workers, as far as is known."""
        with self._guard:
            return self._watch.look(self._others())

    def wait(self) -> None:
        """Sleep until it is worth looking again."""
        self._stop.wait(min(1.0, self._grace / (2 * BEATS)))

    def _others(self) -> list[FrozenTrial]:
        own = None if self._trial is None else self._trial.number
        return [trial for trial in self._running() if trial.number != own]

    def _beat(self) -> None:
        assert self._trial is not None
        self._beats += 1
        lease = {"worker": self._worker, "host": self._host, "folder": self._folder}
        self._trial.set_user_attr(LEASE, {**lease, "grace": self._grace, "beat": self._beats})

    def _run(self) -> None:
        while not self._stop.wait(self._grace / BEATS):
            with self._guard:
                try:
                    if self._trial is not None:
                        self._beat()
                    self._watch.look(self._others())
                except Exception:
                    # The storage is away, or has given the trial to another worker: the thread that
                    # trains meets the same when it reports, and says it.
                    continue
