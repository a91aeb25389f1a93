# SPDX-License-Identifier: Apache-2.0
"""Figures of a training run (:func:`run_figure`) and of a search (:func:`study_figure`).

Both are drawn from what a run and a search leave in their folders, ``metrics.jsonl`` and
``study.db`` or ``study.journal``, which are only read. Matplotlib is imported when a figure is
made, and without ``pyplot``: no window, no global state.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configs import ConfigError

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator
    from optuna.trial import FrozenTrial

DPI = 100
WIDTH, PANEL_HEIGHT = 10.0, 2.9
"""Inches of a figure and of each of its panels."""
Record = dict[str, Any]


def new_figure(panels: int) -> Figure:
    """An empty figure for ``panels`` panels, one below the other.

    Raises:
        ConfigError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ConfigError(
            'figures need Matplotlib, which is not installed: pip install "riskernels[plots]"'
        ) from None
    size = (WIDTH, PANEL_HEIGHT * panels + 0.5)
    return Figure(figsize=size, dpi=DPI, layout="constrained")


def read_records(folder: Path) -> list[Record]:
    """The records of ``metrics.jsonl`` in a run's folder.

    A last line without its end is left out: the run is writing it, or was killed at it.

    Raises:
        ConfigError: the file is missing, empty, or has a line that is not a record.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected the folder of a training run")
    lines = path.read_bytes().split(b"\n")[:-1]
    if not lines:
        raise ConfigError(f"{path}: empty, the run has recorded nothing yet")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number} is not valid JSON ({error})") from None
        if not isinstance(record, dict) or not {"kind", "step"} <= record.keys():
            raise ConfigError(f"{path}: line {number} is not a record with a kind and a step")
        records.append(record)
    return records


def _curve(records: Sequence[Record], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the records that have ``name``; what was not finite becomes NaN."""
    chosen = [record for record in records if name in record]
    values = [math.nan if record[name] is None else float(record[name]) for record in chosen]
    return [record["step"] for record in chosen], values


def _whole_numbers() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", integer=True, min_n_ticks=1)


def _finish(axes: Axes) -> None:
    """Grid, whole numbers on the x axis, and the legend beside the data."""
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize=9)


def run_figure(folder: str | Path) -> Figure:
    """Losses, learning rate and loss terms of a training run, over its steps and epochs.

    Args:
        folder: of the run, with its ``metrics.jsonl``.

    Raises:
        ConfigError: the metrics are missing or damaged, hold no finite loss, or Matplotlib is not
            installed.
    """
    folder = Path(folder)
    records = read_records(folder)
    kinds: dict[str, list[Record]] = {kind: [] for kind in ("step", "epoch", "skipped", "swa")}
    for record in records:
        kinds.get(record["kind"], []).append(record)
    steps, epochs = kinds["step"], kinds["epoch"]
    losses = _curve(steps, "loss")[1] + _curve(epochs, "val_loss")[1]
    if not any(map(math.isfinite, losses)):
        raise ConfigError(f"{folder / 'metrics.jsonl'}: no finite loss to draw")
    sums = ("val_loss", "val_total")
    names = [n for n in (epochs[0] if epochs else ()) if n.startswith("val_") and n not in sums]
    terms = [name.removeprefix("val_") for name in names]

    figure = new_figure(4 if terms else 2)
    panels = figure.subplots(4 if terms else 2, 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(f"Training run {folder}", fontsize=11, parse_math=False)

    axes = panels[0]
    axes.plot(*_curve(steps, "loss"), color="tab:gray", lw=1, marker=".", label="training, step")
    axes.plot(
        *_curve(epochs, "train_loss"), color="tab:blue", marker="o", label="training, epoch mean"
    )
    axes.plot(*_curve(epochs, "val_loss"), color="tab:orange", marker="s", label="validation")
    if any(record["val_loss"] is not None for record in kinds["swa"]):
        axes.plot(
            *_curve(kinds["swa"], "val_loss"),
            color="tab:red",
            linestyle="none",
            marker="*",
            markersize=11,
            label="validation, SWA weights",
        )
    if kinds["skipped"]:
        axes.plot(
            [record["step"] for record in kinds["skipped"]],
            [0.03] * len(kinds["skipped"]),
            color="black",
            linestyle="none",
            marker="x",
            transform=axes.get_xaxis_transform(),
            label="skipped step (not finite)",
        )
    axes.set_ylabel("weighted loss (no unit)")
    if epochs:
        pace = epochs[0]["step"] / epochs[0]["epoch"]
        top = axes.secondary_xaxis("top", functions=(lambda s: s / pace, lambda e: e * pace))
        top.set_xlabel("epoch")
        top.xaxis.set_major_locator(_whole_numbers())

    axes = panels[1]
    axes.plot(*_curve(steps, "lr"), color="tab:green", marker=".", label="backbone")
    axes.set_ylabel("learning rate (no unit)")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)

    for axes, part in zip(panels[2:], ("training", "validation"), strict=False):
        prefix = {"training": "train", "validation": "val"}[part]
        for name in terms:
            unit = " (rad)" if name == "angle" else ""
            axes.plot(*_curve(epochs, f"{prefix}_{name}"), marker="o", label=f"{name}{unit}")
        axes.set_ylabel(f"{part} terms, unweighted")
    for axes in panels:
        _finish(axes)
    panels[-1].set_xlabel("training step")
    panels[-1].set_xlim(left=0)
    return figure


