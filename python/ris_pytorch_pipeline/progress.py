# SPDX-License-Identifier: Apache-2.0
"""What a run shows and records: a progress bar or plain lines, JSONL metrics, TensorBoard."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .durable import naming, write_atomically


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def duration(seconds: float) -> str:
    """Seconds as a reader sees them.

    >>> duration(83.2)
    '1m23s'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _open_records(path: Path, done_steps: int) -> TextIO:
    """``path`` for writing, with the records kept that the steps done before left behind.

    A run that was killed may have recorded steps after its last checkpoint, which are going to be
    taken again, and half a line.
    """
    kept = []
    lines = path.read_bytes().split(b"\n") if done_steps and path.is_file() else [b""]
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            wanted = record["step"] <= done_steps and record["kind"] != "swa"
        except (ValueError, TypeError, LookupError, RecursionError):
            # What was written after the last save is taken again; a loss before it is reported.
            warnings.warn(f"{path}: line {number} is damaged and left out", stacklevel=4)
            continue
        if wanted:
            kept.append(line.decode() + "\n")
    write_atomically(path, "".join(kept))
    return path.open("a", encoding="utf-8")


class RunLog:
    """Reports a run to the reader, to ``metrics.jsonl`` and, where installed, to TensorBoard.

    Args:
        folder: where the records go; None neither records nor prints anything.
        total_steps: steps of the whole run, for the bar and the time left.
        done_steps: steps that were done before (a resumed run).
        quiet: record, but print nothing.
    """

    def __init__(
        self, folder: Path | None, *, total_steps: int, done_steps: int = 0, quiet: bool = False
    ) -> None:
        quiet = quiet or folder is None
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.total_steps, self.done_steps = total_steps, done_steps
        self._first_step, self._started = done_steps, time.monotonic()
        self._records: TextIO | None = None
        if folder is not None:
            self._path, self._tensorboard_folder = folder / "metrics.jsonl", folder / "tensorboard"
            self._records = _open_records(self._path, done_steps)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self.console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("training", total=total_steps, completed=done_steps)
        self._tensorboard = None if folder is None else self._open_tensorboard()

    def _open_tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say("TensorBoard is not installed: metrics go to metrics.jsonl only")
            return None
        return SummaryWriter(str(self._tensorboard_folder))

    def __enter__(self) -> RunLog:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        first: OSError | None = None
        closing = [] if self._records is None else [(self._path, self._records.close)]
        if self._tensorboard is not None:
            closing.append((self._tensorboard_folder, self._tensorboard.close))
        for path, close in closing:
            try:
                with naming(path):
                    close()
            except OSError as problem:
                # Of several errors, as on a full disk, the first one says what happened.
                first = first or problem
        if error is None and first is not None:
            raise first

    def start_clock(self) -> None:
        """Training starts now: pace and time left count from here."""
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        """Print one line, above the bar where there is one."""
        self.console.print(line, markup=False)

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one line ``{"kind": ..., "step": ..., ...}`` to the metrics."""
        if self._records is None:
            return
        line = {"kind": kind, "step": self.done_steps}
        line |= {name: _plain(value) for name, value in values.items()}
        with naming(self._path):
            self._records.write(json.dumps(line) + "\n")
            self._records.flush()
        if self._tensorboard is not None:
            with naming(self._tensorboard_folder):
                for name, value in values.items():
                    if isinstance(value, (int, float)):
                        self._tensorboard.add_scalar(f"{kind}/{name}", value, self.done_steps)

    def sync(self) -> None:
        """Wait until all records are on the disk."""
        if self._records is None:
            return
        with naming(self._path):
            os.fsync(self._records.fileno())

    def advance(self, epoch: str, values: Mapping[str, float], *, show: bool) -> None:
        """Count one step; with ``show`` also record and show its values."""
        self.done_steps += 1
        if show:
            self.record("step", values)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"epoch {epoch}  {shown}")
        elif show:
            pace = (time.monotonic() - self._started) / (self.done_steps - self._first_step)
            left = duration(pace * (self.total_steps - self.done_steps))
            self.say(
                f"epoch {epoch}  step {self.done_steps}/{self.total_steps}  {shown}  "
                f"{pace:.2f} s/step  {left} left"
            )
