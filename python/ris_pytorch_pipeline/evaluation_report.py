# SPDX-License-Identifier: Apache-2.0
"""What ``ris evaluate`` shows of its report: a CSV file, Markdown tables and lines of text.

All of it is made from the report alone, the content of ``evaluation.json``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .configs import ConfigError
from .evaluation_metrics import COLUMNS, SCHEMA
from .set_metrics import CUTOFF

Report = dict[str, Any]
BOUNDS = ("peb_deterministic", "peb_stochastic", "azimuth_bound", "elevation_bound", "range_bound")
SHOWN = {
    "gospa": ("GOSPA (m)", "{:.2f}"),
    "median_error": ("median position error (m)", "{:.3f}"),
    "f1_0.5m": ("F1 at 0.5 m", "{:.2f}"),
}
"""Numbers that get a Markdown table, with their titles and formats."""
TABLES = {True: ("gospa", "median_error"), False: ("gospa", "f1_0.5m")}
"""Which of them, where the number of sources is known and where it is not."""


def read_report(path: str | Path) -> Report:
    """A report from its JSON file.

    Raises:
        ConfigError: the file is not there, or holds something else.
    """
    try:
        report = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: no report of `ris evaluate` (schema {SCHEMA!r})")
    return report


def report_text(report: Report) -> str:
    """The report as JSON, with a line for each cell and each estimator in it."""

    def cell_text(cell: Report) -> str:
        entries = ",\n   ".join(json.dumps(entry) for entry in cell["estimators"])
        head = json.dumps({k: v for k, v in cell.items() if k != "estimators"})
        return f'{head[:-1]}, "estimators": [\n   {entries}]}}'

    head = json.dumps({k: v for k, v in report.items() if k != "cells"}, indent=1)
    cells = ",\n  ".join(map(cell_text, report["cells"]))
    return f'{head[:-2]},\n "cells": [\n  {cells}\n ]\n}}\n'


def csv_text(report: Report) -> str:
    """One line for each cell, estimator and whether K was known; bounds of the cell beside it."""
    text = io.StringIO()
    names = ["num_sources", "snr_db", "scenes", "estimator", "sources_known", *COLUMNS, *BOUNDS]
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for cell in report["cells"]:
        for entry in cell["estimators"]:
            writer.writerow({**cell, **cell["bounds"], **entry})
    return text.getvalue()


def estimators_of(report: Report, sources_known: bool) -> list[str]:
    """Names of the estimators that ran with K known, or unknown, in their order."""
    found = {
        entry["estimator"]: None
        for cell in report["cells"]
        for entry in cell["estimators"]
        if entry["sources_known"] == sources_known
    }
    return list(found)


def entry_of(cell: Report, estimator: str, sources_known: bool) -> Report | None:
    """The numbers of an estimator in a cell; None where it did not run."""
    for entry in cell["estimators"]:
        if entry["estimator"] == estimator and entry["sources_known"] == sources_known:
            return dict(entry)
    return None


def answers_all(entry: Report) -> bool:
    """Whether there are as many estimates as sources.

    A median over the matched pairs of an estimator that answers fewer is one over the sources that
    it chose, and compares with no other.
    """
    return bool(entry["estimates"] >= entry["sources"])


def machine_line(report: Report) -> str:
    """What was evaluated, where and when."""
    gpu = report["machine"].get("gpu")
    threads = report["threads"]
    where = (
        gpu["name"]
        if gpu
        else f"{report['machine']['cpu']}, {threads} thread{'s' if threads > 1 else ''}"
    )
    commit = (report["commit"] or "unknown")[:10] + (" (modified)" if report["modified"] else "")
    suite = report["suite"]
    return (
        f"Suite {suite['version']} (fingerprint {suite['fingerprint']}), "
        f"{suite['scenes']} scenes a cell; {where}, torch {report['versions']['torch']}; "
        f"commit {commit}, {report['created'][:10]}.{_checkpoint(report)}"
    )


def _checkpoint(report: Report) -> str:
    """What the learned estimators' network is."""
    made = report.get("checkpoint")
    if not made:
        return ""
    recipe = f"recipe {made['recipe']}" if made["recipe"] else "no recipe's"
    loss = made["val_loss"]
    trained = "no validation loss" if loss is None else f"validation loss {loss:.4f}"
    return (
        f" Checkpoint: configuration {made['config_sha256'][:12]} ({recipe}), {trained}, "
        f"weights {made['weights_sha256'][:12]}."
    )


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(report: Report, measure: str, sources_known: bool) -> list[str]:
    """Estimators down, SNR across, one block of rows for each number of sources."""
    title, form = SHOWN[measure]
    snrs = sorted({cell["snr_db"] for cell in report["cells"]})
    counts = sorted({cell["num_sources"] for cell in report["cells"]})
    cells = {(cell["num_sources"], cell["snr_db"]): cell for cell in report["cells"]}
    names = estimators_of(report, sources_known)
    better = max if measure.startswith("f1") else min
    lines = [_row(["K", title, *(f"{snr:g} dB" for snr in snrs)])]
    lines.append("|---:|---|" + "---:|" * len(snrs))
    for count in counts:
        rows: dict[str, list[str]] = {name: [] for name in names}
        bound: list[str] = []
        spread: list[float | None] = []
        for snr in snrs:
            cell = cells.get((count, snr))
            found = [entry_of(cell, name, sources_known) if cell else None for name in names]
            partial = [
                measure == "median_error" and e is not None and not answers_all(e) for e in found
            ]
            values = [None if entry is None else entry[measure] for entry in found]
            rivals = [
                v for v, part in zip(values, partial, strict=True) if v is not None and not part
            ]
            best = better(rivals, default=None)
            for name, entry, value, part in zip(names, found, values, partial, strict=True):
                text = _text(value, form)
                # All that print as the best one does are the best one.
                if part and entry is not None:
                    text += f" ({100 * entry['estimates'] // entry['sources']} %)"
                elif best is not None and text == _text(best, form):
                    text = f"**{text}**"
                rows[name].append(text)
            bound.append(_text(cell["bounds"]["peb_deterministic"] if cell else None, form))
            errors = [entry.get("gospa_error") for entry in found if entry is not None]
            spread.append(max((e for e in errors if e is not None), default=None))
        lines += [_row([str(count), name, *row]) for name, row in rows.items()]
        if measure == "median_error":
            lines.append(_row([str(count), "*bound (median PEB)*", *bound]))
        if measure == "gospa":
            nothing = form.format(math.sqrt(count * CUTOFF**2 / 2))
            lines.append(_row([str(count), "*no answer*", *[nothing] * len(snrs)]))
            if any(error is not None for error in spread):
                shown = [_text(error, form) for error in spread]
                lines.append(_row([str(count), "*largest standard error*", *shown]))
    return lines