def _open_to_read(path: Path) -> optuna.storages.BaseStorage:
    """A storage that is only read, so that looking at a search cannot disturb it."""
    import optuna

    if path.suffix == ".journal":
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    # A connection of our own: SQLAlchemy's versions differ in how they unquote a URL's path.
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connect = partial(sqlite3.connect, uri, uri=True, check_same_thread=False)
    return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})


def study_file(folder: Path) -> Path:
    """Where a search with this results folder keeps its studies: a database or a journal."""
    journal = folder / "study.journal"
    return journal if journal.is_file() else folder / "study.db"


def read_studies(folder: Path) -> dict[str, list[FrozenTrial]]:
    """Trials of every study in the :func:`study_file` of a search, by study name.

    Raises:
        ConfigError: the database is missing, empty or not one of Optuna's.
    """
    import optuna

    path = study_file(folder)
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; expected the results folder of a search (a search with "
            "--storage keeps its study there)"
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = _open_to_read(path)
        names = optuna.get_all_study_names(storage)
        return {
            name: optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
            for name in sorted(names)
        }
    except Exception as error:
        # Optuna and the database driver have exceptions of their own; all mean the same here.
        raise ConfigError(
            f"{path}: not a study of Optuna that can be read ({type(error).__name__})"
        ) from error


def _draw_study(axes: Axes, name: str, trials: Sequence[FrozenTrial]) -> None:
    def of(state: str) -> list[FrozenTrial]:
        return [trial for trial in trials if trial.state.name == state]

    done, failed = of("COMPLETE"), of("FAIL")
    pruned = [trial for trial in of("PRUNED") if trial.intermediate_values]
    numbers = [trial.number for trial in done]
    values = [trial.values[0] for trial in done]
    end = max(trial.number for trial in trials) + 0.5
    best = [*accumulate(values, min), min(values)]
    axes.plot(numbers, values, "o", color="tab:blue", label="complete trial")
    axes.plot(
        [*numbers, end],
        best,
        color="tab:orange",
        drawstyle="steps-post",
        zorder=1,
        label="best so far",
    )
    if pruned:
        last = [t.intermediate_values[max(t.intermediate_values)] for t in pruned]
        axes.plot(
            [t.number for t in pruned],
            last,
            "o",
            color="tab:gray",
            fillstyle="none",
            label="pruned trial, last value",
        )
    if failed:
        axes.plot(
            [trial.number for trial in failed],
            [0.03] * len(failed),
            "x",
            color="black",
            transform=axes.get_xaxis_transform(),
            label="failed trial (no value)",
        )
    axes.set_title(f"study {name}", fontsize=10, parse_math=False)
    axes.set_xlabel("trial number")
    axes.set_ylabel("objective: validation\nloss (no unit)")
    axes.set_xlim(-0.5, end)
    _finish(axes)


def study_figure(folder: str | Path) -> Figure:
    """Objective of every trial and the best so far, one panel per study of a search.

    Args:
        folder: results folder of the search, with its ``study.db`` or ``study.journal``.

    Raises:
        ConfigError: the database is missing or damaged, holds no trial with a value, or Matplotlib
            is not installed.
    """
    folder = Path(folder)
    studies = {
        name: trials
        for name, trials in read_studies(folder).items()
        if any(trial.state.name == "COMPLETE" for trial in trials)
    }
    if not studies:
        raise ConfigError(f"{study_file(folder)}: no completed trial to draw")
    figure = new_figure(len(studies))
    panels = figure.subplots(len(studies), 1, squeeze=False)[:, 0]
    figure.suptitle(f"Search {folder}", fontsize=11, parse_math=False)
    for axes, (name, trials) in zip(panels, studies.items(), strict=True):
        _draw_study(axes, name, trials)
    return figure
