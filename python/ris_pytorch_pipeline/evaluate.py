# SPDX-License-Identifier: Apache-2.0
"""Run estimators on the benchmark suite and write what they are worth.

:func:`evaluate` is the command ``ris evaluate`` for estimators that are objects in Python. Records
of every scene are kept by :mod:`.evaluation_runner`, and the report is made from them and from the
suite alone.
"""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from .checkpoint import config_differences
from .configs import ConfigError, CovarianceConfig, to_dict
from .durable import write_atomically
from .estimators import Estimator
from .evaluation_metrics import COLUMNS, SCHEMA, cell_results
from .evaluation_report import csv_text, report_text
from .evaluation_runner import (
    IDENTITY,
    Progress,
    check_identity,
    check_records,
    file_of,
    finished_cells,
    locked,
    read_records,
    run_tasks,
)
from .evaluation_tasks import BoundsTask, CovariancesTask, EstimatorTask, Task
from .machine import commit, machine, versions
from .suite import BLOCK, SEED, VERSION, Suite

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

Sources: TypeAlias = Literal["known", "unknown", "both"]
"""Whether an estimator is told K."""
_NAME = re.compile(r"[A-Za-z0-9_.+-]+")

REPORT, TABLE = "evaluation.json", "evaluation.csv"


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
    wrong = [name for name in names if not _NAME.fullmatch(name) or names.count(name) > 1]
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
        *(EstimatorTask(estimator, known, device) for estimator in estimators for known in modes),
    ]


def facts_of(suite: Suite, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Suite, machine, versions and commit, as they go into a report."""
    device = torch.device(device)
    simulation = to_dict(suite.simulation(suite.cells[0]))
    for name in ("min_sources", "snr_db_min", "snr_db_max"):
        del simulation[name]  # Those of a cell.
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
        "simulation": simulation,
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
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Run ``estimators`` on ``suite`` and return the report.

    ``folder`` gets ``evaluation.json`` (the report), ``evaluation.csv`` (one line for each cell,
    estimator and mode) and ``cells/`` with the records. Both are written whatever ends the run,
    with the cells that are finished by then.

    Args:
        estimators: anything with a name that is called as :class:`~.estimators.Estimator`.
        suite: what they are run on.
        folder: made if needed. Records in it that are of the same evaluation are kept.
        sources: whether K is told.
        device: where the estimators get their scenes; the scenes are the same on every device.
        batch_size: scenes of a call, rounded up to whole blocks.
        checkpoint: its covariances are compared with the true ones.
        note: more facts that records must agree in, such as a checkpoint's digest.
        overwrite: delete the records that are there first.
        on_progress: called after every batch.

    Raises:
        ConfigError: the folder holds another evaluation, records of an estimator whose code was
            edited since or damaged ones, or an argument cannot be used.
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
    with locked(folder):
        if overwrite:
            shutil.rmtree(folder / "cells", ignore_errors=True)
            (folder / IDENTITY).unlink(missing_ok=True)
        check_identity(folder, {"suite": grows, **same})
        check_records(suite, tasks, folder)
        try:
            run_tasks(suite, tasks, folder, batch_size=batch_size, on_progress=on_progress)
        finally:
            report = make_report(suite, tasks, folder, facts)
            write_atomically(folder / REPORT, report_text(report))
            write_atomically(folder / TABLE, csv_text(report))
    return report
