# SPDX-License-Identifier: Apache-2.0
"""Code books: modulus, quantisation, orthogonality and impairments, as scenes see them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ris_pytorch_pipeline.configs import SimulationConfig, SystemConfig
from ris_pytorch_pipeline.simulate import Scenes, Simulator

SYSTEM = SystemConfig()


def draw(batch: int, *, system: SystemConfig = SYSTEM, **simulation) -> Scenes:
    return Simulator(system, SimulationConfig(**simulation), seed=0, split="train").batch(batch)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["random", "dft", "hadamard"]),
    st.integers(0, 5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 20),
)
def test_codes_have_unit_modulus_and_quantised_phases(codes, bits, n_h, n_v, snapshots):
    system = SystemConfig(n_h=n_h, n_v=n_v, snapshots=snapshots, antennas=2, max_sources=1)
    scenes = draw(6, system=system, codes=codes, phase_bits=bits)
    torch.testing.assert_close(
        scenes.codes.abs(), torch.ones(6, snapshots, n_h * n_v), atol=1e-6, rtol=0
    )
    if codes == "hadamard":
        assert set(scenes.codes.real.round().unique().tolist()) <= {-1.0, 1.0}
        assert scenes.codes.imag.abs().max() < 1e-6
    if bits:
        level = scenes.codes.angle().double() * 2**bits / (2 * math.pi)
        assert (level - level.round()).abs().max() < 1e-4


def test_random_codes_use_every_level_and_continuous_ones_do_not_repeat():
    codes = draw(8, phase_bits=3).codes
    level = (codes.angle() * 8 / (2 * math.pi)).round().long() % 8
    counts = level.flatten().bincount(minlength=8) / level.numel()
    torch.testing.assert_close(counts, torch.full((8,), 1 / 8), atol=0.02, rtol=0)
    assert draw(1, phase_bits=0).codes.angle().unique().numel() > 2000


@pytest.mark.parametrize("codes,shape", [("dft", (12, 12)), ("dft", (5, 3)), ("hadamard", (4, 8))])
def test_orthogonal_code_books(codes, shape):
    system = SystemConfig(n_h=shape[0], n_v=shape[1], snapshots=12)
    c = draw(8, system=system, codes=codes, phase_bits=0).codes
    gram = c @ c.mH / system.elements
    torch.testing.assert_close(gram, torch.eye(12).to(gram).expand(8, 12, 12), atol=1e-5, rtol=0)


def test_truncated_hadamard_rows_are_distinct_and_repeat_when_used_up():
    system = SystemConfig(n_h=3, n_v=2, snapshots=20, max_sources=2)
    c = draw(4, system=system, codes="hadamard").codes.real
    for scene in c:
        assert len({tuple(row.tolist()) for row in scene[:8]}) == 8
        assert torch.equal(scene[8:16], scene[:8]) and torch.equal(scene[16:], scene[:4])


def test_dft_columns_are_those_of_the_two_dimensional_transform():
    system = SystemConfig(n_h=4, n_v=6, snapshots=24)
    codes = draw(2, system=system, codes="dft", phase_bits=0).codes
    spectrum = torch.fft.fft2(codes.view(2, 24, 6, 4)).abs() / 24
    assert torch.allclose(spectrum.flatten(2).amax(-1), torch.ones(2, 24), atol=1e-5)
    assert [len(set(row.tolist())) for row in spectrum.flatten(2).argmax(-1)] == [24, 24]


def test_impairments_have_their_documented_size():
    jitter = draw(64, amplitude_jitter=0.1).codes.abs()
    assert jitter.mean() == pytest.approx(1, abs=1e-3)
    assert jitter.std() == pytest.approx(0.1, rel=0.02)
    ideal = draw(64, phase_error=0.0).codes
    error = (draw(64, phase_error=0.2).codes * ideal.conj()).angle()
    assert error.std() == pytest.approx(0.2, rel=0.02)
    dead = draw(256, element_dropout=0.3).codes == 0
    assert torch.equal(dead, dead[:, :1].expand_as(dead))
    assert dead[:, 0].float().mean() == pytest.approx(0.3, abs=0.02)


def test_some_element_always_lives():
    system = SystemConfig(n_h=1, n_v=2, snapshots=3, max_sources=1)
    scenes = draw(200, system=system, element_dropout=0.9)
    assert bool((scenes.codes.abs().amax(-1) > 0.5).all())
    assert all(bool(torch.isfinite(value).all()) for _, value in scenes.tensors())
    assert bool((scenes.y.abs().amax((1, 2)) > 0).all())


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(12, 12), (16, 4), (5, 3)])
def test_quantised_dft_takes_the_nearest_level(bits, shape):
    system = SystemConfig(n_h=shape[0], n_v=shape[1])
    exact = draw(8, system=system, codes="dft", phase_bits=0).codes
    rounded = draw(8, system=system, codes="dft", phase_bits=bits).codes
    error = (rounded * exact.conj()).angle().abs()
    assert error.max() <= math.pi / 2**bits + 1e-5
    assert error.mean() < 0.6 * math.pi / 2**bits
