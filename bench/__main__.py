# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: measure the operators, print the results, and write them as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import compare
from bench.machine import keep_freed_memory, pin

GPU_SHAPES = ("B=64", "B=4096")
"""Every variant of every operator at its default sizes and these numbers of scenes."""
VERIFIED_SCENES = {"cpu": 16, "cuda": 256}
"""Complex128 N-side solves of all scenes would take longer than all the timing."""

COMPARE = """A.json B.json: measure nothing; for every case in both files and every peer measured in
both, compare the ratio kernel/peer of medians within A with that within B. BASE.json alone: measure
its cases and peers now (those of --op, --case and --peer, where given) and compare BASE with that;
a case that looks worse is measured once more, for longer. Times of different files are never
compared. Exit status 1 if the ratio of any kernel to its fastest common peer grew by more than
--bound, or if a kernel is wrong; what one side lacks is listed, nothing in common is an error"""


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _above_one(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 1, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Correctness against complex128 first, then interleaved timing against peers.",
    )
    parser.add_argument("--list", action="store_true", help="show the cases and peers, and stop")
    parser.add_argument("--op", action="append", default=[], help="operator (repeatable)")
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        help="only cases whose identifier contains this (repeatable)",
    )
    parser.add_argument("--peer", action="append", default=[], help="peer (repeatable)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default cpu)"
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        help="CPUs to pin to (default 1, for cuda as many as there are, for --compare as BASE)",
    )
    parser.add_argument(
        "--scaling",
        nargs="?",
        const="also",
        choices=("also", "only"),
        help="the curves over B, N, L and M after the cases, or with `only` in their place; "
        "`python -m bench.plot` draws them",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=[],
        metavar="B=64,N=144",
        help="shapes in place of the default ones; sizes not named stay",
    )
    parser.add_argument("--repeats", type=_positive, default=25, help="rounds (default 25)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument(
        "--json", type=Path, help="write the results to this file, or, named by device, this folder"
    )
    parser.add_argument("--compare", type=Path, nargs="+", metavar="FILE.json", help=COMPARE)
    parser.add_argument(
        "--bound",
        type=_above_one,
        default=compare.BOUND,
        help=f"of --compare (default {compare.BOUND})",
    )
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: the folder {options.json.parent} does not exist")
    if options.compare is None:
        return
    if len(options.compare) > 2:
        parser.error("--compare: expected one or two files")
    for name in ("list", "scaling", "json"):
        if getattr(options, name):
            parser.error(f"--compare and --{name} exclude each other")


def _read(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        parser.error(f"--compare: {path}: {error}")
    if not isinstance(report, dict) or "cases" not in report:
        parser.error(f"--compare: {path}: no results of `python -m bench --json`")
    return report


def _failed(report: compare.Report) -> bool:
    """Whether a kernel was wrong; says which."""
    wrong = compare.refused_kernels(report)
    for identifier in wrong:
        print(f"wrong result, no speed given: {identifier}", file=sys.stderr)
    return bool(wrong)


def _verdict(
    base: compare.Report, now: compare.Report, comparison: compare.Comparison, bound: float
) -> int:
    print(compare.describe(comparison, base, now, bound))
    return 1 if _failed(now) or comparison.worse(bound) else 0


def _list(cases: Sequence[Any], rivals: Sequence[Any]) -> None:
    for case in cases:
        served = ", ".join(peer.name for peer in rivals if peer.serves(case))
        print(f"{case.identifier}\n    {case.title}; peers: {served}")
    for peer in rivals:
        if peer.missing():
            print(f"{peer.name}: skipped, {', '.join(peer.missing())} not installed")


def _write(report: dict[str, Any], target: Path, slug: str) -> None:
    if target.is_dir():
        target = target / f"{slug}.json"
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(f"results: {target}")


def _measure(parser: argparse.ArgumentParser, options: argparse.Namespace, started: float) -> int:
    """Pin, import, and do what the options ask; ``options.compare`` holds a report or nothing."""
    threads = options.threads or (1 if options.device == "cpu" else len(os.sched_getaffinity(0)))
    if options.compare and options.threads is None:
        threads = options.compare[0]["threads"]
    try:
        pin(threads, options.device)
    except ValueError as error:
        parser.error(str(error))
    # Only now: the numerical libraries size their thread pools when they are imported.
    from bench import guard, machine, registry, run, scaling
    from bench.devices import device

    rivals = registry.peers()
    unknown = set(options.peer) - {peer.name for peer in rivals}
    if unknown:
        parser.error(f"--peer: unknown {', '.join(sorted(unknown))}; --list shows them")
    if options.peer:
        rivals = tuple(peer for peer in rivals if peer.name in options.peer)
    settings = run.Settings(
        threads=threads,
        rounds=options.repeats,
        measure_memory=not options.no_memory,
        device=options.device,
        verified_scenes=VERIFIED_SCENES[options.device],
        keeps_freed_memory=keep_freed_memory(),
    )
    try:
        shapes = options.shapes or (GPU_SHAPES if options.device == "cuda" else [])
        cases = registry.select(options.op, options.case, shapes)
        if options.list:
            _list(cases, rivals)
            return 0
        device(options.device)
        if options.compare:
            (base,) = options.compare
            now, found = guard.measure_again(base, cases, settings, rivals, options.bound)
            return _verdict(base, now, found, options.bound)
    except ValueError as error:
        parser.error(str(error))
    only_scaling = options.scaling == "only"
    report = run.run([] if only_scaling else cases, settings, rivals)
    if options.scaling:
        report["scaling"] = scaling.run(options.op, settings, report["ceilings"])
    report["elapsed_seconds"] = round(time.perf_counter() - started, 1)
    if options.json is not None:
        _write(report, options.json, "scaling_" * only_scaling + machine.slug(report))
    print(f"elapsed: {report['elapsed_seconds'] / 60:.1f} min")
    return 1 if _failed(report) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.perf_counter()
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    options.compare = [
        compare.restrict(_read(parser, path), options.op, options.case, options.peer)
        for path in options.compare or ()
    ]
    if len(options.compare) < 2:
        return _measure(parser, options, started)
    before, after = options.compare
    try:
        found = compare.compare(before, after)
    except ValueError as error:
        parser.error(f"--compare: {error}")
    return _verdict(before, after, found, options.bound)


if __name__ == "__main__":
    sys.exit(main())
