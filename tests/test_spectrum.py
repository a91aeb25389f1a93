# SPDX-License-Identifier: Apache-2.0
"""Spectra, their derivatives and their peaks."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from localize_inputs import SMALL, scenes_of
from torch import Tensor

from ris_pytorch_pipeline.configs import (
    SystemConfig,
)
from ris_pytorch_pipeline.geometry import steering
from ris_pytorch_pipeline.localize import SearchConfig
from ris_pytorch_pipeline.peak_search import make_spectrum
from ris_pytorch_pipeline.peaks import (
    grid_peaks,
    log_level,
    refine_peaks,
    spectrum_derivatives,
)
from ris_pytorch_pipeline.search_grid import SearchGrid
from ris_pytorch_pipeline.simulate import (
    true_covariance,
)
from ris_pytorch_pipeline.spectrum import (
    back_projection,
    grid_log_spectrum,
    loaded_cholesky,
    music,
    mvdr,
    steering_basis,
)


def random_factors(generator: torch.Generator, batch: int, columns: int) -> tuple[Tensor, Tensor]:
    shape = (batch, SMALL.elements, columns)
    x = torch.randn(shape, dtype=torch.complex128, generator=generator)
    return x, 0.1 + torch.rand(batch, dtype=torch.float64, generator=generator)


def dense(factors: tuple[Tensor, Tensor]) -> Tensor:
    x, rho = factors
    identity = torch.eye(x.shape[1], dtype=x.dtype)
    return x @ x.mH + rho[:, None, None] * identity


def expected_level(name: str, covariance: Tensor, vectors: Tensor, counts: list[int]) -> Tensor:
    """log P from the definition, [B, G] for steering vectors [G, N]."""
    n = covariance.shape[-1]
    scaled = covariance * (n / covariance.diagonal(dim1=1, dim2=2).real.sum(1))[:, None, None]
    identity = torch.eye(n, dtype=covariance.dtype)
    size = vectors.abs().square().sum(-1)
    if name == "mvdr":
        inverse = torch.linalg.inv(scaled + 0.05 * identity)
        return (size / torch.einsum("gn,bnm,gm->bg", vectors.conj(), inverse, vectors).real).log()
    if name == "back-projection":
        return (torch.einsum("gn,bnm,gm->bg", vectors.conj(), scaled, vectors).real / size).log()
    noise = [torch.linalg.eigh(r)[1][:, : n - k] for r, k in zip(covariance, counts, strict=True)]
    shares = [(vectors.conj() @ e).abs().square().sum(-1) / size for e in noise]
    return -torch.stack(shares).log()


@pytest.mark.parametrize("taper", [False, True])
@pytest.mark.parametrize("form", ["dense", "factored"])
@pytest.mark.parametrize("name", ["mvdr", "music", "back-projection"])
def test_spectra_are_what_they_are_defined_as(seed: int, name: str, form: str, taper: bool) -> None:
    system = dataclasses.replace(SMALL, taper=taper)
    factors = random_factors(torch.Generator().manual_seed(seed), 3, 5)
    search = SearchConfig(spectrum=name, loading=0.05)  # type: ignore[arg-type]
    covariance = dense(factors)
    counts = torch.tensor([0, 1, 2])
    spectrum = make_spectrum(covariance if form == "dense" else factors, counts, search)
    grid = SearchGrid.for_system(system)
    points = grid.all_points()
    torch.testing.assert_close(points, grid.points(torch.arange(len(points))))
    vectors = steering(system, points[:, 0], points[:, 1], 1 / points[:, 2], dtype=torch.complex128)
    expected = expected_level(name, covariance, vectors, counts.tolist())
    level = grid_log_spectrum(spectrum, grid, system).flatten(1)
    torch.testing.assert_close(level.double(), expected, rtol=0, atol=2e-6)
    value, _, _ = spectrum_derivatives(spectrum, points.expand(3, -1, 3), system)
    torch.testing.assert_close(log_level(spectrum, value), expected, rtol=0, atol=1e-10)
    larger = (3e8 * factors[0], 9e16 * factors[1])
    again = make_spectrum(dense(larger) if form == "dense" else larger, counts, search)
    again_level = grid_log_spectrum(again, grid, system).flatten(1)
    torch.testing.assert_close(again_level, level, rtol=0, atol=2e-6)


@pytest.mark.parametrize("taper", [False, True])
@pytest.mark.parametrize("name", ["mvdr", "music", "back-projection"])
def test_derivatives_and_deflation(seed: int, name: str, taper: bool) -> None:
    system = dataclasses.replace(SMALL, taper=taper)
    generator = torch.Generator().manual_seed(seed)
    factors = random_factors(generator, 2, 4)
    search = SearchConfig(spectrum=name, loading=0.05)  # type: ignore[arg-type]
    whole = make_spectrum(factors, torch.tensor([2, 1]), search)
    points = torch.rand(2, 6, 3, dtype=torch.float64, generator=generator) + 0.1
    basis = steering_basis(points[:, :2] - 0.4, torch.tensor([[True, True], [True, False]]), system)
    torch.testing.assert_close(basis.mH @ basis @ basis.mH, basis.mH.clone(), rtol=1e-9, atol=1e-9)
    deflated = whole.deflated(basis)
    for spectrum in (whole, deflated):
        _, slope, curvature = spectrum_derivatives(spectrum, points, system)
        step = 1e-5 * torch.eye(3, dtype=torch.float64)
        for axis in range(3):
            ahead = spectrum_derivatives(spectrum, points + step[axis], system)
            behind = spectrum_derivatives(spectrum, points - step[axis], system)
            for found, order in ((slope, 0), (curvature, 1)):
                difference = (ahead[order] - behind[order]) / 2e-5
                scale = float(found.abs().max())
                torch.testing.assert_close(
                    found[..., axis], difference, rtol=1e-5, atol=1e-7 * scale
                )
    # From the definition: the share of a outside the span multiplies P (and X loses the span).
    angles = points[..., 0], points[..., 1], 1 / points[..., 2]
    vectors = steering(system, *angles, dtype=torch.complex128)
    size = vectors.abs().square().sum(-1)
    share = 1 - (vectors.conj() @ basis).abs().square().sum(-1) / size
    value, _, _ = spectrum_derivatives(whole, points, system)
    expected = log_level(whole, value) + share.log()
    if name == "back-projection":
        x = factors[0] - basis @ (basis.mH @ factors[0])
        mean = dense(factors).diagonal(dim1=1, dim2=2).real.mean(1)
        q = (vectors.conj() @ x).abs().square().sum(-1) / size / share
        expected = ((q + factors[1][:, None]) / mean[:, None]).log()
    value, _, _ = spectrum_derivatives(deflated, points, system)
    torch.testing.assert_close(log_level(deflated, value), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        deflated.log_level(points, system).double(), expected, rtol=0, atol=1e-5
    )


def test_covariances_that_are_none_are_refused_by_scene() -> None:
    covariance = torch.eye(4, dtype=torch.complex64).repeat(5, 1, 1)
    covariance[1, 0, 0] = float("nan")
    covariance[3, 2, 2] = -1.0
    with pytest.raises(ValueError, match=r"scene\(s\) \[1, 3\]"):
        loaded_cholesky(covariance)
    for spectrum in (lambda r: music(r, 1), back_projection):
        with pytest.raises(ValueError, match=r"scene\(s\) \[1\] are not finite"):
            spectrum(covariance)
        with pytest.raises(ValueError, match=r"scene\(s\) \[2\] are not positive semidefinite"):
            spectrum(covariance[[0, 2, 3]])
    zero = covariance[[0, 2]] * torch.tensor([1.0, 0.0])[:, None, None]
    for spectrum in (mvdr, lambda r: music(r, 1), back_projection):
        with pytest.raises(ValueError, match=r"scene\(s\) \[1\] are not"):
            spectrum(zero)
    crooked = torch.eye(4, dtype=torch.complex64).repeat(2, 1, 1)
    crooked[1, 0, 2] = 0.5
    for spectrum in (mvdr, lambda r: music(r, 1), back_projection):
        with pytest.raises(ValueError, match=r"scene\(s\) \[1\] are not Hermitian"):
            spectrum(crooked)
    for bad, message in (
        (torch.ones(2, 3, 4, dtype=torch.complex64), "expected"),
        (torch.ones(4, 4), "complex"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded_cholesky(bad)
    with pytest.raises(ValueError, match="loading"):
        loaded_cholesky(covariance[:1], -1.0)
    x, rho = torch.ones(3, 4, 2, dtype=torch.complex64), torch.zeros(3)
    with pytest.raises(ValueError, match="loading > 0"):
        mvdr((x, rho), 0.0)
    with pytest.raises(ValueError, match="expected X"):
        mvdr((x, rho[:2]))
    with pytest.raises(ValueError, match="expected 0 to 2"):
        music((x, rho), 3)
    x[2, 0, 0], rho[1] = torch.inf, -1.0
    for spectrum in (mvdr, lambda r: music(r, 1), back_projection):
        with pytest.raises(ValueError, match=r"scene\(s\) \[1, 2\]"):
            spectrum((x, rho))


def test_grid_spans_the_field_of_view_uniformly_in_inverse_range() -> None:
    system = SystemConfig()
    grid = SearchGrid.for_system(system, oversampling=3.0)
    lower, upper = grid.bounds
    assert lower.tolist() == pytest.approx([-system.phi_max, -system.theta_max, 1 / system.r_max])
    assert upper.tolist() == pytest.approx([system.phi_max, system.theta_max, 1 / system.r_min])
    for axis, step in zip((grid.phi, grid.theta, grid.inverse_range), grid.steps, strict=True):
        torch.testing.assert_close(axis.diff(), step.expand(len(axis) - 1))
    finer = SearchGrid.for_system(dataclasses.replace(system, n_h=24), oversampling=3.0)
    assert finer.steps[0] < 0.6 * grid.steps[0]
    flat = torch.tensor([0, math.prod(grid.shape) - 1])
    torch.testing.assert_close(grid.points(flat), torch.stack([lower, upper]))


def test_grid_peaks_are_the_axis_maxima(seed: int) -> None:
    grid = SearchGrid.for_system(SMALL)
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(2, *grid.shape, generator=generator)
    expected: list[list[float]] = []
    for volume in level.numpy():
        found = []
        for place in itertools.product(*map(range, volume.shape)):
            around = [
                tuple(p + d * (i == axis) for i, p in enumerate(place))
                for axis in range(3)
                for d in (-1, 1)
            ]
            inside = [
                q for q in around if all(0 <= i < n for i, n in zip(q, volume.shape, strict=True))
            ]
            if all(volume[place] >= volume[q] for q in inside):
                found.append(float(volume[place]))
        expected.append(sorted(found, reverse=True))
    count = max(map(len, expected)) + 5
    points, valid = grid_peaks(level, grid, count)
    for scene in range(2):
        index = (
            ((points[scene][valid[scene]] - grid.bounds[0]) / grid.steps).round().long().unbind(-1)
        )
        assert level[scene][index].tolist() == expected[scene]
    points, valid = grid_peaks(level, grid, 3)
    assert points.shape == (2, 3, 3) and bool(valid.all())


def test_refinement_reaches_a_stationary_point_inside_the_bounds(seed: int) -> None:
    system = SystemConfig()
    spectrum = mvdr(true_covariance(system, scenes_of(system, seed, 3)), 1e-2)
    grid = SearchGrid.for_system(system)
    lower, upper = grid.bounds
    generator = torch.Generator().manual_seed(seed)
    start = lower + (upper - lower) * torch.rand(3, 12, 3, dtype=torch.float64, generator=generator)
    start[:, 0], start[:, 1] = lower, upper
    reached, level = refine_peaks(spectrum, start, grid, system, steps=60)
    before = log_level(spectrum, spectrum_derivatives(spectrum, start, system)[0])
    assert bool((level >= before).all())
    assert bool(((reached >= lower - 1e-12) & (reached <= upper + 1e-12)).all())
    value, gradient, _ = spectrum_derivatives(spectrum, reached, system)
    slope = gradient * grid.steps / value[..., None]
    held = ((reached <= lower + 1e-9) & (slope > 0)) | ((reached >= upper - 1e-9) & (slope < 0))
    settled = slope.masked_fill(held, 0.0).abs().amax(-1) < 1e-5
    assert settled.double().mean() > 0.9
