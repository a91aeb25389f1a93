# SPDX-License-Identifier: Apache-2.0
"""Cramer-Rao bounds: padding, order, derivatives, what is infinite and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from ris_pytorch_pipeline.bounds import (
    deterministic_bound,
    position_error_bound,
    stochastic_bound,
)
from ris_pytorch_pipeline.configs import SimulationConfig, SystemConfig
from ris_pytorch_pipeline.geometry import to_cartesian
from ris_pytorch_pipeline.simulate import Simulator

FULL = SystemConfig(max_sources=3)


def drawn(seed: int, batch: int = 6, **options: object):
    simulation = SimulationConfig(**options)
    return Simulator(FULL, simulation, seed=seed, split="bounds").draw(batch)


def both_bounds(d, mask=None, rows=slice(None), **changes):
    s = d.scenes
    fields = {
        "points": (s.phi[rows], s.theta[rows], s.r[rows]),
        "h": s.h[rows],
        "codes": s.codes[rows],
        "noise_power": d.noise_power[rows],
        "system": FULL,
        "mask": s.mask[rows] if mask is None else mask,
        **changes,
    }
    return (
        deterministic_bound(symbols=d.symbols[rows], **fields),
        deterministic_bound(symbols=d.symbols[rows, 0], static=True, **fields),
        stochastic_bound(source_covariance=s.power[rows], **fields),
        stochastic_bound(source_covariance=s.power[rows], unknown="powers", **fields),
    )


def test_padding_does_not_matter(seed: int) -> None:
    d = drawn(seed)
    s = d.scenes
    keep = s.mask.repeat(1, 3)
    for bound in both_bounds(d):
        assert torch.isfinite(bound).all() and (bound[~keep] == 0).all()
        peb = position_error_bound(bound, (s.phi, s.theta, s.r))
        assert (peb[~s.mask] == 0).all() and (peb[s.mask] > 0).all()
    for row in range(len(s)):
        k = int(s.num_sources[row])
        one = slice(row, row + 1)
        alone = {
            "points": tuple(x[one, :k] for x in (s.phi, s.theta, s.r)),
            "h": s.h[one],
            "codes": s.codes[one],
            "noise_power": d.noise_power[one],
            "system": FULL,
        }
        expected = (
            deterministic_bound(symbols=d.symbols[one, :, :k], **alone),
            deterministic_bound(symbols=d.symbols[one, 0, :k], static=True, **alone),
            stochastic_bound(source_covariance=s.power[one, :k], **alone),
            stochastic_bound(source_covariance=s.power[one, :k], unknown="powers", **alone),
        )
        for bound, wanted in zip(both_bounds(d), expected, strict=True):
            got = bound[row][keep[row]][:, keep[row]]
            scale = wanted[0].diagonal().sqrt()
            torch.testing.assert_close(
                got / (scale * scale[:, None]),
                wanted[0] / (scale * scale[:, None]),
                rtol=0,
                atol=1e-6,
            )


def test_order_of_the_bounds(seed: int) -> None:
    """Less knowledge, larger bound; and the bound follows the noise power exactly where it must."""
    d = drawn(seed, 8)
    independent, static, free, powers = (b.diagonal(dim1=1, dim2=2) for b in both_bounds(d))
    keep = d.scenes.mask.repeat(1, 3)
    assert (powers[keep] <= free[keep] * (1 + 1e-9)).all()
    assert torch.isfinite(static).all()
    louder = deterministic_bound(
        (d.scenes.phi, d.scenes.theta, d.scenes.r),
        d.scenes.h,
        d.scenes.codes,
        d.symbols,
        4 * d.noise_power,
        FULL,
        mask=d.scenes.mask,
    )
    torch.testing.assert_close(louder.diagonal(dim1=1, dim2=2), 4 * independent)


def test_symbols_known_to_be_constant_lower_the_bound(seed: int) -> None:
    """The same symbols in every snapshot: knowing that they are never raises any variance."""
    d = drawn(seed, 8)
    s = d.scenes
    constant = d.symbols[:, :1].expand_as(d.symbols)
    known = ((s.phi, s.theta, s.r), s.h, s.codes)
    independent = deterministic_bound(*known, constant, d.noise_power, FULL, mask=s.mask)
    static = deterministic_bound(
        *known, constant[:, 0], d.noise_power, FULL, mask=s.mask, static=True
    )
    assert torch.isfinite(independent).all() and torch.isfinite(static).all()
    scale = independent.diagonal(dim1=1, dim2=2).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    gain = (independent - static) / (scale[:, :, None] * scale[:, None, :])
    assert (torch.linalg.eigvalsh(gain) > -1e-9).all()
    assert (gain.diagonal(dim1=1, dim2=2)[s.mask.repeat(1, 3)] > 0).all()


def test_position_error_bound_is_the_trace_of_the_mapped_covariance(seed: int) -> None:
    torch.manual_seed(seed)
    points = tuple(torch.rand(4, 3, dtype=torch.float64) + 0.3 for _ in range(3))
    root = torch.randn(4, 9, 9, dtype=torch.float64)
    covariance = root @ root.mT
    peb = position_error_bound(covariance, points)
    for b in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda *x: to_cartesian(*x), tuple(p[b] for p in points)
        )
        t = torch.stack([j.diagonal(dim1=0, dim2=2) for j in jacobian])
        for k in range(3):
            block = covariance[b, k::3, k::3]
            wanted = torch.einsum("qx,qp,px->", t[:, :, k], block, t[:, :, k]).sqrt()
            torch.testing.assert_close(peb[b, k], wanted)


@pytest.mark.parametrize("which", range(4))
def test_bounds_are_differentiable(seed: int, which: int) -> None:
    torch.manual_seed(seed)
    system = SystemConfig(n_h=3, n_v=3, antennas=3, snapshots=4, max_sources=2)
    batch, sources = 2, 2
    mask = torch.tensor([[True, True], [True, False]])
    wide = {"dtype": torch.complex128}
    h = torch.randn(batch, 3, 9, **wide)
    codes = torch.randn(batch, 4, 9, **wide)
    phi, theta = (torch.rand(batch, sources, dtype=torch.float64) - 0.5 for _ in range(2))
    r = torch.rand(batch, sources, dtype=torch.float64) * 0.3 + 0.3
    noise = torch.rand(batch, dtype=torch.float64) + 0.5
    symbols = torch.randn(batch, 4, sources, **wide)
    power = torch.rand(batch, sources, dtype=torch.float64) + 0.5
    static = which == 1
    signal = power if which > 1 else symbols[:, 0] if static else symbols

    def value(phi, theta, r, signal, noise, h):
        common = {"mask": mask, "system": system}
        if which > 1:
            kind = "powers" if which == 3 else "covariance"
            bound = stochastic_bound(
                (phi, theta, r), h, codes, signal, noise, unknown=kind, **common
            )
        else:
            bound = deterministic_bound(
                (phi, theta, r), h, codes, signal, noise, static=static, **common
            )
        return position_error_bound(bound, (phi, theta, r)).log1p()

    inputs = [x.requires_grad_() for x in (phi, theta, r, signal, noise, h)]
    assert torch.isfinite(value(*inputs)).all()
    assert torch.autograd.gradcheck(value, inputs, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_told_apart_is_infinite_and_never_nan(seed: int) -> None:
    d = drawn(seed, 5, min_sources=3)
    s = d.scenes
    phi, theta, r = (x.double().clone() for x in (s.phi, s.theta, s.r))
    phi[1, 1], theta[1, 1], r[1, 1] = phi[1, 0], theta[1, 0], r[1, 0]  # coincident
    r[2, 0] = math.inf
    phi[3, 1], theta[3, 1], r[3, 1] = phi[3, 0], theta[3, 0], r[3, 0] + 1e-4  # nearly coincident
    points = tuple(x.requires_grad_() for x in (phi, theta, r))
    for bound in both_bounds(d, points=points):
        variance = bound.diagonal(dim1=1, dim2=2)
        assert not bound.isnan().any()
        assert (variance[1] == math.inf).all() and (variance[2] == math.inf).all()
        assert torch.isfinite(variance[0]).all() and torch.isfinite(variance[4]).all()
        assert (variance[3] > 0).all()
        peb = position_error_bound(bound, (phi, theta, r))
        assert (peb[1:3] == math.inf).all()
        peb[torch.isfinite(peb)].sum().backward()
        for x in points:
            assert torch.isfinite(x.grad[[0, 1, 2, 4]]).all()
            x.grad = None
    # As many sources as antennas: a snapshot has nothing left over.
    narrow = deterministic_bound(
        (s.phi, s.theta, s.r), s.h[:, :3], s.codes, d.symbols, d.noise_power, FULL, mask=s.mask
    )
    assert (narrow.diagonal(dim1=1, dim2=2) == math.inf).all()
    silent = stochastic_bound(
        (s.phi, s.theta, s.r), s.h, s.codes, 0 * s.power, d.noise_power, FULL, mask=s.mask
    )
    assert (silent.diagonal(dim1=1, dim2=2) == math.inf).all()


def test_bounds_refuse_what_makes_no_sense(seed: int) -> None:
    d = drawn(seed, 2)
    s = d.scenes
    good = {
        "points": (s.phi, s.theta, s.r),
        "h": s.h,
        "codes": s.codes,
        "symbols": d.symbols,
        "noise_power": d.noise_power,
        "system": FULL,
        "mask": s.mask,
    }
    for change, message in (
        ({"noise_power": 0 * d.noise_power}, "noise_power is not above 0"),
        ({"points": (s.phi, s.theta, -s.r)}, "r is not above 0"),
        ({"points": (s.phi, s.theta, s.r[:, :1])}, "expected the same"),
        ({"h": s.h[:1]}, "h has shape"),
        ({"h": s.h[..., 1:], "codes": s.codes[..., 1:]}, "h has shape .*144"),
        ({"h": s.h * math.nan}, "h holds infinite"),
        ({"symbols": d.symbols[:, 0]}, "symbols has shape"),
        ({"mask": s.mask[:1]}, "mask has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            deterministic_bound(**{**good, **change})
    del good["symbols"]
    with pytest.raises(ValueError, match="expected 'covariance' or 'powers'"):
        stochastic_bound(**good, source_covariance=s.power, unknown="noise")
    with pytest.raises(ValueError, match="source_covariance has shape"):
        stochastic_bound(**good, source_covariance=s.power[:1])
    skew = torch.diag_embed(s.power).to(torch.complex128)
    skew[0, 0, 0] += 0.1j
    with pytest.raises(ValueError, match="source_covariance is not Hermitian"):
        stochastic_bound(**good, source_covariance=skew)
    for negative in (-s.power, torch.diag_embed(-s.power)):
        with pytest.raises(ValueError, match="source_covariance has a negative eigenvalue"):
            stochastic_bound(**good, source_covariance=negative)
    with pytest.raises(ValueError, match="covariance has shape"):
        position_error_bound(torch.zeros(2, 3, 3), (s.phi, s.theta, s.r))


def test_bounds_of_no_scenes() -> None:
    d = drawn(0, 2)
    for bound in both_bounds(d, rows=slice(0, 0)):
        assert bound.shape == (0, 9, 9)
    one = slice(0, 1)
    s = d.scenes[one]
    empty = torch.zeros(1, 0)
    bound = stochastic_bound((empty, empty, empty), s.h, s.codes, empty, d.noise_power[one], FULL)
    assert bound.shape == (1, 0, 0)
