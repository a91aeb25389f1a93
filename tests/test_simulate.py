# SPDX-License-Identifier: Apache-2.0
"""The simulator against the signal model that it documents."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from ris_pytorch_pipeline.configs import ConfigError, SimulationConfig, SystemConfig
from ris_pytorch_pipeline.geometry import to_cartesian
from ris_pytorch_pipeline.simulate import (
    POWER_SPREAD_DB,
    Scenes,
    Simulator,
    true_covariance,
    true_factor,
    true_steering,
)

SYSTEM = SystemConfig()
NOISELESS = {"snr_db_min": 300.0, "snr_db_max": 300.0}


def simulate(batch=32, *, system=SYSTEM, seed=0, split="train", **simulation):
    config = SimulationConfig(**simulation)
    return Simulator(system, config, seed=seed, split=split).batch(batch)


def mixing(system, scenes):
    """H diag(c_l) A in complex128, [B, L, M, K_max]."""
    a = true_steering(system, scenes, dtype=torch.complex128)
    h, codes = scenes.h.to(torch.complex128), scenes.codes.to(torch.complex128)
    return torch.einsum("bmn,bln,bnk->blmk", h, codes, a)


def explained(matrix, y):
    """Least-squares coefficients and relative residual of y [..., M] in the columns of matrix."""
    y = y.to(torch.complex128)[..., None]
    coefficients = torch.linalg.pinv(matrix, rtol=1e-9) @ y
    residual = torch.linalg.vector_norm(y - matrix @ coefficients, dim=(-2, -1))
    return coefficients[..., 0], residual / torch.linalg.vector_norm(y, dim=(-2, -1))


def equal(left, right):
    return all(torch.equal(getattr(left, name), value) for name, value in right.tensors())


def test_fields_shapes_and_padding():
    system = SystemConfig(n_h=5, n_v=3, antennas=7, snapshots=4, max_sources=3)
    scenes = simulate(50, system=system)
    shapes = {name: tuple(value.shape) for name, value in scenes.tensors()}
    assert shapes == {
        "y": (50, 4, 7), "h": (50, 7, 15), "codes": (50, 4, 15), "phi": (50, 3), "theta": (50, 3),
        "r": (50, 3), "num_sources": (50,), "power": (50, 3), "snr_db": (50,),
    }  # fmt: skip
    mask = scenes.mask
    assert torch.equal(mask.sum(-1), scenes.num_sources)
    assert set(scenes.num_sources.tolist()) == {1, 2, 3}
    padding = ~mask
    assert bool((scenes.phi[padding] == 0).all() and (scenes.theta[padding] == 0).all())
    assert bool((scenes.r[padding] == system.r_max).all() and (scenes.power[padding] == 0).all())
    torch.testing.assert_close(scenes.power.sum(-1), torch.ones(50))
    assert bool((true_steering(system, scenes).mT[padding] == 0).all())


def test_scenes_hold_no_covariance():
    names = {spec.name.lower() for spec in dataclasses.fields(Scenes)}
    assert not {name for name in names if "true" in name or "samp" in name or "cov" in name}
    scenes = simulate(2)
    assert not [n for n, v in scenes.tensors() if v.shape[-2:] == (SYSTEM.elements,) * 2]


@pytest.mark.parametrize("codes", ["random", "dft", "hadamard"])
def test_signal_model_explains_the_snapshots(codes):
    system = dataclasses.replace(SYSTEM, antennas=24)
    impairments = {"amplitude_jitter": 0.2, "phase_error": 0.3, "element_dropout": 0.2}
    scenes = simulate(64, system=system, codes=codes, min_separation=2.0, rician_kappa=0.0,
                      **impairments, **NOISELESS)  # fmt: skip
    symbols, residual = explained(mixing(system, scenes), scenes.y)
    assert residual.max() < 1e-5
    ratio = symbols.abs().square().mean(1)[scenes.mask] / scenes.power[scenes.mask]
    # Each entry is a mean of 16 unit exponentials: the mean of n of them scatters by 1/sqrt(16 n).
    assert abs(ratio.mean() - 1) < 6 / math.sqrt(16 * ratio.numel())
    fourth = (symbols.abs() ** 4).mean(1)[scenes.mask] / scenes.power[scenes.mask] ** 2
    assert fourth.mean() == pytest.approx(2, rel=0.3)


def test_static_symbols_are_constant_over_snapshots():
    config = {"min_separation": 1.0, **NOISELESS}
    for symbols, fits in (("static", True), ("independent", False)):
        scenes = simulate(32, symbols=symbols, **config)
        matrix = mixing(SYSTEM, scenes).flatten(1, 2)
        _, residual = explained(matrix, scenes.y.flatten(1, 2))
        assert bool((residual < 1e-5).all()) if fits else bool((residual > 1e-2).all())


def test_snr_is_met_per_scene():
    clean = simulate(512, **NOISELESS)
    signal_power = clean.y.abs().square().mean((1, 2))
    noises = {}
    for snr in (-5.0, 10.0):
        noisy = simulate(512, snr_db_min=snr, snr_db_max=snr)
        assert torch.equal(noisy.codes, clean.codes) and torch.equal(noisy.h, clean.h)
        assert bool((noisy.snr_db == snr).all())
        noise = noisy.y - clean.y
        noises[snr] = torch.linalg.vector_norm(noise, dim=(1, 2))
        normalised = noise.abs().square().mean((1, 2)) / signal_power * 10 ** (snr / 10)
        # 512 * 256 unit exponentials: their mean scatters by 0.28 %, one scene's by 6.3 %.
        assert normalised.mean() == pytest.approx(1, abs=0.014)
        assert (normalised - 1).abs().max() < 6 / 16
    torch.testing.assert_close(
        noises[-5.0] / noises[10.0], torch.full((512,), 10 ** (15 / 20)), atol=0, rtol=1e-3
    )


def test_snr_is_drawn_over_its_range():
    snr = simulate(512, snr_db_min=-3.0, snr_db_max=7.0).snr_db
    assert snr.min() >= -3 and snr.max() <= 7
    assert snr.min() < -2.5 and snr.max() > 6.5


@pytest.mark.parametrize("kappa", [0.0, 3.0, 1e30])
def test_rician_channel_moments(kappa):
    h = simulate(256, rician_kappa=kappa).h.abs().square() * SYSTEM.elements
    assert h.mean() == pytest.approx(1, abs=0.01)
    fourth = (2 + 4 * kappa + kappa**2) / (1 + kappa) ** 2
    assert h.square().mean() == pytest.approx(fourth, rel=0.02)


def test_line_of_sight_is_one_path_of_the_two_arrays():
    h = simulate(16, rician_kappa=1e30).h.to(torch.complex128)
    singular = torch.linalg.svdvals(h)
    assert bool((singular[:, 1] < 1e-6 * singular[:, 0]).all())
    station = h[:, 1:, 0] / h[:, :-1, 0]
    torch.testing.assert_close(station, station[:, :1].expand_as(station), atol=1e-5, rtol=0)
    surface = h[:, 0].view(16, SYSTEM.n_v, SYSTEM.n_h)
    for ratio in (surface[:, 1:] / surface[:, :-1], surface[:, :, 1:] / surface[:, :, :-1]):
        torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), atol=1e-5, rtol=0)
    angles = torch.angle(station[:, 0])
    assert angles.std() > 0.1


def test_sources_fill_the_field_of_view():
    scenes = simulate(2048, min_separation=0.0)
    mask = scenes.mask
    slack = 1e-6
    for values, low, high in (
        (scenes.phi, -SYSTEM.phi_max, SYSTEM.phi_max),
        (scenes.theta, -SYSTEM.theta_max, SYSTEM.theta_max),
        (scenes.r, SYSTEM.r_min, SYSTEM.r_max),
    ):
        active = values[mask].double()
        assert active.min() >= low - slack and active.max() <= high + slack
        unit = (active - low) / (high - low)
        quantiles = torch.quantile(unit, torch.tensor([0.1, 0.5, 0.9]).double())
        torch.testing.assert_close(
            quantiles, torch.tensor([0.1, 0.5, 0.9]).double(), atol=0.03, rtol=0
        )
    counts = scenes.num_sources.bincount(minlength=6)[1:] / 2048
    torch.testing.assert_close(counts, torch.full((5,), 0.2), atol=0.05, rtol=0)
    many = scenes.num_sources == 5
    ratio = scenes.power[many].amax(-1) / scenes.power[many].amin(-1)
    assert 3 < 10 * math.log10(ratio.max()) <= POWER_SPREAD_DB + 1e-4


@pytest.mark.parametrize("separation", [0.5, 3.0])
def test_min_separation_holds(separation):
    scenes = simulate(512, min_separation=separation)
    points = to_cartesian(scenes.phi.double(), scenes.theta.double(), scenes.r.double())
    distance = torch.linalg.vector_norm(points[:, :, None] - points[:, None], dim=-1)
    pair = scenes.mask[:, :, None] & scenes.mask[:, None] & ~torch.eye(5, dtype=torch.bool)
    assert distance[pair].min() >= separation
    assert set(scenes.num_sources.tolist()) == {1, 2, 3, 4, 5}


def test_impossible_separation_is_refused():
    with pytest.raises(ConfigError, match=r"min_separation = 30 m cannot be met.*lower"):
        simulate(8, min_separation=30.0)


def test_reproducible_and_resumable():
    def make():
        return Simulator(SYSTEM, SimulationConfig(), seed=7, split="train")

    one, two = make(), make()
    for size in (3, 8):
        assert equal(one.batch(size), two.batch(size))
    state = {key: value.clone() for key, value in one.state_dict().items()}
    expected = one.batch(5)
    other = Simulator(SYSTEM, SimulationConfig(), seed=1, split="val")
    other.load_state_dict(state)
    assert equal(other.batch(5), expected)
    assert not equal(one.batch(5), expected)


def test_streams_of_seeds_and_splits_share_no_scene():
    # Seeds 123 apart, as where a validation set was once seeded with seed + 123.
    seeds, splits = (0, 1, 123, 124, 246), ("train", "val", "test", "0", "1", 0, 1, 123)
    seen: dict[tuple[float, ...], tuple[int, str | int]] = {}
    tiny = SystemConfig(n_h=2, n_v=2, antennas=2, snapshots=2, max_sources=2)
    for seed, split in itertools.product(seeds, splits):
        simulator = Simulator(tiny, SimulationConfig(), seed=seed, split=split)
        for _ in range(3):
            scenes = simulator.batch(16)
            for k in range(16):
                key = (*scenes.phi[k].tolist(), *scenes.r[k].tolist(), scenes.snr_db[k].item())
                assert key not in seen, f"{(seed, split)} repeats a scene of {seen[key]}"
                seen[key] = (seed, split)
                field = (scenes.y[k, 0, 0].real.item(), scenes.h[k, 0, 0].real.item())
                assert field not in seen
                seen[field] = (seed, split)
    assert len(seen) == 2 * len(seeds) * len(splits) * 48


def test_source_parameters_do_not_depend_on_the_field_stream():
    plain = simulate(16)
    other = simulate(16, codes="dft", rician_kappa=0.0, symbols="static", phase_error=0.1)
    for name in ("phi", "theta", "r", "power", "num_sources", "snr_db"):
        assert torch.equal(getattr(plain, name), getattr(other, name))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_true_covariance(dtype):
    scenes = simulate(64, min_separation=1.5)
    r = true_covariance(SYSTEM, scenes, dtype=dtype)
    assert r.dtype == dtype and torch.equal(r, r.mH)
    assert bool((r.diagonal(dim1=-2, dim2=-1).imag == 0).all())
    trace = r.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    torch.testing.assert_close(trace, torch.full_like(trace, 144.0), rtol=1e-6, atol=0)
    values = torch.linalg.eigvalsh(true_covariance(SYSTEM, scenes, dtype=torch.complex128))
    rank = (values > 1e-9 * 144).sum(-1)
    assert torch.equal(rank, scenes.num_sources)
    a = true_steering(SYSTEM, scenes, dtype=torch.complex128)
    expected = torch.einsum("bnk,bk,bmk->bnm", a, scenes.power.double(), a.conj())
    torch.testing.assert_close(r.to(torch.complex128), 144 * expected, atol=2e-5, rtol=0)
    steering = true_steering(SYSTEM, scenes, dtype=dtype)
    assert torch.equal(true_covariance(SYSTEM, scenes, steering=steering), r)
    factor = true_factor(SYSTEM, scenes, steering)
    assert factor.dtype == dtype and factor.shape == (64, 144, SYSTEM.max_sources)
    assert not factor[~scenes.mask[:, None].expand_as(factor)].any()
    torch.testing.assert_close(factor @ factor.mH, r, atol=1e-5, rtol=0)


def test_tapered_true_covariance_has_trace_n():
    system = dataclasses.replace(SYSTEM, taper=True)
    r = true_covariance(system, simulate(8, system=system))
    trace = r.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    torch.testing.assert_close(trace, torch.full((8,), 144.0), rtol=1e-6, atol=0)


def test_scenes_indexing_and_concatenation():
    scenes = simulate(10)
    assert len(scenes) == 10
    assert len(scenes[3]) == 1 and torch.equal(scenes[3].y[0], scenes.y[3])
    assert torch.equal(scenes[-1].r[0], scenes.r[9])
    assert torch.equal(scenes[2:5].codes, scenes.codes[2:5])
    order = torch.tensor([7, 1, 1])
    assert torch.equal(scenes.index_select(order).h, scenes.h[order])
    assert equal(scenes[[7, 1, 1]], scenes.index_select(order))
    assert len(scenes[scenes.num_sources == scenes.num_sources[0]]) >= 1
    assert equal(Scenes.concat([scenes[:4], scenes[4:]]), scenes)
    assert equal(scenes.to("cpu"), scenes)
    assert len(list(scenes)) == 10
    with pytest.raises(IndexError, match="scene 10 of a batch of 10"):
        scenes[10]
    with pytest.raises(ValueError, match="no batches"):
        Scenes.concat([])
    with pytest.raises(
        ValueError, match=r"codes has shape \(9, 16, 144\), expected \(10, 16, 144\)"
    ):
        dataclasses.replace(scenes, codes=scenes.codes[:9])
    with pytest.raises(ValueError, match=r"y has shape .* expected rank 3"):
        dataclasses.replace(scenes, y=scenes.y[0])


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="min_sources is 6, expected at most max_sources = 5"):
        simulate(1, min_sources=6)
    with pytest.raises(ConfigError, match="seed is -1"):
        simulate(1, seed=-1)
    with pytest.raises(ConfigError, match="split is -2"):
        simulate(1, split=-2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        simulate(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_scenes_have_the_same_sources():
    config = SimulationConfig(amplitude_jitter=0.1, element_dropout=0.1)
    host = Simulator(SYSTEM, config, seed=3, split="train").batch(64)
    device = Simulator(SYSTEM, config, device="cuda", seed=3, split="train").batch(64)
    for name in ("phi", "theta", "r", "power", "num_sources", "snr_db"):
        assert torch.equal(getattr(host, name), getattr(device, name).cpu())
    assert device.y.is_cuda and bool(torch.isfinite(torch.view_as_real(device.y)).all())
