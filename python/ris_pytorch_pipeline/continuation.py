# SPDX-License-Identifier: Apache-2.0
"""What a trial takes over from an interrupted attempt: checkpoints and records, verified copies."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from .checkpoint import (
    FILES,
    MANIFEST,
    Checkpoint,
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    previous_of,
)
from .untrusted import read_bytes

RECORDS = "metrics.jsonl"


def carry_over(source: Path, folder: Path, device: str) -> list[str]:
    """Copy a run's saved state and records to ``folder``, to be continued there on ``device``.

    A copy, because the worker that seemed dead may wake up and write to its own folder. Returns
    what could not be read, where a checkpoint saved before it is used instead.

    Raises:
        CheckpointError: it cannot be continued; names the file in ``source``.
        OSError: the copy cannot be written.
    """
    last, problems = _copy_newest(source / "last", folder / "last")
    shutil.rmtree(folder / "best", ignore_errors=True)
    if has_checkpoint(source / "best"):
        problems += _copy_newest(source / "best", folder / "best")[1]
    _copy(source, folder, RECORDS)
    kind = last.state["device"]
    if kind != device:
        raise CheckpointError(f"{source}: saved on {kind}, and this worker is on {device}")
    return problems


def _copy_newest(source: Path, target: Path) -> tuple[Checkpoint, list[str]]:
    """Copy the newest readable one of a checkpoint and the one before it; what was not readable."""
    problems: list[str] = []
    for there in (source, previous_of(source)):
        if not there.is_dir():
            continue
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            load_checkpoint(there)
            for name in (MANIFEST, *FILES):
                _copy(there, target, name)
            # Its worker may have woken up and replaced files while they were copied.
            return load_checkpoint(target), problems
        except ValueError as error:
            problems.append(str(error))
    shutil.rmtree(target, ignore_errors=True)
    raise CheckpointError("; ".join(problems) or f"{source}: no such checkpoint folder")


def _copy(source: Path, target: Path, name: str) -> None:
    (target / name).write_bytes(read_bytes(source / name, sys.maxsize, CheckpointError))


def whole_records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Whole records of one kind in a run's ``metrics.jsonl``; damaged lines are left out."""
    found = []
    for line in (folder / RECORDS).read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
            if record["kind"] == kind:
                found.append(record)
        except (ValueError, TypeError, LookupError, RecursionError):
            continue  # the run says so when it opens its records
    return found
