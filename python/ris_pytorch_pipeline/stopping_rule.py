# SPDX-License-Identifier: Apache-2.0
"""Whether the measurements believe in one more source, where the number of sources is not known."""

from __future__ import annotations

import scipy.stats

from .configs import SystemConfig
from .refine import Symbols, field_of_view

TRIALS: dict[Symbols, float] = {"independent": 25.0, "static": 10.0}
"""Independent trials per resolution cell of the field of view in a search for the first source.

Fitted to the largest gain in scenes of noise alone at a false alarm of 1 %. Half as many again come
with every source that is there, because its position moves with the new one.
"""

DOUBT = 1e-10
"""Nominal chance at which noise alone would put one more source into a scene, above which it is
left out. Nominal: the number of places searched was calibrated at 1 %.

Told K or not: what is found at a lower level is more often a wrong place, while the source was
missed, and then costs twice what leaving it out does. Chosen by GOSPA on 60 scenes of each K in
{1, 3, 5} at -5, 5 and 20 dB, drawn from another seed than the benchmark suite's.
"""


def detection_threshold(
    system: SystemConfig, found: int, false_alarm: float, symbols: Symbols = "independent"
) -> float:
    """Share of the residual that one more source must take to be believed, after ``found``.

    At one fixed place, white noise of unknown power gives up a share that is Beta distributed with
    parameters (G, G (R - found - 1)), for G groups of R rows with a symbol each (L and M, or 1 and
    L M with static symbols). The search takes the best of all places; ``false_alarm`` is divided by
    the number of independent ones, from :data:`TRIALS`.

    It is 1 where one more source would leave nothing over (R < found + 2): any place explains all
    of the measurements then, and none is believed.

    >>> round(detection_threshold(SystemConfig(), 0, 0.01), 2)
    0.15
    """
    snapshots, antennas = system.snapshots, system.antennas
    groups, rows = (1, snapshots * antennas) if symbols == "static" else (snapshots, antennas)
    if rows < found + 2:
        return 1.0
    lower, upper, cell = field_of_view(system)
    cells = float(((upper - lower) / cell).clamp_min(1.0).prod())
    places = TRIALS[symbols] * (1 + found / 2) * cells
    beta = scipy.stats.beta(groups, groups * (rows - found - 1))
    return float(beta.isf(min(1.0, false_alarm / places)))
