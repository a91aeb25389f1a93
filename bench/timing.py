# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing of several calls, and the statistics reported.

Each round times every call once, so that a slow phase of the machine falls on all of them. A
sample repeats a short call until it lasts long enough for the clock; a long call takes part in
fewer rounds, spread over the run. How one sample is taken is the device's: by the wall clock on
the CPU, by events on a GPU (:mod:`bench.cuda`).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MINIMUM_SAMPLE_S = 0.02
MINIMUM_ROUNDS = 5
LONG_ROUNDS = 3
"""Of a call that alone takes longer than an entry should: the N x N code that is replaced."""


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median and the 20 % and 80 % quantiles of the samples."""

    median: float
    q20: float
    q80: float
    samples: int
    calls_per_sample: int

    def scaled(self, factor: float) -> Timing:
        return Timing(
            self.median * factor,
            self.q20 * factor,
            self.q80 * factor,
            self.samples,
            self.calls_per_sample,
        )


Sampler = Callable[[Callable[[], Any], int], float]
"""Seconds a call, from so many calls in a row."""


def wall_clock(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _takes_part(index: int, rounds: int, wanted: int) -> bool:
    return (index + 1) * wanted // rounds > index * wanted // rounds


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    seconds: float,
    samplers: Mapping[str, Sampler] | None = None,
) -> dict[str, Timing]:
    """Time every call in up to ``rounds`` rounds and about ``seconds`` each, after warming up.

    ``samplers`` names, for calls that are not timed by the wall clock, what times them.
    """
    take = {name: (samplers or {}).get(name, wall_clock) for name in calls}
    repeats, wanted = {}, {}
    for name, call in calls.items():
        estimate = take[name](call, 1)
        least = LONG_ROUNDS
        if estimate <= seconds:
            # Short enough to be worth a second look, now that it is warm.
            least = MINIMUM_ROUNDS
            take[name](call, 1)
            estimate = take[name](call, 1)
        repeats[name] = max(1, round(MINIMUM_SAMPLE_S / estimate))
        fitting = int(seconds / (estimate * repeats[name]))
        wanted[name] = min(rounds, max(least, fitting))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(rounds):
            for name, call in calls.items():
                if _takes_part(index, rounds, wanted[name]):
                    samples[name].append(take[name](call, repeats[name]))
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return {name: _summary(taken, repeats[name]) for name, taken in samples.items()}


def _summary(samples: list[float], repeats: int) -> Timing:
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1, repeats)
    cuts = statistics.quantiles(samples, n=5, method="inclusive")
    return Timing(statistics.median(samples), cuts[0], cuts[3], len(samples), repeats)
