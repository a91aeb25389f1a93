# SPDX-License-Identifier: Apache-2.0
"""What ``ris profile`` shows of its report: tables (:func:`size_table`) and a figure.

Both need nothing but the report, the content of its JSON file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configs import ConfigError
from .plots import new_figure
from .profile import SCHEMA
from .untrusted import LARGE, read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

Report = dict[str, Any]
COLOURS = {
    "data": "#bab0ac",
    "back-projection": "#e15759",
    "model forward": "#4e79a7",
    "loss forward": "#f28e2b",
    "loss backward": "#edc948",
    "model backward": "#a0cbe8",
    "optimizer": "#76b7b2",
}
"""Warm colours are covariances and loss, cold ones the network."""
COVARIANCE = "covariance + loss"


def read_report(path: str | Path) -> Report:
    """A report from its JSON file.

    Raises:
        ConfigError: the file is not there, or holds something else.
    """
    report = read_json(Path(path), LARGE, ConfigError)
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: no report of `ris profile` (schema {SCHEMA!r})")
    return report


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def by_size(cases: Sequence[Report]) -> dict[int, list[Report]]:
    """The results of every size, in order."""
    sizes: dict[int, list[Report]] = {}
    for case in cases:
        sizes.setdefault(case["elements"], []).append(case)
    return sizes


def size_table(cases: Sequence[Report], covariance_phases: Sequence[str]) -> Table:
    """Milliseconds and share of every phase, one column per path; of the results of one size."""
    from rich.table import Table

    table = Table(title=f"N = {cases[0]['elements']}: ms of a step (share)", title_justify="left")
    table.add_column("phase")
    for case in cases:
        table.add_column(case["path"], justify="right")

    def row(label: str, times: Sequence[float], *, style: str = "", end: bool = False) -> None:
        cells = [
            f"{1000 * value:.2f} ({100 * value / case['step']:4.1f}%)"
            for value, case in zip(times, cases, strict=True)
        ]
        table.add_row(label, *cells, style=style, end_section=end)

    phases = list(cases[0]["phases"])
    for name in phases:
        label = f"{name} *" if name in covariance_phases else name
        row(label, [case["phases"][name] for case in cases], end=name == phases[-1])
    row("step", [case["step"] for case in cases])
    row(f"{COVARIANCE} *", [case["covariance_and_loss"] for case in cases], style="bold")
    if "speedup" in cases[0]:
        speedups = [f"{case['speedup']:.1f}x" for case in cases]
        table.add_row("speedup of *", *speedups)
    return table


def summary(cases: Sequence[Report]) -> str:
    """One line on the results of one size."""
    parts = []
    for case in cases:
        text = f"{case['path']} {100 * case['share']:.1f} % of the step"
        if "speedup" in case and case["path"] != "reference":
            text += f", {case['speedup']:.1f}x faster than the reference"
        parts.append(text)
    return f"N = {cases[0]['elements']}: {COVARIANCE}: {'; '.join(parts)}"


def machine_line(report: Report) -> str:
    """What was measured on."""
    device = report["machine"].get("gpu", {}).get("name") or report["machine"]["cpu"]
    count, settings = report["threads"], report["settings"]
    threads = f"{count} thread{'s' * (count > 1)}"
    where = device if "gpu" in report["machine"] else f"{device}, {threads}"
    return (
        f"{where}, torch {report['versions']['torch']}, B = {settings['batch_size']}, median of "
        f"{settings['steps']} step{'s' * (settings['steps'] > 1)}"
    )


def markdown_table(report: Report) -> str:
    """One row per size and path: the step, what covariance and loss take of it, and the speedup."""
    lines = [
        f"| N | path | step | {COVARIANCE} | share | speedup of {COVARIANCE} |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for case in report["cases"]:
        times = [_time(case[key]) for key in ("step", "covariance_and_loss")]
        speedup = f"{case['speedup']:.1f}x" if "speedup" in case else ""
        cells = [case["elements"], case["path"], *times, f"{100 * case['share']:.1f} %", speedup]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    commit = (report["commit"] or "unknown")[:10] + (" (modified)" if report["modified"] else "")
    return "\n".join(
        [*lines, "", f"{machine_line(report)}; commit {commit}, {report['created'][:10]}."]
    )


def profile_figure(report: Report) -> Figure:
    """Stacked bars: time of a step by phase, a panel per size and a bar per path.

    Raises:
        ConfigError: Matplotlib is not installed.
    """
    sizes = by_size(report["cases"])
    figure = new_figure(len(sizes))
    panels = figure.subplots(len(sizes), 1, squeeze=False)[:, 0]
    figure.suptitle(f"Where a training step's time goes: {machine_line(report)}", fontsize=10)
    for axes, (elements, cases) in zip(panels, sizes.items(), strict=True):
        start = [0.0] * len(cases)
        names = [case["path"] for case in cases]
        for phase in report["phases"]:
            width = [1000 * case["phases"][phase] for case in cases]
            covariance = phase in report["covariance_phases"]
            axes.barh(
                names,
                width,
                left=start,
                color=COLOURS[phase],
                edgecolor="black" if covariance else "white",
                linewidth=0.7,
                hatch="///" if covariance else None,
                label=f"{phase} *" if covariance else phase,
            )
            start = [left + w for left, w in zip(start, width, strict=True)]
        longest = max(start)
        for position, (end, case) in enumerate(zip(start, cases, strict=True)):
            text = f" {_time(case['step'])}, * {100 * case['share']:.1f} %"
            axes.text(end + 0.005 * longest, position, text, va="center", fontsize=9)
        axes.set_xlim(0, 1.25 * longest)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.set_title(f"N = {elements}", fontsize=10, loc="left")
    panels[-1].set_xlabel(f"milliseconds; * {COVARIANCE}")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize=9)
    return figure
