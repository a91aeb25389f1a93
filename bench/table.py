# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.table FILE.json``: the Markdown table of a run, from its JSON file alone.

``--op`` picks operators. ``--update DOCUMENT.md`` draws every table of a document again, each
between two comments: ``<!-- table of FILE.json: begin -->``, or with the operators it shows
``<!-- table of FILE.json --op hermitian_nmse: begin -->``, and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import SCHEMA
from ris_pytorch_pipeline import profile_report

MARKED = re.compile(
    r"<!-- table of (?P<file>\S+)(?P<operators>(?: --op \S+)*): begin -->\n"
    r"(?P<table>.*?)\n<!-- end -->",
    re.DOTALL,
)


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
    return [*lines, *_memory_rows(cases, titles), ""]


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"


def _memory_rows(cases: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[str]:
    """The kernel's memory, per thread unless rivals' whole batches stand beside it.

    A ratio is given where the kernel takes at least 1 MiB: below, it would be one of page sizes.
    """
    found = [case.get("memory", {}) for case in cases]
    rivals = dict.fromkeys(name for memory in found for name in memory.get("peers", {}))
    if not any(found):
        return []
    per_thread = not rivals and any("threads" in memory for memory in found)
    key = "bytes_beyond_output" + ("_per_thread" if per_thread else "")
    title = "memory beyond output" + (", per thread" if per_thread else "")

    def cell(case: Mapping[str, Any], name: str) -> str:
        memory = case.get("memory", {})
        peer = memory.get("peers", {}).get(name)
        if peer is None:
            return ""
        used, own = peer[key], memory[key]
        mark = "†" if peer["measured_scenes"] < case["sizes"]["B"] else ""
        return _mebibytes(used) + mark + (f" ({used / own:.1f}x)" if own >= 2**20 else "")

    rows = [_row(title, [_mebibytes(memory[key]) if memory else "" for memory in found])]
    for name in rivals:
        cells = [cell(case, name) for case in cases]
        rows.append(_row(f"{title}, {titles.get(name, name)}", cells))
    return rows


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
    double = ""
    if "float64_flops" in ceilings:
        source = ceilings["float64_flops_source"]
        double = f"{ceilings['float64_flops'] / 1e9:.1f} GFLOP/s in float64 ({source}), "
    about = (
        f"{where}, complex64; {libraries}; "
        f"commit {commit}, {report['created'][:10]}. Measured in the same run: "
        f"{ceilings['float32_flops'] / 1e9:.1f} GFLOP/s ({ceilings['float32_flops_source']}), "
        f"{double}"
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
        notes.append(f"† measured on fewer scenes and scaled to B ({'; '.join(sorted(scaled))}).")
    absent = {
        f"{entry['title']} {entry['status']} ({entry['reason']})"
        for entry in entries
        if entry["status"] not in ("measured", "correct")
    }
    if absent:
        notes.append(f"Not measured: {'; '.join(sorted(absent))}.")
    return [about, *("\n" + note for note in notes)]


def markdown(report: Mapping[str, Any], operators: Sequence[str] = ()) -> str:
    """One table for each operator, or each of those named: implementations down, cases across.

    Raises:
        ValueError: the report has another schema, or no case of an operator that is named.
    """
    if report.get("schema") != SCHEMA:
        raise ValueError(f"schema {report.get('schema')!r}, this table reads schema {SCHEMA}")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for case in report["cases"]:
        grouped.setdefault(case["operator"], []).append(case)
    absent = [name for name in operators if name not in grouped]
    if absent:
        raise ValueError(f"no case of {', '.join(absent)}; it has {', '.join(grouped)}")
    shown = {name: grouped[name] for name in operators} if operators else grouped
    lines = []
    for name, cases in shown.items():
        lines.extend(_operator_table(name, cases))
    chosen = [case for cases in shown.values() for case in cases]
    return "\n".join([*lines, *_about({**report, "cases": chosen})])


def redraw(document: str, folder: Path) -> str:
    """The document with every marked table drawn from its file, named relative to ``folder``.

    Raises:
        ValueError: there is no marked table, or one cannot be drawn.
        OSError: a file cannot be read.
    """

    def drawn(match: re.Match[str]) -> str:
        begin, _, _ = match[0].partition("\n")
        names = match["operators"].split()[1::2]
        report = json.loads((folder / match["file"]).read_text())
        profiled = report.get("schema") == profile_report.SCHEMA
        table = profile_report.markdown_table(report) if profiled else markdown(report, names)
        return f"{begin}\n{table}\n<!-- end -->"

    text, count = MARKED.subn(drawn, document)
    if not count:
        raise ValueError("no table between `<!-- table of FILE.json: begin -->` and `<!-- end -->`")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", type=Path, nargs="?", help="a file that `python -m bench --json` wrote"
    )
    parser.add_argument("--op", action="append", default=[], help="operator to show (repeatable)")
    parser.add_argument("--update", type=Path, metavar="DOCUMENT.md", help="redraw its tables")
    options = parser.parse_args(arguments)
    if (options.file is None) == (options.update is None):
        parser.error("expected a FILE.json, or --update DOCUMENT.md")
    path = options.file or options.update
    try:
        if options.update is not None:
            path.write_text(redraw(path.read_text(), path.parent))
        else:
            print(markdown(json.loads(path.read_text()), options.op))
    except (OSError, json.JSONDecodeError, ValueError) as error:
        parser.error(f"{path}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
