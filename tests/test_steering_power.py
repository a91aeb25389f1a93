# SPDX-License-Identifier: Apache-2.0
"""steering_power on every backend, against distances in complex128."""

from __future__ import annotations

import math

import pytest
import tikhonov_inputs as ti
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steering_inputs import C64, C128, WAVELENGTH, case
from torch import Tensor

import riskernels
from riskernels.testing import assert_close, tolerance

SIZES = [(1, 1, 1), (7, 2, 33), (31, 5, 17), (144, 21, 65), (257, 6, 40), (300, 23, 9)]  # N, k, G


def oracle(
    factor: Tensor, phi: Tensor, theta: Tensor, r: Tensor, positions: Tensor, taper: bool = False
) -> Tensor:
    """From the distances themselves, all in double on the CPU."""
    x, phi, theta, r, p = (
        t if t.requires_grad else t.cpu().to(C128 if t.is_complex() else torch.float64)
        for t in (factor, phi, theta, r, positions)
    )
    u = torch.stack([theta.cos() * phi.cos(), theta.cos() * phi.sin(), theta.sin()], -1)
    plane = torch.isinf(r)[..., None]
    finite = torch.where(torch.isinf(r), torch.ones_like(r), r)[..., None]
    distance = (finite[..., None] * u[..., None, :] - p).norm(dim=-1)
    advance = torch.where(plane, u @ p.mT, finite - distance)
    size = torch.ones_like(advance) / math.sqrt(len(p))
    if taper:
        size = torch.where(plane, size, size * finite / distance)
    a = torch.polar(size, 2 * math.pi / WAVELENGTH * advance)
    return (a.conj() @ x).abs().square().sum(-1)


