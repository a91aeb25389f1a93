# SPDX-License-Identifier: Apache-2.0
"""Run estimators over the benchmark suite, restartably, and write what they are worth.

What is computed of a cell (positions of an estimator, bounds, errors of covariances) is kept as one
file in ``cells/``, with a record for each scene, and grows batch by batch. An evaluation that is
stopped goes on where it was, and one with more scenes computes only those. The report is made from
these files and from the suite alone.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from .checkpoint import config_differences
from .configs import ConfigError, CovarianceConfig, to_dict
from .durable import remove_drafts, write_atomically
from .evaluation_metrics import COLUMNS, SCHEMA, cell_results
from .evaluation_report import csv_text
from .evaluation_tasks import (
    BoundsTask,
    CovariancesTask,
    Estimator,
    EstimatorTask,
    EvaluationError,
    Record,
    Task,
)
from .locking import FolderLock
from .machine import commit, machine, versions
from .suite import BLOCK, SEED, VERSION, Cell, Suite

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

Sources: TypeAlias = Literal["known", "unknown", "both"]
"""Whether an estimator is told K."""
NAME = re.compile(r"[A-Za-z0-9_.+-]+")

IDENTITY, REPORT, TABLE = "identity.json", "evaluation.json", "evaluation.csv"


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
    try:
        records = json.loads(path.read_text())["records"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: damaged; delete it, and it is computed again") from None
    return list(records)


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
        raise ConfigError(f"{path}: damaged; choose another --out") from None
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
                write_atomically(path, json.dumps({"records": records}) + "\n")
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


def make_report(
    suite: Suite, tasks: Sequence[Task], folder: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """The report of the cells that are finished, as it goes into ``evaluation.json``.

    ``facts`` (machine, versions, commit, estimators and so on) go in as they are.
    """
    cells = []
    for cell in finished_cells(suite, tasks, folder):
        records = {
            task.key: read_records(file_of(folder, task, cell))[: suite.scenes] for task in tasks
        }
        cells.append(cell_results(suite, cell, records))
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "schema": SCHEMA,
        "created": now.isoformat(timespec="seconds"),
        **facts,
        "complete": len(cells) == len(suite.cells),
        "cells": cells,
    }


def _locked(folder: Path) -> FolderLock:
    lock = FolderLock(folder)
    if not lock.try_acquire():
        raise ConfigError(f"{folder}: another evaluation is writing to it")
    for place in (folder, folder / "cells"):
        if place.is_dir():
            remove_drafts(place)
    return lock


def tasks_for(
    estimators: Sequence[Estimator],
    suite: Suite,
    *,
    sources: Sources = "both",
    device: torch.device | str = "cpu",
    checkpoint: Checkpoint | None = None,
) -> list[Task]:
    """Bounds, errors of covariances, and every estimator with K known, unknown or both.

    Raises:
        ConfigError: two estimators have one name, a name is no part of a file's name, or the
            checkpoint was made for another system.
    """
    names = [estimator.name for estimator in estimators]
    wrong = [name for name in names if not NAME.fullmatch(name) or names.count(name) > 1]
    if wrong:
        raise ConfigError(
            f"estimator {wrong[0]!r}: expected a name of its own of letters, digits, '_', '.', "
            "'+' and '-'"
        )
    device, covariance = torch.device(device), CovarianceConfig()
    if checkpoint is not None:
        differences = config_differences(suite.system, checkpoint.config.system)
        if differences:
            raise ConfigError(
                "the checkpoint was made for another system than the suite's (suite -> "
                f"checkpoint): {', '.join(differences)}"
            )
        covariance = checkpoint.config.covariance
    modes = {"known": (True,), "unknown": (False,), "both": (True, False)}[sources]
    return [
        BoundsTask(suite.system),
        CovariancesTask(suite.system, covariance, device, checkpoint),
        *(
            EstimatorTask(estimator, known, suite.system, device)
            for estimator in estimators
            for known in modes
        ),
    ]


def facts_of(suite: Suite, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Suite, machine, versions and commit, as they go into a report."""
    device = torch.device(device)
    return {
        "suite": {
            "version": VERSION,
            "seed": SEED,
            "fingerprint": suite.fingerprint(),
            "scenes": suite.scenes,
            "counts": list(suite.counts),
            "snrs_db": list(suite.snrs_db),
        },
        "system": to_dict(suite.system),
        "simulation": to_dict(suite.simulation(suite.cells[0])),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "machine": machine(device.type, device.index),
        "versions": versions(("torch", "numpy", "scipy")),
        **commit(),
        "columns": COLUMNS,
    }


def evaluate(
    estimators: Sequence[Estimator],
    suite: Suite,
    folder: str | Path,
    *,
    sources: Sources = "both",
    device: torch.device | str = "cpu",
    batch_size: int = 2 * BLOCK,
    checkpoint: Checkpoint | None = None,
    note: dict[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Run ``estimators`` on ``suite`` and return the report.

    ``folder`` gets ``evaluation.json`` (the report), ``evaluation.csv`` (one line for each cell,
    estimator and mode) and ``cells/`` with the records. Both are written whatever ends the run,
    with the cells that are finished by then.

    Args:
        estimators: anything with a name that is called as :class:`~.evaluation_tasks.Estimator`.
        suite: what they are run on.
        folder: made if needed. Records in it that are of the same evaluation are kept.
        sources: whether K is told.
        device: where the estimators get their scenes; the scenes are the same on every device.
        batch_size: scenes of a call, rounded up to whole blocks.
        checkpoint: its covariances are compared with the true ones.
        note: more facts that records must agree in, such as a checkpoint's digest.

    Raises:
        ConfigError: the folder holds another evaluation, or an argument cannot be used.
        EvaluationError: an estimator failed or broke its contract.
    """
    if batch_size < 1:
        raise ConfigError(f"evaluate: batch_size is {batch_size}, expected at least 1")
    folder = Path(folder)
    tasks = tasks_for(estimators, suite, sources=sources, device=device, checkpoint=checkpoint)
    facts = {**facts_of(suite, device), **(note or {})}
    # The suite may grow, in cells and in scenes.
    grows = {key: facts["suite"][key] for key in ("version", "seed")}
    same = {key: facts[key] for key in facts if key not in ("suite", "simulation", "columns")}
    with _locked(folder):
        check_identity(folder, {"suite": grows, **same})
        try:
            run_tasks(suite, tasks, folder, batch_size=batch_size, on_progress=on_progress)
        finally:
            report = make_report(suite, tasks, folder, facts)
            write_atomically(folder / REPORT, json.dumps(report, indent=1) + "\n")
            write_atomically(folder / TABLE, csv_text(report))
    return report
