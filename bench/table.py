# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.table FILE.json``: the Markdown table of a run, from its JSON file alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import SCHEMA


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _heading(case: Mapping[str, Any]) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in case["sizes"].items())
    return f"{case['title']}<br>{sizes}"


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    if entry["status"] != "measured":
        return str(entry["status"])
    mark = "†" if entry["scaled_by"] != 1 else ""
    if entry["kind"].startswith("kernel"):
        return f"**{_time(entry['median'])}**"
    return f"{_time(entry['median'])}{mark} ({entry['ratio_to_kernel']:.1f}x)"


def _row(title: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([title, *cells])} |"


def _operator_table(name: str, cases: Sequence[Mapping[str, Any]]) -> list[str]:
    by_name = [{entry["name"]: entry for entry in case["entries"]} for case in cases]
    titles: dict[str, str] = {}
    for entries in by_name:
        for key, entry in entries.items():
            titles.setdefault(key, entry["title"])
    lines = [f"**`{name}`**", "", _row("", [_heading(case) for case in cases])]
    lines.append("|---|" + "---:|" * len(cases))
    for key, title in titles.items():
        lines.append(_row(title, [_cell(entries.get(key)) for entries in by_name]))
    kernels = [entries["riskernels"] for entries in by_name]
    entries = [entry for case in cases for entry in case["entries"]]
    for key in dict.fromkeys(e["name"] for e in entries if e["kind"].startswith("kernel")):
        floors = [
            f"{100 * entry['share_of_floor']:.0f} % ({case['floor']['binds']})"
            if (entry := of_case.get(key, {})).get("status") == "measured"
            else ""
            for of_case, case in zip(by_name, cases, strict=True)
        ]
        mode = key.removeprefix("riskernels").strip()
        lines.append(_row(f"share of the floor{', ' + mode if mode else ''}", floors))
    errors = [f"{kernel['error']:.1e}" if "error" in kernel else "" for kernel in kernels]
    lines.append(_row("error against complex128", errors))
    if any("memory" in case for case in cases):
        per_thread = any("threads" in case.get("memory", {}) for case in cases)
        key = "bytes_beyond_output" + ("_per_thread" if per_thread else "")
        extra = [
            f"{case['memory'][key] / 2**20:.2f} MiB" if "memory" in case else "" for case in cases
        ]
        title = "memory beyond output" + (", per thread" if per_thread else "")
        lines.append(_row(title, extra))
    return [*lines, ""]


def _about(report: Mapping[str, Any]) -> list[str]:
    machine, versions, ceilings = report["machine"], report["versions"], report["ceilings"]
    threads = report["threads"]
    largest = ceilings["bandwidth"][-1]
    libraries = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "numpy", "jax", "numba")
        if versions.get(name) is not None
    )
    commit = (report["commit"] or "unknown")[:10] + (" (modified)" if report["modified"] else "")
    gpu = machine.get("gpu")
    where = (
        f"{gpu['name']} (sm_{gpu['compute_capability'].replace('.', '')}, driver {gpu['driver']}, "
        f"CUDA {gpu['torch_cuda']}), times by events, inputs rotated beyond the L2 cache"
        if gpu
        else f"{machine['cpu']} ({machine['flags_level']}, kernels on {versions['simd_level']}), "
        f"{threads} pinned thread{'s' if threads > 1 else ''}"
    )
    about = (
        f"{where}, complex64; {libraries}; "
        f"commit {commit}, {report['created'][:10]}. Measured in the same run: "
        f"{ceilings['float32_flops'] / 1e9:.1f} GFLOP/s ({ceilings['float32_flops_source']}), "
        f"{largest['read'] / 1e9:.1f} GB/s read and {largest['copy'] / 1e9:.1f} GB/s copy at "
        f"{largest['bytes'] // 2**20} MiB. Medians of interleaved rounds; in brackets the time "
        "relative to riskernels."
    )
    entries = [entry for case in report["cases"] for entry in case["entries"]]
    notes = []
    scaled = {
        f"{entry['title']}: {entry['measured_scenes']} scenes"
        for entry in entries
        if entry["status"] == "measured" and entry["scaled_by"] != 1
    }
    if scaled:
        notes.append(f"† timed on fewer scenes and scaled to B ({'; '.join(sorted(scaled))}).")
    absent = {
        f"{entry['title']} {entry['status']} ({entry['reason']})"
        for entry in entries
        if entry["status"] not in ("measured", "correct")
    }
    if absent:
        notes.append(f"Not measured: {'; '.join(sorted(absent))}.")
    return [about, *("\n" + note for note in notes)]


def markdown(report: Mapping[str, Any]) -> str:
    """One table for each operator: implementations down, cases across.

    Raises:
        ValueError: the report has another schema.
    """
    if report.get("schema") != SCHEMA:
        raise ValueError(f"schema {report.get('schema')!r}, this table reads schema {SCHEMA}")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for case in report["cases"]:
        grouped.setdefault(case["operator"], []).append(case)
    lines = []
    for name, cases in grouped.items():
        lines.extend(_operator_table(name, cases))
    return "\n".join([*lines, *_about(report)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("file", type=Path, help="a file that `python -m bench --json` wrote")
    options = parser.parse_args(arguments)
    try:
        print(markdown(json.loads(options.file.read_text())))
    except (OSError, json.JSONDecodeError, ValueError) as error:
        parser.error(f"{options.file}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
