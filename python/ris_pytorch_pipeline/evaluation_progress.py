# SPDX-License-Identifier: Apache-2.0
"""What an evaluation shows while it runs: a bar with the time left, or a line for each cell."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from . import evaluation_runner as runner
from .progress import duration


class EvaluationProgress:
    """Shows each :class:`~ris_pytorch_pipeline.evaluation_runner.Progress` that it is called with.

    Estimators differ in their pace a hundredfold, so that the time left is not what a bar would
    guess from the last seconds: it comes with the progress.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=console,
            )
            self._task = self._bar.add_task("evaluating", total=None, left="")

    def __enter__(self) -> EvaluationProgress:
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

    def __call__(self, progress: runner.Progress) -> None:
        left = f"{duration(progress.seconds_left)} left"
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=f"{progress.cell}  {progress.task}",
                completed=progress.done,
                total=progress.total,
                left=left,
            )
        elif progress.cell_done:
            share = 100 * progress.done / progress.total
            passed = duration(time.monotonic() - self._started)
            self.console.print(
                f"{progress.cell}: done, {share:.0f} % of all in {passed}, {left}", markup=False
            )
