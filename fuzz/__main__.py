# SPDX-License-Identifier: Apache-2.0
"""``python -m fuzz [--seconds N] [--cases N] [TARGET ...]``: fuzz the targets one after another.

Each ends after its share of the cases or of the seconds, whichever comes first, and prints how many
cases it ran and how many of them reached code that none had reached before. A finding ends the run
with status 1; its case is saved in ``build/fuzz``, and the command that repeats it is printed.
Cases that reach new code are kept in ``build/fuzz/corpus`` and begun with the next time.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from fuzz.target import CORPUS, ROOT

TARGETS = {"operators": 0.6, "shards": 0.15, "npz": 0.15, "config": 0.1}
"""Share of the cases and of the time."""

CASE_SECONDS = 60
"""A case that takes longer hangs. Most take milliseconds, but CI machines are busy."""
MEMORY_MB = 4096
"""Resident memory that no case may need; torch itself takes half a gigabyte."""


def run(target: str, cases: int, seconds: int, seed: int, out: Path) -> tuple[int, int]:
    """Fuzz one target; returns its number of cases, and its exit status."""
    found = out / "corpus" / target
    found.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", f"fuzz.fuzz_{target}", str(found), str(CORPUS / target),
        f"-runs={cases}", f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={CASE_SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}", "-max_len=4096", "-len_control=0", "-print_final_stats=1",
        f"-artifact_prefix={out}/{target}-",
    ]  # fmt: skip
    paths = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    ran, new = (
        int(match[1]) if (match := re.search(rf"stat::{name}:\s+(\d+)", done.stdout)) else 0
        for name in ("number_of_executed_units", "new_units_added")
    )
    coverage = re.findall(r" cov: (\d+) ft: (\d+)", done.stdout)
    edges, features = coverage[-1] if coverage else ("0", "0")
    print(
        f"fuzz {target}: {ran} cases in {time.monotonic() - start:.0f} s, {new} of them new "
        f"({edges} edges, {features} features covered)",
        flush=True,
    )
    if done.returncode:
        print(done.stdout[-6000:])
        for path in re.findall(r"Test unit written to (\S+)", done.stdout):
            print(f"fuzz {target}: repeat it with  python -m fuzz.fuzz_{target} {path}")
    return ran, done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--cases", type=int, default=100_000, help="in all (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=3600, help="in all (default %(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the mutations")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz")
    arguments = parser.parse_args()
    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    whole = sum(TARGETS[name] for name in names)
    print(f"fuzz: seed {arguments.seed}")
    total = 0
    for name in names:
        share = TARGETS[name] / whole
        ran, status = run(
            name,
            max(1, round(arguments.cases * share)),
            max(1, round(arguments.seconds * share)),
            arguments.seed,
            arguments.out.resolve(),
        )
        total += ran
        if status:
            return 1
        if ran == 0:
            print(f"fuzz {name}: no case ran")
            return 1
    print(f"fuzz: {total} cases, no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
