# SPDX-License-Identifier: Apache-2.0
"""Two runs against each other, by what holds across machines: the lead of the kernels.

For every case and peer that both runs measured, the kernel's median time over the peer's in the
same run, in A and in B. A case got worse by the growth of its ratio to the fastest common peer,
which may be another one in B than in A. Times of A are never compared with times of B. The
library's own dense path is no peer here: it is made of the kernels that are judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import SCHEMA

BOUND = 1.6
OWN = "riskernels"
Report = Mapping[str, Any]


@dataclass(frozen=True)
class CaseComparison:
    """Kernel over peer, by peer, in A and in B."""

    identifier: str
    ratios: Mapping[str, tuple[float, float]]

    @property
    def to_best(self) -> tuple[float, float]:
        """The kernel over the fastest peer, in A and in B."""
        before, after = zip(*self.ratios.values(), strict=True)
        return max(before), max(after)

    @property
    def change(self) -> float:
        before, after = self.to_best
        return after / before


@dataclass(frozen=True)
class Comparison:
    cases: tuple[CaseComparison, ...]
    left_out: tuple[str, ...]
    """What one side lacks, a sentence each."""

    def worse(self, bound: float) -> list[str]:
        """Cases that got worse by more than ``bound``; one that is not a number is worse."""
        return [case.identifier for case in self.cases if not case.change <= bound]


def refused_kernels(report: Report) -> list[str]:
    """Cases whose kernel was wrong, for which no speed is given."""
    return [
        case["identifier"]
        for case in report["cases"]
        if any(e["kind"] == "kernel" and e["status"] == "refused" for e in case["entries"])
    ]


def restrict(
    report: Report,
    operators: Sequence[str] = (),
    patterns: Sequence[str] = (),
    peers: Sequence[str] = (),
) -> dict[str, Any]:
    """The report with the chosen cases and peers alone; none named is all."""
    cases = []
    for case in report["cases"]:
        if operators and case["operator"] not in operators:
            continue
        if patterns and not any(pattern in case["identifier"] for pattern in patterns):
            continue
        kept = [
            e for e in case["entries"] if e["kind"] != "peer" or not peers or e["name"] in peers
        ]
        cases.append({**case, "entries": kept})
    return {**report, "cases": cases}


def _medians(case: Mapping[str, Any]) -> dict[str, float]:
    return {e["name"]: e["median"] for e in case["entries"] if e["status"] == "measured"}


def peers_of(case: Mapping[str, Any]) -> list[str]:
    """Names of the rivals measured in a case."""
    return [
        entry["name"]
        for entry in case["entries"]
        if entry["kind"] == "peer"
        and entry["status"] == "measured"
        and not entry["name"].startswith(OWN)
    ]


def _check(a: Report, b: Report) -> None:
    for name, report in (("A", a), ("B", b)):
        if report.get("schema") != SCHEMA:
            raise ValueError(f"{name} has schema {report.get('schema')!r}, expected {SCHEMA}")
    for key in ("device", "threads"):
        if a[key] != b[key]:
            raise ValueError(f"{key}: {a[key]} in A, {b[key]} in B; ratios depend on it")


def compare(a: Report, b: Report) -> Comparison:
    """Compare what both reports measured.

    Raises:
        ValueError: another schema, device or number of threads, or nothing in common.
    """
    _check(a, b)
    sides = [{case["identifier"]: case for case in report["cases"]} for report in (a, b)]
    left_out = [
        f"{identifier}: only in {name}"
        for name, one, other in (("A", *sides), ("B", *reversed(sides)))
        for identifier in one
        if identifier not in other
    ]
    compared, lacking = [], {"A": {}, "B": {}}
    for identifier in (i for i in sides[0] if i in sides[1]):
        both = [side[identifier] for side in sides]
        times = [_medians(case) for case in both]
        unmeasured = [name for name, known in zip("AB", times, strict=True) if OWN not in known]
        if unmeasured:
            left_out.append(f"{identifier}: the kernel was not measured in {unmeasured[0]}")
            continue
        names = [peers_of(case) for case in both]
        for side, other, where in ((0, 1, "A"), (1, 0, "B")):
            for peer in names[side]:
                if peer not in names[other]:
                    lacking[where].setdefault(peer, []).append(identifier)
        ratios = {
            peer: (times[0][OWN] / times[0][peer], times[1][OWN] / times[1][peer])
            for peer in names[0]
            if peer in names[1]
        }
        if ratios:
            compared.append(CaseComparison(identifier, ratios))
        else:
            left_out.append(f"{identifier}: no peer in common")
    left_out += [
        f"{peer}: only in {name}, {len(of)} case{'s' * (len(of) > 1)}"
        for name, peers in lacking.items()
        for peer, of in peers.items()
    ]
    if not compared:
        raise ValueError("\n  ".join(["no case with a common peer", *left_out]))
    return Comparison(tuple(compared), tuple(left_out))


def _about(name: str, report: Report) -> str:
    threads, commit = report["threads"], (report["commit"] or "unknown")[:10]
    machine = report["machine"]
    where = machine["gpu"]["name"] if "gpu" in machine else machine["cpu"]
    return (
        f"{name}: {where}, kernels on {report['versions']['simd_level']}, torch "
        f"{report['versions']['torch']}, {threads} thread{'s' * (threads > 1)}, commit {commit}"
    )


def describe(comparison: Comparison, a: Report, b: Report, bound: float) -> str:
    """The comparison as lines of text: each peer, and the verdict on each case."""
    lines = [_about("A", a), _about("B", b), ""]
    lines.append(f"{'kernel / peer, medians of the same run':44s}{'A':>9s}{'B':>9s}{'B / A':>9s}")
    worse = comparison.worse(bound)
    for case in comparison.cases:
        lines.append(case.identifier)
        for peer, (before, after) in case.ratios.items():
            lines.append(f"    {peer:40s}{before:9.3f}{after:9.3f}{after / before:9.2f}")
        verdict = f"worse than {bound:g}" if case.identifier in worse else "ok"
        before, after = case.to_best
        lines.append(
            f"  {'fastest peer':42s}{before:9.3f}{after:9.3f}{case.change:9.2f}  {verdict}"
        )
    if comparison.left_out:
        lines += ["", "not compared:", *(f"  {reason}" for reason in comparison.left_out)]
    count = f"{len(comparison.cases)} case{'s' * (len(comparison.cases) > 1)} compared"
    lines += ["", f"{count}, {len(worse)} worse by more than {bound:g}"]
    return "\n".join(lines)
