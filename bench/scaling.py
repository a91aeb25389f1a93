# SPDX-License-Identifier: Apache-2.0
"""Curves along one size at a time: B, N, L and M, all others at the default.

On the CPU the fastest eager peer is measured beside the kernel. Correctness first, as everywhere,
on fewer scenes. The systems grow worse conditioned as M approaches N, so the tolerance is c eps
cond with the condition number of a large random H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.devices import device
from bench.operators._tikhonov import ALPHA
from bench.registry import Case, Peer, operators, peers
from bench.run import Settings, add_floor, describe, run_case
from riskernels.testing import tolerance

ROUNDS = 9


@dataclass(frozen=True)
class Plan:
    """The points that a device measures, and how."""

    axes: Mapping[str, Sequence[int]]
    variants: tuple[str, ...]
    verified_scenes: int
    seconds_per_entry: float
    scenes: Mapping[str, int]
    """B along another axis where the default would not fit into memory or time."""
    rivals: tuple[str, ...] = ()
    """The first of these peers that serves a case is measured beside the kernel."""

    def rival(self, case: Case) -> tuple[Peer, ...]:
        found = {peer.name: peer for peer in peers() if peer.serves(case)}
        return tuple(found[name] for name in self.rivals if name in found)[:1]


PLANS = {
    "cuda": Plan(
        axes={
            "B": (1, 4, 16, 64, 256, 1024, 4096, 16384),
            "N": (64, 96, 144, 256, 400, 576, 784, 1024),
            "L": (4, 8, 16, 32, 64, 128, 256),
            "M": (4, 8, 16, 24, 32, 33, 48, 64, 96, 128),
        },
        variants=("forward", "gradient", "gradient-both"),
        verified_scenes=16,
        seconds_per_entry=1.0,
        scenes={},
    ),
    "cpu": Plan(
        axes={
            "B": (1, 4, 16, 64, 256, 1024),
            "N": (36, 64, 144, 256, 484, 1024),
            "L": (2, 4, 8, 16, 32, 64),
            "M": (4, 8, 16, 32, 64),
        },
        variants=("forward", "gradient"),
        verified_scenes=2,
        seconds_per_entry=0.15,
        scenes={"N": 8},
        rivals=("torch_shared_factorisation", "torch_push_through_blocked", "torch_eager"),
    ),
}


def condition(m: int, n: int) -> float:
    """Of Phi Phi^H + alpha I for M x N entries of variance 1/N, by the law of Marchenko-Pastur."""
    ratio = math.sqrt(m / n)
    smallest = (1 - ratio) ** 2 if m < n else 0.0
    return ((1 + ratio) ** 2 + ALPHA) / (smallest + ALPHA)


def _at(case: Case, axis: str, value: int, plan: Plan) -> Case:
    sizes = {**case.sizes, "B": plan.scenes.get(axis, case.sizes["B"]), axis: value}
    allowed = case.tolerance
    if "M" in sizes:
        # The gradient solves with the same systems twice.
        solves = 4 if case.gradients else 1
        cond = condition(sizes["M"], sizes["N"])
        allowed = max(allowed, solves * tolerance(torch.complex64, cond))
    return replace(case, sizes=sizes, tolerance=allowed)


def cases(operator_names: Sequence[str], plan: Plan) -> list[tuple[str, Case]]:
    """Axis and case of every point of every curve."""
    points = []
    for name, operator in operators().items():
        if operator_names and name not in operator_names:
            continue
        variants: dict[str, Case] = {}
        for case in operator.cases:
            if case.variant in plan.variants:
                variants.setdefault(case.variant, case)
        points += [
            (axis, _at(case, axis, value, plan))
            for case in variants.values()
            for axis, values in plan.axes.items()
            if axis in case.sizes
            for value in values
        ]
    return points


def run(
    operator_names: Sequence[str],
    settings: Settings,
    ceilings: dict[str, Any],
    points: Sequence[tuple[str, Case]] | None = None,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Results of the curves, each with its axis; a point whose memory does not fit says so."""
    plan = PLANS[settings.device]
    settings = replace(
        settings,
        verified_scenes=plan.verified_scenes,
        rounds=min(ROUNDS, settings.rounds),
        seconds_per_entry=min(plan.seconds_per_entry, settings.seconds_per_entry),
    )
    on, known = device(settings.device), operators()
    results = []
    for axis, case in cases(operator_names, plan) if points is None else points:
        operator = known[case.operator]
        try:
            result = run_case(case, operator, plan.rival(case), settings, on=on)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            result = {
                "identifier": case.identifier,
                "operator": case.operator,
                "variant": case.variant,
                "title": case.title,
                "sizes": dict(case.sizes),
                "entries": [
                    {
                        "name": "riskernels",
                        "title": "riskernels",
                        "kind": "kernel",
                        "status": "failed",
                        "reason": reason,
                    }
                ],
            }
        result["axis"] = axis
        add_floor(result, operator.cost(case), ceilings)
        log(describe(result))
        results.append(result)
        on.release()
    return results
