# SPDX-License-Identifier: Apache-2.0
"""Tasks over the cells of the suite, restartably: records in files that grow batch by batch.

One file in ``cells/`` holds what one task has made of one cell, a record for each scene. Work that
was stopped goes on after the last batch that is there, and a larger number of scenes extends it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .configs import ConfigError
from .durable import remove_drafts, write_atomically
from .evaluation_tasks import EvaluationError, Record, Task
from .locking import FolderLock
from .suite import BLOCK, Cell, Suite

IDENTITY = "identity.json"


def file_of(folder: Path, task: Task, cell: Cell) -> Path:
    """Where the records of one task and cell are kept."""
    return folder / "cells" / f"{task.key}_K{cell.num_sources}_SNR{cell.snr_db:g}.json"


def read_records(path: Path) -> list[Record]:
    """The records of a file, none if it is not there.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.is_file():
        return []
    records: list[Record] = _contents(path)["records"]
    return records


def _contents(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text())
    except ValueError:
        raise _damaged(path) from None
    records = contents.get("records") if isinstance(contents, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise _damaged(path)
    return dict(contents)


def _damaged(path: Path) -> ConfigError:
    return ConfigError(f"{path}: damaged; delete it, and it is computed again")


def check_records(suite: Suite, tasks: Iterable[Task], folder: Path) -> None:
    """Refuse records that cannot be used, or that another version of the code has made.

    Raises:
        ConfigError: names the file.
    """
    for task in tasks:
        for cell in suite.cells:
            path = file_of(folder, task, cell)
            if not path.is_file():
                continue
            contents = _contents(path)
            if contents.get("code") != task.code:
                raise ConfigError(
                    f"{path}: made by another version of {task.title}; --overwrite, or another "
                    "--out"
                )
            if not all(task.accepts(record, cell) for record in contents["records"]):
                raise _damaged(path)


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Note in ``folder`` what its records were made of, or refuse records of something else.

    Raises:
        ConfigError: the folder holds an evaluation that differs in one of the entries.
    """
    path = folder / IDENTITY
    if not path.is_file():
        if any(folder.glob("cells/*.json")):
            raise ConfigError(f"{folder}: holds records without {IDENTITY}; choose another --out")
        write_atomically(path, json.dumps(identity, indent=1) + "\n")
        return
    try:
        earlier = json.loads(path.read_text())
    except ValueError:
        earlier = None
    if not isinstance(earlier, dict):
        raise ConfigError(f"{path}: damaged; choose another --out")
    wanted = json.loads(json.dumps(identity))
    names = dict.fromkeys([*earlier, *wanted])
    differ = [name for name in names if earlier.get(name) != wanted.get(name)]
    if differ:
        raise ConfigError(
            f"{folder}: holds the records of another evaluation (other {', '.join(differ)}); "
            "choose another --out, or --overwrite them"
        )


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is, after a batch."""

    cell: Cell
    task: str
    done: int
    """Scenes times tasks."""
    total: int
    seconds_left: float
    cell_done: bool


class _Clock:
    """Time left, from the pace of every task at the scenes of as many sources."""

    def __init__(self) -> None:
        self._spent: dict[tuple[str, int], tuple[float, int]] = {}

    def add(self, task: str, cell: Cell, seconds: float, scenes: int) -> None:
        before, count = self._spent.get((task, cell.num_sources), (0.0, 0))
        self._spent[task, cell.num_sources] = (before + seconds, count + scenes)

    def pace(self, task: str, cell: Cell) -> float:
        """Seconds a scene; of the nearest number of sources, or of all tasks, where unknown."""
        known = {k: s for (name, k), s in self._spent.items() if name == task}
        if known:
            seconds, scenes = known[min(known, key=lambda k: abs(k - cell.num_sources))]
            return seconds / scenes
        paces = [seconds / scenes for seconds, scenes in self._spent.values()]
        return sum(paces) / len(paces) if paces else 0.0


def run_tasks(
    suite: Suite,
    tasks: Sequence[Task],
    folder: Path,
    *,
    batch_size: int = 2 * BLOCK,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Bring the records of every cell and task in ``folder`` to ``suite.scenes``.

    Records that are there are kept. Memory is that of ``batch_size`` scenes, rounded up to whole
    blocks, and of the records of a cell. The first call of a task is made twice, so that what it
    does once is not counted as time of a scene.

    Raises:
        ConfigError: a file of records is damaged.
        EvaluationError: a task failed; the message names it.
    """
    step = -(-batch_size // BLOCK) * BLOCK
    # A block that is there in part is computed again: scenes are drawn by whole blocks.
    kept = {
        (task.key, cell): len(read_records(file_of(folder, task, cell)))
        for cell in suite.cells
        for task in tasks
    }
    starts = {key: n if n >= suite.scenes else n // BLOCK * BLOCK for key, n in kept.items()}
    left = {key: max(0, suite.scenes - start) for key, start in starts.items()}
    total, clock, warm = sum(left.values()), _Clock(), set[str]()
    for cell in suite.cells:
        for start in range(0, suite.scenes, step):
            stop = min(start + step, suite.scenes)
            waiting = [task for task in tasks if starts[task.key, cell] < stop]
            for task in waiting:
                first = max(start, starts[task.key, cell])
                drawn = suite.draw(cell, first, stop)
                try:
                    if task.key not in warm:
                        warm.add(task.key)
                        task(suite.draw(cell, first, first + 1))
                    began = time.perf_counter()
                    records = task(drawn)
                    clock.add(task.key, cell, time.perf_counter() - began, stop - first)
                except (EvaluationError, ConfigError):
                    raise
                except Exception as error:
                    raise EvaluationError(
                        f"{task.key} on {cell}, scenes {first} to {stop - 1}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                path = file_of(folder, task, cell)
                path.parent.mkdir(parents=True, exist_ok=True)
                records = read_records(path)[:first] + records
                write_atomically(path, json.dumps({"code": task.code, "records": records}) + "\n")
                left[task.key, cell] = suite.scenes - stop
                ahead = sum(n * clock.pace(name, c) for (name, c), n in left.items())
                finished = not any(left[other.key, cell] for other in tasks)
                done = total - sum(left.values())
                on_progress(Progress(cell, task.key, done, total, ahead, finished))


def finished_cells(suite: Suite, tasks: Iterable[Task], folder: Path) -> Iterator[Cell]:
    """Cells of which every task has all scenes."""
    tasks = list(tasks)
    for cell in suite.cells:
        counts = (len(read_records(file_of(folder, task, cell))) for task in tasks)
        if all(count >= suite.scenes for count in counts):
            yield cell


def locked(folder: Path) -> FolderLock:
    """The lock of ``folder``, with what a killed evaluation left half written deleted.

    Raises:
        ConfigError: another process evaluates into the folder.
    """
    lock = FolderLock(folder)
    if not lock.try_acquire():
        raise ConfigError(f"{folder}: another evaluation is writing to it")
    for place in (folder, folder / "cells"):
        if place.is_dir():
            remove_drafts(place)
    return lock
