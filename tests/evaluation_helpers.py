# SPDX-License-Identifier: Apache-2.0
"""A small suite, and estimators whose every answer is known."""

import json
import math
from dataclasses import dataclass, field

import torch

from ris_pytorch_pipeline.configs import SystemConfig
from ris_pytorch_pipeline.localize import Positions
from ris_pytorch_pipeline.suite import Suite

SYSTEM = SystemConfig(n_h=4, n_v=4, antennas=4, snapshots=4, max_sources=3)


def small_suite(scenes=3, counts=(1, 2), snrs_db=(0.0, 20.0)):
    return Suite(counts, snrs_db, scenes, SYSTEM)


@dataclass
class Fixed:
    """K sources at 1, 2, ... metres on boresight; one where K is unknown."""

    name: str = "fixed"
    calls: list = field(default_factory=list)

    def __call__(self, scenes, num_sources):
        self.calls.append((scenes, num_sources))
        batch, slots = len(scenes), SYSTEM.max_sources
        zero = torch.zeros(batch, slots, dtype=torch.float64)
        r = torch.arange(1.0, slots + 1, dtype=torch.float64).expand(batch, slots)
        count = torch.ones(batch) if num_sources is None else num_sources
        return Positions(zero, zero, r, zero, torch.arange(slots) < count[:, None])


@dataclass
class Broken(Fixed):
    """Gives what it is told to: an error, a position that is not finite, or ``valid`` of a kind."""

    name: str = "broken"
    fault: str = "error"

    def __call__(self, scenes, num_sources):
        found = super().__call__(scenes, num_sources)
        if self.fault == "error":
            raise ZeroDivisionError("no such luck")
        if self.fault == "nan":
            return Positions(found.phi * math.nan, *[getattr(found, n) for n in REST])
        return Positions(found.phi, *[getattr(found, n) for n in REST[:-1]], found.valid.float())


REST = ("theta", "r", "level", "valid")


def records_of(folder, stem):
    return json.loads((folder / "cells" / f"{stem}.json").read_text())["records"]
