# SPDX-License-Identifier: Apache-2.0
"""The matching of estimated and true positions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ris_pytorch_pipeline.metrics import match_positions, summarise_matches


def test_matching_recovers_a_permutation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-5, 5, (5, 3))
    order = rng.permutation(5)
    match = match_positions(truth[order] + 1e-3, truth)
    assert match.truth.tolist() == order.tolist()
    np.testing.assert_allclose(match.error, 1e-3 * math.sqrt(3))
    fewer = match_positions(truth[order][:3], truth)
    assert (fewer.missed, fewer.extra) == (2, 0)
    more = match_positions(truth, truth[:2])
    assert (more.missed, more.extra) == (0, 3)
    nothing = match_positions(np.empty((0, 3)), truth)
    summary = summarise_matches([match, fewer, more, nothing])
    assert (summary.sources, summary.missed, summary.extra) == (17, 7, 3)
    with pytest.raises(ValueError, match="finite"):
        match_positions([[math.nan, 0, 0]], truth)