def _times(report: Report) -> str:
    """Median over the cells of the time per scene, for every estimator."""
    parts = []
    for known in (True, False):
        for name in estimators_of(report, known):
            entries = (entry_of(cell, name, known) for cell in report["cells"])
            values = sorted(e["seconds_per_scene"] for e in entries if e is not None)
            mode = "" if known else ", K unknown"
            parts.append(f"{name}{mode} {1000 * values[len(values) // 2]:.3g} ms")
    return f"Time per scene, median of the cells: {'; '.join(parts)}."


def markdown(report: Report, measures: Sequence[str] = ()) -> str:
    """The tables of README and documentation, or those of the named measures alone.

    Raises:
        ValueError: the report has no cell, or a measure has no table.
    """
    if not report["cells"]:
        raise ValueError("the report has no finished cell")
    unknown = set(measures) - set(SHOWN)
    if unknown:
        raise ValueError(f"no table of {', '.join(sorted(unknown))}, only of {', '.join(SHOWN)}")
    lines = []
    for known, tables in TABLES.items():
        for measure in tables if estimators_of(report, known) else ():
            if measures and measure not in measures:
                continue
            lines += [f"Number of sources {'known' if known else 'unknown'}:", ""]
            lines += [*_table(report, measure, known), ""]
    return "\n".join([*lines, _times(report), "", machine_line(report)])
