# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.table FILE.json``: the Markdown table of a run, from its JSON file alone.

Of several files, runs on different numbers of threads, it is one table of the cases that they
share: the kernel and the fastest peer on each. ``--op`` picks operators. ``--update DOCUMENT.md``
draws every table of a document again, each between two comments: ``<!-- table of FILE.json: begin
-->``, or with more files and the operators it shows ``<!-- table of ONE.json OTHER.json --op
hermitian_nmse: begin -->``, and ``<!-- end -->``.
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
from ris_pytorch_pipeline import evaluation_report, profile_report

MARKED = re.compile(
    r"<!-- table of (?P<files>\S+(?: (?!--)\S+)*?)(?P<operators>(?: --op \S+)*): begin -->\n"
    r"(?P<table>.*?)\n?<!-- end -->",
    re.DOTALL,
)


COLUMNS = 6
"""Cases beside each other in a table; an operator with more gets another."""


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


def _operator_table(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    by_name = [{entry["name"]: entry for entry in case["entries"]} for case in cases]
    titles: dict[str, str] = {}
    for entries in by_name:
        for key, entry in entries.items():
            titles.setdefault(key, entry["title"])
    lines = [_row("", [_heading(case) for case in cases])]
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
    # What is paged out meanwhile can make it a few pages less than nothing.
    return f"{max(size, 0) / 2**20:.2f} MiB"


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


def _provenance(report: Mapping[str, Any]) -> str:
    machine, versions, ceilings = report["machine"], report["versions"], report["ceilings"]
    threads = report["threads"]
    largest = ceilings["bandwidth"][-1]
    blas = versions.get("blas", {})
    libraries = ", ".join(
        f"{name} {versions[name]}" + (f" ({blas[name]})" if name in blas else "")
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
        f"{largest['bytes'] // 2**20} MiB."
    )
    if report.get("settings", {}).get("keeps_freed_memory"):
        about += " Freed memory was kept, so that no call had to fault in a fresh output."
    if "elapsed_seconds" in report:
        about += f" All of it took {report['elapsed_seconds'] / 60:.1f} minutes."
    return about


def _about(report: Mapping[str, Any]) -> list[str]:
    about = _provenance(report)
    about += " Medians of interleaved rounds; in brackets the time relative to riskernels."
    entries = [entry for case in report["cases"] for entry in case["entries"]]
    notes = []
    scaled = {
        f"{entry['title']}: {entry['measured_scenes']} scenes"
        for entry in entries
        if entry["status"] == "measured" and entry["scaled_by"] != 1
    }
    titles = {entry["name"]: entry["title"] for entry in entries}
    scaled |= {
        f"{titles.get(name, name)}: {peer['measured_scenes']} scenes"
        for case in report["cases"]
        for name, peer in case.get("memory", {}).get("peers", {}).items()
        if peer.get("measured_scenes", case["sizes"]["B"]) < case["sizes"]["B"]
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


def _check_schema(report: Mapping[str, Any]) -> None:
    if report.get("schema") != SCHEMA:
        raise ValueError(f"schema {report.get('schema')!r}, this table reads schema {SCHEMA}")


def markdown(report: Mapping[str, Any], operators: Sequence[str] = ()) -> str:
    """One table for each operator, or each of those named: implementations down, cases across.

    Raises:
        ValueError: the report has another schema, or no case of an operator that is named.
    """
    _check_schema(report)
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for case in report["cases"]:
        grouped.setdefault(case["operator"], []).append(case)
    absent = [name for name in operators if name not in grouped]
    if absent:
        raise ValueError(f"no case of {', '.join(absent)}; it has {', '.join(grouped)}")
    shown = {name: grouped[name] for name in operators} if operators else grouped
    lines = []
    for name, cases in shown.items():
        lines += [f"**`{name}`**", ""]
        for start in range(0, len(cases), COLUMNS):
            lines += _operator_table(cases[start : start + COLUMNS])
    chosen = [case for cases in shown.values() for case in cases]
    return "\n".join([*lines, *_about({**report, "cases": chosen})])


def _best(case: Mapping[str, Any]) -> tuple[float | None, str, float | None]:
    """Median of the kernel, and title and median of its fastest peer."""
    measured = [entry for entry in case["entries"] if entry["status"] == "measured"]
    kernel = next((e["median"] for e in measured if e["name"] == "riskernels"), None)
    rivals = [e for e in measured if e["kind"] == "peer" and not e["name"].startswith("riskernels")]
    fastest = min(rivals, key=lambda entry: entry["median"], default=None)
    return kernel, *((fastest["title"], fastest["median"]) if fastest else ("", None))


def threads_table(reports: Sequence[Mapping[str, Any]], operators: Sequence[str] = ()) -> str:
    """The cases common to all runs: kernel and fastest peer on each number of threads.

    Raises:
        ValueError: a report has another schema, two have as many threads, or no case is common.
    """
    for report in reports:
        _check_schema(report)
    counts = [report["threads"] for report in reports]
    if len(set(counts)) < len(counts):
        raise ValueError(f"runs on {counts} threads; a table of several needs different numbers")
    by_identifier = [{case["identifier"]: case for case in r["cases"]} for r in reports]
    common = [
        name
        for name, case in by_identifier[0].items()
        if all(name in cases for cases in by_identifier)
        and (not operators or case["operator"] in operators)
    ]
    if not common:
        raise ValueError("no case in common")
    threads = [f"{count} thread{'s' * (count > 1)}" for count in counts]
    heads = [f"{who}, {count}" for who in ("riskernels", "fastest peer") for count in threads]
    lines = [_row("", heads), "|---|" + "---:|" * len(heads)]
    for name in common:
        found = [_best(cases[name]) for cases in by_identifier]
        first = found[0][0]
        kernels = [
            ""
            if own is None
            else f"**{_time(own)}**" + (f" ({first / own:.2f}x)" if first and i else "")
            for i, (own, _, _) in enumerate(found)
        ]
        rivals = ["" if best is None else f"{_time(best)} ({title})" for _, title, best in found]
        case = by_identifier[0][name]
        lines.append(_row(f"`{case['operator']}`, {_heading(case)}", [*kernels, *rivals]))
    lines += [f"\n{_provenance(report)}" for report in reports]
    lines.append(f"\nMedians of interleaved rounds; in brackets the gain over {threads[0]}.")
    return "\n".join(lines)


def redraw(document: str, folder: Path) -> str:
    """The document with every marked table drawn from its file, named relative to ``folder``.

    Raises:
        ValueError: there is no marked table, or one cannot be drawn.
        OSError: a file cannot be read.
    """

    def drawn(match: re.Match[str]) -> str:
        begin, _, _ = match[0].partition("\n")
        names = match["operators"].split()[1::2]
        reports = [json.loads((folder / file).read_text()) for file in match["files"].split()]
        profiled = reports[0].get("schema") == profile_report.SCHEMA
        if len(reports) > 1:
            table = threads_table(reports, names)
        elif profiled:
            table = profile_report.markdown_table(reports[0])
        elif reports[0].get("schema") == evaluation_report.SCHEMA:
            table = evaluation_report.markdown(reports[0], names)
        else:
            table = markdown(reports[0], names)
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
    parser.add_argument("files", type=Path, nargs="*", help="what `python -m bench --json` wrote")
    parser.add_argument("--op", action="append", default=[], help="operator to show (repeatable)")
    parser.add_argument("--update", type=Path, metavar="DOCUMENT.md", help="redraw its tables")
    options = parser.parse_args(arguments)
    if bool(options.files) == (options.update is not None):
        parser.error("expected a FILE.json, or --update DOCUMENT.md")
    try:
        if options.update is not None:
            text = redraw(options.update.read_text(), options.update.parent)
            options.update.write_text(text)
            return 0
        reports = [json.loads(path.read_text()) for path in options.files]
        several = len(reports) > 1
        print(threads_table(reports, options.op) if several else markdown(reports[0], options.op))
    except (OSError, json.JSONDecodeError, ValueError) as error:
        parser.error(f"{options.update or ' '.join(map(str, options.files))}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
