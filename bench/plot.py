# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.plot FILE.json --out FOLDER``: the scaling curves of a run, with their floors.

One figure an operator, ``scaling_<operator>.svg``, one panel for each size: time over size, both
logarithmic. A colour for each variant: the kernel solid, as a CUDA graph dotted where that was
measured, the fastest eager peer dash-dotted, each with its 20 % to 80 % band, the floor dashed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import SCHEMA

SIZES = {"B": "scenes B", "N": "elements N", "L": "snapshots L", "M": "antennas M"}
KERNEL, GRAPH, PEER = "-", ":", "-."
Points = Sequence[Mapping[str, Any]]


def curves(report: Mapping[str, Any]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Points by operator and axis, in the order of the axis.

    Raises:
        ValueError: the report has another schema, or no curves.
    """
    if report.get("schema") != SCHEMA:
        raise ValueError(f"schema {report.get('schema')!r}, this plot reads schema {SCHEMA}")
    if not report.get("scaling"):
        raise ValueError("no scaling curves; measure them with `python -m bench --scaling`")
    grouped: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for point in report["scaling"]:
        of_operator = grouped.setdefault(point["operator"], {})
        of_operator.setdefault(point["axis"], []).append(point)
    for of_operator in grouped.values():
        for axis, points in of_operator.items():
            points.sort(key=lambda point, axis=axis: point["sizes"][axis])
    return grouped


def _style(entry: Mapping[str, Any]) -> str:
    if entry["kind"] == "peer":
        return PEER
    return GRAPH if "mode" in entry else KERNEL


def _draw_variant(axes: Any, points: Points, axis: str, color: str) -> None:
    title = points[0]["title"]
    measured: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for point in points:
        for entry in point["entries"]:
            if entry["status"] == "measured":
                measured.setdefault(entry["name"], []).append((point["sizes"][axis], entry))
    for found in measured.values():
        sizes, entries = zip(*found, strict=True)
        style = _style(entries[0])
        axes.plot(
            sizes,
            [entry["median"] for entry in entries],
            linestyle=style,
            marker="." if style == PEER else "o",
            markersize=3,
            linewidth=1.5 if style == KERNEL else 1.0,
            color=color,
            label=f"{entries[0]['title']}: {title}",
        )
        low, high = ([entry[quantile] for entry in entries] for quantile in ("q20", "q80"))
        axes.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
    floors = [(p["sizes"][axis], p["floor"]["seconds"]) for p in points if "floor" in p]
    if floors:
        drawn = list(zip(*floors, strict=True))
        axes.plot(*drawn, linestyle="--", linewidth=0.8, color=color, label=f"floor: {title}")


def _draw_axis(axes: Any, points: Points, axis: str, variants: Sequence[str]) -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    for index, variant in enumerate(variants):
        chosen = [point for point in points if point["variant"] == variant]
        if chosen:
            _draw_variant(axes, chosen, axis, f"C{index}")
    fixed = ", ".join(f"{k} = {v}" for k, v in points[0]["sizes"].items() if k != axis)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel=SIZES[axis], title=fixed)
    axes.title.set_fontsize("small")
    # The sizes that were measured, not powers of ten.
    axes.set_xticks(sorted({point["sizes"][axis] for point in points}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize="small")
    axes.grid(True, which="major", alpha=0.3)


def _draw_operator(report: Mapping[str, Any], operator: str, panels: Mapping[str, Points]) -> Any:
    from matplotlib import pyplot

    machine, versions = report["machine"], report["versions"]
    where = f"{machine['cpu']}, {versions['simd_level']}, {report['threads']} thread"
    where = machine["gpu"]["name"] if "gpu" in machine else where + "s" * (report["threads"] > 1)
    columns = 2
    rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(8.4, 0.9 + 3.1 * rows), squeeze=False, layout="constrained"
    )
    variants = list(dict.fromkeys(p["variant"] for points in panels.values() for p in points))
    for axes, (axis, points) in zip(grid.flat, panels.items(), strict=False):
        _draw_axis(axes, points, axis, variants)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("seconds a call")
    labelled: dict[str, Any] = {}
    for axes in grid.flat:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, line)
    figure.legend(
        labelled.values(), labelled, loc="outside lower center", ncols=2, fontsize="small"
    )
    figure.suptitle(f"{operator}\n{where}, {report['created'][:10]}", fontsize="medium")
    return figure


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures as SVG and return their paths; the same report gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "riskernels"
    from matplotlib import pyplot

    paths = []
    for operator, panels in curves(report).items():
        figure = _draw_operator(report, operator, panels)
        paths.append(folder / f"scaling_{operator}.svg")
        figure.savefig(paths[-1], metadata={"Date": None})
        pyplot.close(figure)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("file", type=Path, help="a file that `python -m bench --scaling` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    options = parser.parse_args(arguments)
    try:
        report = json.loads(options.file.read_text())
        options.out.mkdir(parents=True, exist_ok=True)
        paths = draw(report, options.out)
    except (OSError, json.JSONDecodeError, ValueError) as error:
        parser.error(f"{options.file}: {error}")
    print("\n".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
