# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.plot FILE.json --out FOLDER``: the scaling curves of a run, with their floors.

One figure for each operator and size: time over size, both logarithmic; every variant eagerly and,
where it was measured, as a CUDA graph, with its 20 % to 80 % band, and its floor dashed.
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


def curves(report: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Points by operator and axis, in the order of the axis.

    Raises:
        ValueError: the report has another schema, or no curves.
    """
    if report.get("schema") != SCHEMA:
        raise ValueError(f"schema {report.get('schema')!r}, this plot reads schema {SCHEMA}")
    if not report.get("scaling"):
        raise ValueError("no scaling curves; measure them with `python -m bench --scaling`")
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for point in report["scaling"]:
        grouped.setdefault((point["operator"], point["axis"]), []).append(point)
    return {
        key: sorted(points, key=lambda p: p["sizes"][p["axis"]]) for key, points in grouped.items()
    }


def _draw_variant(axes: Any, points: Sequence[Mapping[str, Any]], axis: str, color: str) -> None:
    title = points[0]["title"]
    names = dict.fromkeys(entry["name"] for point in points for entry in point["entries"])
    for name, style in zip(names, ("-", ":"), strict=False):
        measured = [
            (point["sizes"][axis], entry)
            for point in points
            for entry in point["entries"]
            if entry["name"] == name and entry["status"] == "measured"
        ]
        if not measured:
            continue
        sizes = [size for size, _ in measured]
        mode = measured[0][1].get("mode", "")
        label = f"{title}, {mode}" if mode else title
        axes.plot(
            *(sizes, [entry["median"] for _, entry in measured]),
            linestyle=style,
            marker="o",
            markersize=3,
            color=color,
            label=label,
        )
        low, high = ([entry[q] for _, entry in measured] for q in ("q20", "q80"))
        axes.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
    floors = [(p["sizes"][axis], p["floor"]["seconds"]) for p in points if "floor" in p]
    if floors:
        axes.plot(*zip(*floors, strict=True), linestyle="--", color=color, label=f"floor, {title}")


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures as SVG and return their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    machine = report["machine"]
    where = machine["gpu"]["name"] if "gpu" in machine else machine["cpu"]
    paths = []
    for (operator, axis), points in curves(report).items():
        figure, axes = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
        variants = dict.fromkeys(point["variant"] for point in points)
        for index, variant in enumerate(variants):
            chosen = [point for point in points if point["variant"] == variant]
            _draw_variant(axes, chosen, axis, f"C{index}")
        fixed = ", ".join(f"{k} = {v}" for k, v in points[0]["sizes"].items() if k != axis)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel=SIZES[axis],
            ylabel="seconds a call",
            title=f"{operator}, {fixed}\n{where}, {report['created'][:10]}",
        )
        axes.grid(True, which="both", alpha=0.2)
        axes.legend(fontsize="small")
        paths.append(folder / f"{operator}_{axis}.svg")
        figure.savefig(paths[-1])
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
