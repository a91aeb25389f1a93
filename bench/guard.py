# SPDX-License-Identifier: Apache-2.0
"""The cases of an earlier run measured again, for ``python -m bench --compare BASE.json``.

Correctness first, as everywhere; no ceilings and no memory, which no ratio needs. On a machine that
others use one bad moment can fall on one call, so a case that looks worse is measured once more,
for longer, and that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench import SCHEMA, machine
from bench.compare import Comparison, Report, compare, peers_of
from bench.devices import device
from bench.registry import Case, Peer, operators
from bench.run import Settings, run_case

PATIENCE = 3
"""So many times the rounds and the seconds when a case is measured again."""

Log = Callable[[str], None]


def _measure(
    cases: Sequence[Case], settings: Settings, rivals: Sequence[Peer], log: Log
) -> dict[str, dict[str, Any]]:
    on, known, results = device(settings.device), operators(), {}
    for case in cases:
        log(f"measuring {case.identifier}")
        results[case.identifier] = run_case(case, known[case.operator], rivals, settings, on=on)
        on.release()
    return results


def measure_again(
    base: Report,
    cases: Sequence[Case],
    settings: Settings,
    rivals: Sequence[Peer],
    bound: float,
    log: Log = print,
) -> tuple[dict[str, Any], Comparison]:
    """Measure those of the cases and rivals that ``base`` has, and compare.

    Raises:
        ValueError: see :func:`bench.compare.compare`.
    """
    torch.set_num_threads(settings.threads)
    by_case = {case["identifier"]: set(peers_of(case)) for case in base["cases"]}
    cases = [case for case in cases if case.identifier in by_case]
    named = set().union(*by_case.values())
    rivals = [peer for peer in rivals if peer.name in named]
    report = {
        "schema": SCHEMA,
        "device": settings.device,
        "threads": settings.threads,
        "machine": machine.machine(settings.device),
        "versions": machine.versions(),
        **machine.commit(),
    }
    results = _measure(cases, settings, rivals, log)
    comparison = compare(base, {**report, "cases": list(results.values())})
    suspects = comparison.worse(bound)
    if suspects:
        log("these look worse and are measured again, for longer")
        patient = replace(
            settings,
            rounds=PATIENCE * settings.rounds,
            seconds_per_entry=PATIENCE * settings.seconds_per_entry,
        )
        chosen = [case for case in cases if case.identifier in suspects]
        results.update(_measure(chosen, patient, rivals, log))
        comparison = compare(base, {**report, "cases": list(results.values())})
    return {**report, "cases": list(results.values())}, comparison
