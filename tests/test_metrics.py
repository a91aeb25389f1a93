# SPDX-License-Identifier: Apache-2.0
"""The matching of estimated and true positions, and errors of covariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from ris_pytorch_pipeline.configs import CovarianceConfig, SimulationConfig, SystemConfig
from ris_pytorch_pipeline.covariance import sample_covariance
from ris_pytorch_pipeline.geometry import to_cartesian
from ris_pytorch_pipeline.metrics import (
    coordinate_errors,
    covariance_errors,
    match_positions,
    subspace_overlap,
    summarise_matches,
)
from ris_pytorch_pipeline.simulate import Simulator, true_covariance, true_steering


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


def test_matching_is_the_best_of_all_permutations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for found, known in ((4, 4), (2, 5), (5, 3)):
        estimate, truth = rng.normal(size=(found, 3)), rng.normal(size=(known, 3))
        match = match_positions(estimate, truth)
        few, many = sorted((estimate, truth), key=len)
        best = min(
            sum(np.linalg.norm(a - many[j]) for a, j in zip(few, order, strict=False))
            for order in itertools.permutations(range(len(many)))
        )
        assert match.error.sum() == pytest.approx(best)


def test_coordinate_errors_wrap_and_follow_the_match(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.stack([rng.uniform(-3.1, 3.1, 4), rng.uniform(-1, 1, 4), rng.uniform(1, 9, 4)], -1)
    truth[0] = (math.pi - 0.01, 0.2, 4.0)
    change = rng.uniform(-0.01, 0.01, (4, 3))
    change[0, 0] = 0.03  # Over the cut, to -pi + 0.02.
    order = rng.permutation(4)

    def places(rows):
        return to_cartesian(*torch.tensor(rows).unbind(-1)).numpy()

    estimate, known = places((truth + change)[order]), places(truth)
    match = match_positions(estimate, known)
    errors = coordinate_errors(estimate, known, match)
    np.testing.assert_allclose(errors, change[match.truth], rtol=0, atol=1e-12)
    none = match_positions([], known)
    assert coordinate_errors([], known, none).shape == (0, 3)


def random_orthonormal(rng, n, k):
    return np.linalg.qr(rng.normal(size=(n, k)) + 1j * rng.normal(size=(n, k)))[0]


def test_subspace_overlap_is_the_mean_squared_cosine(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, slots, counts = 9, 4, [1, 3, 4]
    covariances, columns, expected = [], [], []
    for k in counts:
        mixing = rng.normal(size=(n, k)) + 1j * rng.normal(size=(n, k))
        basis = random_orthonormal(rng, n, n)
        powers = np.sort(rng.uniform(1, 2, n))[::-1]
        covariances.append((basis * powers) @ basis.conj().T)
        columns.append(np.pad(mixing, ((0, 0), (0, slots - k))))
        angles = scipy.linalg.subspace_angles(mixing, basis[:, :k])
        expected.append(np.mean(np.cos(angles) ** 2))
    overlap = subspace_overlap(
        torch.tensor(np.stack(covariances)), torch.tensor(np.stack(columns)), torch.tensor(counts)
    )
    np.testing.assert_allclose(overlap, expected, rtol=0, atol=1e-10)


def test_covariance_errors_of_the_truth_and_of_another_scale(seed: int) -> None:
    system = SystemConfig(n_h=5, n_v=4, max_sources=3)
    scenes = Simulator(system, SimulationConfig(), seed=seed, split="metrics").batch(8)
    steering, truth = true_steering(system, scenes), true_covariance(system, scenes)
    same = covariance_errors(7.5 * truth, truth, steering, scenes.num_sources)
    assert (same.nmse < 1e-10).all()
    torch.testing.assert_close(same.overlap, torch.ones(8, dtype=torch.float64))
    sample = sample_covariance(scenes, CovarianceConfig())
    found = covariance_errors(sample, truth, steering, scenes.num_sources)
    for b in range(8):
        one, other = (
            (20 * m[b] / m[b].diagonal().real.sum()).to(torch.complex128) for m in (sample, truth)
        )
        gap = (one - other).abs().square()
        size = other.abs().square()
        on, off = torch.eye(20, dtype=torch.bool), ~torch.eye(20, dtype=torch.bool)
        nmse = 0.2 * gap[on].sum() / size[on].sum() + 0.8 * gap[off].sum() / size[off].sum()
        assert float(found.nmse[b]) == pytest.approx(float(nmse), rel=1e-4)
    assert ((found.overlap > 0) & (found.overlap < 1)).all()


def test_covariance_errors_refuse_what_makes_no_sense() -> None:
    a = torch.eye(4, dtype=torch.complex64)[None, :, :2]
    r, one = a @ a.mH, torch.tensor([1])
    for arguments, message in (
        ((r[0], a, one), "got estimate"),
        ((r, a[:, :3], one), "got estimate"),
        ((r, a, torch.tensor([3])), "num_sources is"),
        ((r, a, torch.tensor([1, 1])), "num_sources is"),
        ((r * math.nan, a, one), "infinite or undefined"),
    ):
        with pytest.raises(ValueError, match=message):
            subspace_overlap(*arguments)
    with pytest.raises(ValueError, match="truth has a trace"):
        covariance_errors(r, 0 * r, a, one)
    assert subspace_overlap(r, a, torch.tensor([0])).isnan().all()
