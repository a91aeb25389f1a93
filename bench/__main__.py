# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: measure the operators, print the results, and write them as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.machine import pin

GPU_SHAPES = ("B=64", "B=4096")
"""Every variant of every operator at its default sizes and these numbers of scenes."""
VERIFIED_SCENES = 256
"""On a GPU: complex128 N-side solves of 4096 scenes would take longer than all the timing."""


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Correctness against complex128 first, then interleaved timing against peers.",
    )
    parser.add_argument("--list", action="store_true", help="show the cases and peers, and stop")
    parser.add_argument("--op", action="append", default=[], help="operator (repeatable)")
    parser.add_argument("--case", default="", help="only cases whose identifier contains this")
    parser.add_argument("--peer", action="append", default=[], help="peer (repeatable)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default cpu)"
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        help="CPUs to pin to (default 1, for cuda as many as there are)",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="the kernels over B, N, L and M as well; `python -m bench.plot` draws them",
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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: the folder {options.json.parent} does not exist")
    threads = options.threads or (1 if options.device == "cpu" else len(os.sched_getaffinity(0)))
    try:
        pin(threads, options.device)
    except ValueError as error:
        parser.error(str(error))
    # Only now: the numerical libraries size their thread pools when they are imported.
    from bench import machine, registry, scaling
    from bench.devices import device
    from bench.run import Settings, refused_kernels, run

    rivals = registry.peers()
    try:
        shapes = options.shapes or (GPU_SHAPES if options.device == "cuda" else [])
        cases = registry.select(options.op, options.case, shapes)
        if not options.list:
            device(options.device)
    except ValueError as error:
        parser.error(str(error))
    unknown = set(options.peer) - {peer.name for peer in rivals}
    if unknown:
        parser.error(f"--peer: unknown {', '.join(sorted(unknown))}; --list shows them")
    if options.peer:
        rivals = tuple(peer for peer in rivals if peer.name in options.peer)
    if options.list:
        for case in cases:
            served = ", ".join(peer.name for peer in rivals if peer.serves(case))
            print(f"{case.identifier}\n    {case.title}; peers: {served}")
        for peer in rivals:
            if peer.missing():
                print(f"{peer.name}: skipped, {', '.join(peer.missing())} not installed")
        return 0
    settings = Settings(
        threads=threads,
        rounds=options.repeats,
        measure_memory=not options.no_memory,
        device=options.device,
        verified_scenes=VERIFIED_SCENES if options.device == "cuda" else None,
    )
    report = run(cases, settings, rivals)
    if options.scaling:
        report["scaling"] = scaling.run(options.op, settings, report["ceilings"])
    if options.json is not None:
        target = options.json
        if target.is_dir():
            target = target / f"{machine.slug(report)}.json"
        target.write_text(json.dumps(report, indent=1) + "\n")
        print(f"results: {target}")
    wrong = refused_kernels(report)
    for identifier in wrong:
        print(f"wrong result, no speed given: {identifier}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
