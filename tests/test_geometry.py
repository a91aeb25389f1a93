# SPDX-License-Identifier: Apache-2.0
"""Positions, steering vectors and their derivatives against direct formulas and autograd."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ris_pytorch_pipeline.configs import SystemConfig
from ris_pytorch_pipeline.geometry import (
    direction,
    element_positions,
    steering,
    steering_derivatives,
    to_cartesian,
    to_spherical,
    wrap_angle,
)

SYSTEM = SystemConfig()
TAPERED = dataclasses.replace(SYSTEM, taper=True)


def random_sources(shape, seed, system=SYSTEM, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
    phi = (2 * u[0] - 1) * system.phi_max
    theta = (2 * u[1] - 1) * system.theta_max
    r = system.r_min + u[2] * (system.r_max - system.r_min)
    return phi.to(dtype), theta.to(dtype), r.to(dtype)


def direct_formula(system, phi, theta, r):
    """Steering vectors from Cartesian distances in extended precision, no shared code."""
    phi, theta, r = (np.asarray(v, np.longdouble)[..., None] for v in (phi, theta, r))
    index = np.arange(system.n_h * system.n_v)
    y = (index % system.n_h - (system.n_h - 1) / 2) * np.longdouble(system.spacing)
    z = (index // system.n_h - (system.n_v - 1) / 2) * np.longdouble(system.spacing)
    distance = np.sqrt(
        (r * np.cos(theta) * np.cos(phi)) ** 2
        + (r * np.cos(theta) * np.sin(phi) - y) ** 2
        + (r * np.sin(theta) - z) ** 2
    )
    phase = 2 * np.longdouble(math.pi) / np.longdouble(system.wavelength) * (r - distance)
    amplitude = r / distance if system.taper else 1
    wave = amplitude * (np.cos(phase) + 1j * np.sin(phase)) / math.sqrt(index.size)
    return torch.from_numpy(wave.astype(np.complex128))


def test_positions_are_a_centred_row_major_grid():
    system = SystemConfig(n_h=4, n_v=3, spacing=0.2)
    p = element_positions(system)
    assert p.shape == (12, 3) and p.dtype == torch.float64
    torch.testing.assert_close(p.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-15, rtol=0)
    grid = p.view(3, 4, 3)
    assert bool((grid[..., 0] == 0).all())
    torch.testing.assert_close(grid[:, 1:, 1] - grid[:, :-1, 1], torch.full((3, 3), 0.2).double())
    torch.testing.assert_close(grid[1:, :, 2] - grid[:-1, :, 2], torch.full((2, 4), 0.2).double())
    assert element_positions(system, dtype=torch.float32).dtype == torch.float32


def test_direction_convention():
    half = torch.tensor(math.pi / 2, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    for angles, axis in (((zero, zero), 0), ((half, zero), 1), ((zero, half), 2)):
        torch.testing.assert_close(direction(*angles), torch.eye(3).double()[axis])


@pytest.mark.parametrize("system", [SYSTEM, TAPERED, SystemConfig(n_h=5, n_v=7)])
def test_steering_matches_direct_formula(system):
    phi, theta, r = random_sources((7, 5), 1, system)
    expected = direct_formula(system, phi, theta, r)
    exact = steering(system, phi, theta, r, dtype=torch.complex128)
    torch.testing.assert_close(exact, expected, atol=1e-14, rtol=1e-13)
    single = steering(system, phi, theta, r)
    assert single.dtype == torch.complex64 and single.shape == (7, 5, system.elements)
    error = (single.to(torch.complex128) - expected).abs() / expected.abs()
    assert error.max() < 1e-6


def test_float32_parameters_lose_nothing_in_the_phase():
    phi, theta, r = random_sources((200,), 2, dtype=torch.float32)
    expected = direct_formula(SYSTEM, phi, theta, r)
    error = (steering(SYSTEM, phi, theta, r) - expected).abs() / expected.abs()
    assert error.max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-1.5, 1.5),
    st.floats(-1.5, 1.5),
    st.floats(0.3, 1e6),
    st.integers(1, 13),
    st.integers(1, 13),
)
def test_steering_has_unit_norm(phi, theta, r, n_h, n_v):
    system = SystemConfig(n_h=n_h, n_v=n_v)
    args = (torch.tensor([v], dtype=torch.float64) for v in (phi, theta, r))
    norm = torch.linalg.vector_norm(steering(system, *args, dtype=torch.complex128))
    assert abs(norm.item() - 1) < 1e-12


def test_plane_wave_limit():
    phi, theta, _ = random_sources((20,), 3)
    p = element_positions(SYSTEM)
    phase = 2 * math.pi / SYSTEM.wavelength * direction(phi, theta) @ p.mT
    plane = torch.polar(torch.full_like(phase, 1 / 12), phase)
    for system in (SYSTEM, TAPERED):
        far = steering(system, phi, theta, torch.full_like(phi, math.inf), dtype=torch.complex128)
        torch.testing.assert_close(far, plane, atol=1e-13, rtol=1e-12)
    errors = [
        (steering(SYSTEM, phi, theta, torch.full_like(phi, r), dtype=torch.complex128) - plane)
        .abs()
        .max()
        .item()
        for r in (1e4, 1e5, 1e6)
    ]
    # The first neglected term of the expansion is k0 |p|^2 / (2 r): ten times the range, a tenth.
    assert errors[0] / errors[1] == pytest.approx(10, rel=1e-2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=1e-2)
    near = steering(SYSTEM, phi, theta, torch.full_like(phi, 1.0), dtype=torch.complex128)
    assert (near - plane).abs().max() > 0.05


def test_taper_is_the_ratio_of_distances():
    phi, theta, r = random_sources((10,), 4)
    p = element_positions(SYSTEM)
    distance = torch.linalg.vector_norm(to_cartesian(phi, theta, r)[:, None] - p, dim=-1)
    tapered = steering(TAPERED, phi, theta, r, dtype=torch.complex128)
    torch.testing.assert_close(tapered.abs() * 12, r[:, None] / distance)
    plain = steering(SYSTEM, phi, theta, r, dtype=torch.complex128)
    torch.testing.assert_close(tapered / tapered.abs(), plain / plain.abs())


@pytest.mark.parametrize("system", [SYSTEM, TAPERED])
def test_derivatives_match_autograd_and_differences(system):
    arguments = random_sources((4, 3), 5, system)
    analytic = steering_derivatives(system, *arguments, dtype=torch.complex128)

    def wave(*args):
        return torch.view_as_real(steering(system, *args, dtype=torch.complex128))

    step = 1e-6
    for k, derivative in enumerate(analytic):
        tangent = tuple(torch.full_like(a, float(i == k)) for i, a in enumerate(arguments))
        _, auto = torch.autograd.functional.jvp(wave, arguments, tangent)
        torch.testing.assert_close(torch.view_as_real(derivative), auto, atol=1e-12, rtol=1e-10)
        ahead = [a + step * t for a, t in zip(arguments, tangent, strict=True)]
        behind = [a - step * t for a, t in zip(arguments, tangent, strict=True)]
        difference = (wave(*ahead) - wave(*behind)) / (2 * step)
        torch.testing.assert_close(torch.view_as_real(derivative), difference, atol=1e-7, rtol=1e-6)
    for single, derivative in zip(steering_derivatives(system, *arguments), analytic, strict=True):
        assert single.dtype == torch.complex64
        torch.testing.assert_close(single, derivative.to(torch.complex64))


def test_gradcheck_including_positions():
    system = SystemConfig(n_h=3, n_v=2, taper=True)
    arguments = [a.requires_grad_() for a in random_sources((2,), 6, system)]
    positions = element_positions(system).requires_grad_()

    def wave(phi, theta, r, p):
        return steering(system, phi, theta, r, positions=p, dtype=torch.complex128)

    assert torch.autograd.gradcheck(wave, (*arguments, positions))


def test_gradient_reaches_float32_parameters():
    phi, theta, r = (a.requires_grad_() for a in random_sources((3,), 7, dtype=torch.float32))
    weight = torch.randn(3, 144, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    (steering(SYSTEM, phi, theta, r) * weight).real.sum().backward()
    for argument, derivative in zip(
        (phi, theta, r), steering_derivatives(SYSTEM, phi, theta, r), strict=True
    ):
        torch.testing.assert_close(
            argument.grad, (derivative * weight).real.sum(-1).detach(), atol=1e-4, rtol=1e-4
        )


@settings(max_examples=60, deadline=None)
@given(st.floats(-3.1, 3.1), st.floats(-1.5, 1.5), st.floats(1e-2, 1e3))
def test_spherical_round_trip(phi, theta, r):
    values = [torch.tensor(v, dtype=torch.float64) for v in (phi, theta, r)]
    for got, expected in zip(to_spherical(to_cartesian(*values)), values, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.floats(-math.pi, math.pi), st.integers(-50, 50))
def test_wrap_angle(x, turns):
    inside = torch.tensor(x, dtype=torch.float64)
    assert wrap_angle(inside) == inside
    wrapped = wrap_angle(inside + 2 * math.pi * turns)
    assert abs(wrapped.item()) <= math.pi + 1e-12
    torch.testing.assert_close(direction(wrapped, inside * 0), direction(inside, inside * 0))


def test_wrap_angle_has_unit_derivative():
    x = torch.tensor([-9.0, 0.3, 4.0], requires_grad=True)
    wrap_angle(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_bad_arguments_are_named():
    phi, theta, r = random_sources((3,), 8)
    with pytest.raises(ValueError, match="same shape"):
        steering(SYSTEM, phi, theta, r[:2])
    with pytest.raises(ValueError, match=r"phi has dtype torch\.int64"):
        steering(SYSTEM, phi.long(), theta, r)
    with pytest.raises(ValueError, match=r"dtype is torch\.float32"):
        steering(SYSTEM, phi, theta, r, dtype=torch.float32)