def wide(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().to(C128).requires_grad_()


def phase_condition(positions: Tensor) -> float:
    """k0 |p|: by how much an error of eps in a path shows in a phase."""
    return 2 * math.pi / WAVELENGTH * float(positions.norm(dim=1).max())


def check(
    factor: Tensor, phi: Tensor, theta: Tensor, r: Tensor, positions: Tensor, taper: bool = False
) -> None:
    """Values, and the gradient of a weighted sum of positive weights."""
    points = phi, theta, r, positions
    leaf, exact = factor.detach().requires_grad_(), wide(factor)
    power = riskernels.steering_power(leaf, *points, WAVELENGTH, taper=taper)
    expected = oracle(exact, *points, taper)
    largest = float(expected.detach().max())
    assert power.dtype == factor.dtype.to_real() and power.is_contiguous()
    bound = tolerance(factor.dtype, phase_condition(positions), 4.0)
    scale = exact.detach().abs().square().sum((1, 2)).sqrt()[:, None]
    assert_close(power, expected, bound * max(1.0, float(scale.max()) / largest**0.5))
    weight = 0.5 + torch.rand(power.shape, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(expected, exact, weight)
    (got,) = torch.autograd.grad(power, leaf, weight.to(power.device, power.dtype))
    terms = float((weight.sum(1, keepdim=True) * scale).norm()) * 2 / math.sqrt(factor.shape[1])
    assert got.shape == factor.shape and got.is_contiguous()
    assert float((got.cpu() - wanted).norm()) <= bound * max(terms, float(wanted.norm()))


@pytest.mark.parametrize("dtype", [C64, C128])
@pytest.mark.parametrize("n,k,g", SIZES)
def test_sizes(backend, poisoned, seed, n, k, g, dtype):
    for b, own_points, taper in ((1, False, False), (3, False, True), (3, True, False)):
        check(*case(b, n, k, g, dtype, backend.device, seed, own_points=own_points), taper=taper)


@pytest.mark.parametrize("dtype", [C64, C128])
def test_many_points_and_scenes(backend, poisoned, seed, dtype):
    """More points than the backward sums at once, more scenes than share a block."""
    check(*case(1, 9, 3, 17000, dtype, backend.device, seed))
    check(*case(40, 144, 12, 35, dtype, backend.device, seed))


def test_pipeline_geometry(backend, seed):
    """The same steering vectors as the pipeline's own, on its surface and in its field of view."""
    geometry = pytest.importorskip("ris_pytorch_pipeline.geometry")
    configs = pytest.importorskip("ris_pytorch_pipeline.configs")
    generator = torch.Generator().manual_seed(seed)
    for taper in (False, True):
        system = configs.SystemConfig(taper=taper)
        low = torch.tensor([-system.phi_max, -system.theta_max, system.r_min]).double()
        high = torch.tensor([system.phi_max, system.theta_max, system.r_max]).double()
        points = low + (high - low) * torch.rand(50, 3, dtype=torch.float64, generator=generator)
        phi, theta, r = points.unbind(-1)
        x = ti.complex_normal(2, system.elements, 4, dtype=C128, seed=generator)
        a = geometry.steering(system, phi, theta, r, dtype=C128)
        expected = (a.conj() @ x).abs().square().sum(-1)
        positions = geometry.element_positions(system)
        for dtype in (C64, C128):
            inputs = (t.to(backend.device) for t in (x.to(dtype), phi, theta, r, positions))
            power = riskernels.steering_power(*inputs, system.wavelength, taper=taper)
            assert_close(power, expected, tolerance(dtype, phase_condition(positions), 1.0))


@pytest.mark.parametrize("dtype", [C64, C128])
def test_taper_near_an_element(backend, poisoned, seed, dtype):
    """r / R_n of a point at a thousandth of its range from an element: three digits are lost."""
    n, near = 20, 1e-3
    g = torch.Generator().manual_seed(seed)
    places = 1.0 + torch.rand(n, 3, dtype=torch.float64, generator=g)
    offset = torch.randn(n, 3, dtype=torch.float64, generator=g)
    distance = near * places.norm(dim=1, keepdim=True)
    points = places + distance * offset / offset.norm(dim=1, keepdim=True)
    r = points.norm(dim=1)
    phi, theta = torch.atan2(points[:, 1], points[:, 0]), torch.asin(points[:, 2] / r)
    # A diagonal of which each point sees the entry of its own element, far above the others.
    x = torch.diag(torch.ones(n, dtype=dtype))[None]
    inputs = (t.to(backend.device) for t in (x, phi, theta, r, places))
    power = riskernels.steering_power(*inputs, WAVELENGTH, taper=True)[0].cpu().double()
    exact = ((r[:, None] / torch.cdist(points, places)) ** 2).sum(1) / n
    eps = torch.finfo(dtype.to_real()).eps
    assert float(((power - exact) / exact).abs().max()) < 16 * eps / near


def test_plane_wave_and_impossible_ranges(backend):
    factor, phi, theta, r, positions = case(2, 20, 3, 6, C64, backend.device)
    far = torch.full_like(r, torch.inf)
    check(factor, phi, theta, far, positions)
    check(factor, phi, theta, far, positions, taper=True)
    for index, bad in enumerate((0.0, -1.0, torch.nan)):
        r[index] = bad
    phi[3], theta[4] = torch.inf, torch.nan
    power = riskernels.steering_power(factor, phi, theta, r, positions, WAVELENGTH)
    assert power.isnan().tolist() == [[True] * 5 + [False]] * 2


def test_strides_and_precisions(backend, poisoned, seed):
    factor, phi, theta, r, positions = case(3, 12, 12, 20, C64, backend.device, seed)
    stacked = torch.stack([factor, factor.flip(1)], -1)
    for x in (
        factor.mT,
        factor.conj(),
        factor.mH,
        factor[:1].expand(3, 12, 12),
        factor[:, :1].expand(3, 12, 12),
        stacked[..., 1],
        factor[:, :, 1::3],
        -factor.imag * 1j,
    ):
        check(x, phi, theta, r, positions)
    own = torch.stack([phi, phi + 0.1, phi - 0.2])
    everywhere = theta.expand(3, 20), r.expand(3, 20)
    check(factor, own, *everywhere, positions)
    check(factor, own.mT.contiguous().mT, *everywhere, positions.mT.contiguous().mT)
    check(factor, phi[::2], theta[:1].expand(10), r.flip(0)[::2], positions)
    single = (t.float() for t in (phi, theta, r))
    check(factor, *single, positions)
    check(factor.to(C128), *(t.float() for t in (phi, theta, r)), positions.float())
    check(factor[:, :, :1], phi, theta, torch.complex(-r, -r).conj().imag, positions)


def test_empty(backend):
    factor, phi, theta, r, positions = case(2, 5, 3, 4, C64, backend.device)
    for x, points in ((factor[:0], (phi, theta, r)), (factor, (phi[:0], theta[:0], r[:0]))):
        leaf = x.detach().requires_grad_()
        power = riskernels.steering_power(leaf, *points, positions, WAVELENGTH)
        assert power.shape == (len(x), len(points[0]))
        power.sum().backward()
        assert torch.equal(leaf.grad, torch.zeros_like(x))
    none = (t[None, :0].expand(2, 0) for t in (phi, theta, r))
    assert riskernels.steering_power(factor, *none, positions, WAVELENGTH).shape == (2, 0)


def test_non_finite_input_stays_in_its_scene(backend):
    factor, *points = case(5, 12, 6, 40, C64, backend.device)
    dirty = factor.clone()
    dirty[1, 3, 2], dirty[3, 0, 0] = torch.nan, torch.inf
    lost = torch.tensor([False, True, False, True, False], device=backend.device)
    leaf, other = dirty.requires_grad_(), factor.requires_grad_()
    power = riskernels.steering_power(leaf, *points, WAVELENGTH)
    expected = riskernels.steering_power(other, *points, WAVELENGTH)
    assert not power[lost].isfinite().any()
    assert_close(power[~lost], expected[~lost], 1e-6)
    power.sum().backward()
    expected.sum().backward()
    assert_close(leaf.grad[~lost], other.grad[~lost], 1e-5)
    assert not leaf.grad[1].real.isfinite().all()


def test_same_bits(backend):
    factor, *points = case(6, 30, 7, 9000, C64, backend.device)
    grad = torch.rand(6, 9000, device=backend.device)
    ops = torch.ops.riskernels
    first = ops.steering_power(factor, *points, WAVELENGTH)
    slope = ops.steering_power_backward(grad, factor, *points, WAVELENGTH)
    assert torch.equal(first, ops.steering_power(factor, *points, WAVELENGTH))
    assert torch.equal(slope, ops.steering_power_backward(grad, factor, *points, WAVELENGTH))
    if backend.name == "cpu":
        # A scene depends neither on those beside it nor on the number of threads.
        alone = ops.steering_power(factor[4:5], *points, WAVELENGTH)
        assert torch.equal(first[4:5], alone)
        try:
            torch.set_num_threads(8)
            shared = ops.steering_power(factor, *points, WAVELENGTH)
            divided = ops.steering_power_backward(grad, factor, *points, WAVELENGTH)
        finally:
            torch.set_num_threads(1)
        assert torch.equal(first, shared) and torch.equal(slope, divided)


def test_one_column_peaks_at_its_source(backend):
    _, phi, theta, r, positions = case(1, 60, 1, 200, device=backend.device)
    u = torch.stack([theta.cos() * phi.cos(), theta.cos() * phi.sin(), theta.sin()], -1)[0]
    advance = r[0] - (r[0] * u - positions).norm(dim=-1)
    wave = torch.polar(torch.full_like(advance, 0.7), 2 * math.pi / WAVELENGTH * advance)
    power = riskernels.steering_power(wave[None, :, None], phi, theta, r, positions, WAVELENGTH)
    energy = 60 * 0.7**2
    assert float(power[0, 0]) == pytest.approx(energy, rel=1e-12)
    assert float(power[0, 1:].max()) < energy * (1 - 1e-6)


@settings(max_examples=20, deadline=None)
@given(
    b=st.integers(1, 3),
    n=st.integers(1, 40),
    k=st.integers(1, 9),
    g=st.integers(1, 40),
    taper=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_identities(b, n, k, g, taper, seed):
    factor, *points = case(b, n, k, g, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def power(x: Tensor) -> Tensor:
        return riskernels.steering_power(x, *points, WAVELENGTH, taper=taper)

    whole = power(factor)
    # Whatever unitary mixes the columns; additive over columns; square in the scale.
    mix = torch.linalg.qr(ti.complex_normal(k, k, dtype=C128, seed=generator))[0]
    assert_close(power(factor @ mix), whole, 1e-12)
    assert_close(sum(power(factor[..., j : j + 1]) for j in range(k)), whole, 1e-12)
    assert_close(power(3j * factor), 9 * whole, 1e-12)
    if not taper:
        energy = factor.abs().square().sum((1, 2))[:, None]
        assert bool((whole <= energy * (1 + 1e-12)).all())
        # A basis of the whole space catches all of a unit vector.
        eye = torch.eye(n, dtype=C128)[None]
        assert_close(power(eye), torch.ones(1, g, dtype=torch.float64), 1e-12)


def test_gradcheck(backend):
    factor, *points = case(2, 5, 3, 4, device=backend.device)

    def loss(x: Tensor, taper: bool) -> Tensor:
        return riskernels.steering_power(x, *points, WAVELENGTH, taper=taper)

    for taper in (False, True):
        assert torch.autograd.gradcheck(loss, (factor.requires_grad_(), taper))
