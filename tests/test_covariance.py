# SPDX-License-Identifier: Apache-2.0
"""The one path to R_blend."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

import riskernels
from ris_pytorch_pipeline.configs import CovarianceConfig, SimulationConfig, SystemConfig
from ris_pytorch_pipeline.covariance import (
    back_projected_snapshots,
    blend_factor,
    effective_covariance,
    predicted_covariance,
    require_channel,
    sample_covariance,
)
from ris_pytorch_pipeline.simulate import Simulator, true_covariance

SYSTEM = SystemConfig(n_h=4, n_v=3, antennas=5, snapshots=6, max_sources=3)


@pytest.fixture(scope="module")
def scenes():
    return Simulator(SYSTEM, SimulationConfig(), seed=11, split="test").batch(7)


def random_factor(batch=7, columns=3, dtype=torch.complex128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SYSTEM.elements, columns, dtype=dtype, generator=generator)


def trace_of(covariance):
    return torch.einsum("bii->b", covariance).real


def normalised(covariance):
    return covariance * (covariance.shape[-1] / trace_of(covariance))[:, None, None]


def literal_blend(r_pred, r_samp, config):
    """DESIGN.md 4.3, one sentence part at a time."""
    n = r_pred.shape[-1]
    eye = torch.eye(n, dtype=r_pred.dtype)

    def trace(r):
        return trace_of(r)[:, None, None]

    pred, samp = ((r + r.mH) / 2 for r in (r_pred, r_samp))
    blend = (1 - config.beta) * pred * n / trace(pred) + config.beta * samp * n / trace(samp)
    blend = blend + config.loading * trace(blend) / n * eye
    blend = (1 - config.shrinkage) * blend + config.shrinkage * trace(blend) / n * eye
    blend = (blend + blend.mH) / 2
    return blend * (config.target_trace or n) / trace(blend)


CONFIGS = [
    CovarianceConfig(beta=beta, loading=loading, shrinkage=shrinkage, target_trace=target)
    for beta, loading, shrinkage, target in itertools.product(
        (0.0, 0.3, 1.0), (0.0, 0.2), (0.0, 0.4, 1.0), (None, 3.5)
    )
]


@pytest.mark.parametrize("config", CONFIGS)
def test_blend_is_the_literal_chain(config):
    r_pred = predicted_covariance(random_factor(seed=1)) * 3.7
    r_samp = predicted_covariance(random_factor(seed=2, columns=5)) * 0.01
    # A non-Hermitian rounding error must not survive.
    r_pred = r_pred + 1e-3 * random_factor(columns=SYSTEM.elements, seed=3)
    blend = effective_covariance(r_pred, r_samp, config)
    torch.testing.assert_close(blend, literal_blend(r_pred, r_samp, config), rtol=1e-12, atol=1e-13)
    assert torch.equal(blend, blend.mH)
    trace = torch.full((7,), config.target_trace or SYSTEM.elements, dtype=torch.float64)
    torch.testing.assert_close(trace_of(blend), trace)


@pytest.mark.parametrize("config", CONFIGS)
def test_factored_blend_is_the_dense_blend(config, scenes):
    factor = random_factor(dtype=torch.complex64)
    dense = effective_covariance(
        predicted_covariance(factor), sample_covariance(scenes, config), config
    )
    combined, rho = blend_factor(factor, back_projected_snapshots(scenes, config), config)
    rebuilt = combined @ combined.mH + rho[:, None, None] * torch.eye(SYSTEM.elements)
    torch.testing.assert_close(rebuilt, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradient_reaches_the_prediction_and_not_the_sample(beta):
    config = CovarianceConfig(beta=beta, loading=0.1, shrinkage=0.2)
    r_samp = predicted_covariance(random_factor(2, 4, seed=5)).requires_grad_()
    factor = random_factor(2, 2, seed=4).requires_grad_()
    weight = random_factor(2, SYSTEM.elements, seed=7)

    def blend(a):
        return (effective_covariance(predicted_covariance(a), r_samp, config) * weight).real.sum()

    assert torch.autograd.gradcheck(blend, (factor,), fast_mode=True)
    blend(factor).backward()
    assert r_samp.grad is None and torch.isfinite(factor.grad).all()
    factored, rho = blend_factor(factor, random_factor(2, 4, seed=6).mT, config)
    gradient = torch.autograd.grad(factored.abs().square().sum() + rho.sum(), factor)[0]
    assert torch.isfinite(gradient).all()


def test_normalised_truth_passes_through(scenes):
    truth = true_covariance(SYSTEM, scenes)
    other = sample_covariance(scenes, CovarianceConfig())
    through = effective_covariance(truth, other, CovarianceConfig(beta=0.0))
    assert riskernels.hermitian_nmse(through, truth).max() < 1e-12


def test_beta_is_the_energy_fraction_of_the_sample(scenes):
    config = CovarianceConfig(beta=0.25)
    zero_pred = torch.zeros(7, SYSTEM.elements, SYSTEM.elements, dtype=torch.complex64)
    samp = sample_covariance(scenes, config) * 1e4
    # With nothing predicted, what is left of the blend is the sample, scaled to the whole trace.
    blend = effective_covariance(zero_pred, samp * 1e-30, config)
    torch.testing.assert_close(blend, normalised(samp))
    pred = normalised(predicted_covariance(random_factor(dtype=torch.complex64)))
    blend = effective_covariance(pred, samp, config)
    torch.testing.assert_close(blend, 0.75 * pred + 0.25 * normalised(samp))


def test_two_zero_covariances_stay_finite():
    zero = torch.zeros(2, 3, 3, dtype=torch.complex64)
    assert torch.equal(effective_covariance(zero, zero, CovarianceConfig()), zero)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_sample_covariance_is_the_snapshots_covariance(scenes, center, relative):
    config = CovarianceConfig(center=center, relative=relative, alpha=0.02)
    snapshots = back_projected_snapshots(scenes, config)
    expected = torch.einsum("bln,blm->bnm", snapshots, snapshots.conj()) / SYSTEM.snapshots
    torch.testing.assert_close(sample_covariance(scenes, config), expected, rtol=1e-4, atol=1e-6)


def test_covariance_options_reach_the_operator(scenes):
    variants = [CovarianceConfig(alpha=1e-2), CovarianceConfig(relative=True)]
    variants.append(CovarianceConfig(center=True))
    base = sample_covariance(scenes, CovarianceConfig())
    for config in variants:
        assert not torch.allclose(sample_covariance(scenes, config), base, rtol=1e-4)


@pytest.mark.parametrize("missing", ["y", "h", "codes"])
def test_a_missing_channel_is_an_error(scenes, missing):
    fields = {f.name: getattr(scenes, f.name) for f in dataclasses.fields(scenes)}
    fields[missing] = None
    broken = SimpleNamespace(**fields)
    for make in (sample_covariance, back_projected_snapshots):
        with pytest.raises(ValueError, match=missing):
            make(broken, CovarianceConfig())


def test_wrong_shapes_are_named(scenes):
    fields = {f.name: getattr(scenes, f.name) for f in dataclasses.fields(scenes)}
    fields["h"] = scenes.h[:, :, :-1]
    with pytest.raises(ValueError, match=r"h \[7, 5, 11\]"):
        require_channel(SimpleNamespace(**fields))
    good = torch.eye(3, dtype=torch.complex64)[None]
    with pytest.raises(RuntimeError, match=r"samp.*\[1, 2, 2\]"):
        effective_covariance(good, good[:, :2, :2], CovarianceConfig())


def test_no_gradient_reaches_the_snapshots_of_the_factored_blend():
    factor = random_factor().requires_grad_()
    snapshots = random_factor(columns=SYSTEM.snapshots, seed=1).mT.detach().requires_grad_()
    config = CovarianceConfig(loading=0.1, shrinkage=0.2)
    combined, rho = blend_factor(factor, snapshots, config)
    weights = torch.rand(combined.shape, dtype=torch.float64)
    value = (weights * combined.abs().square()).sum() + rho.sum()
    to_factor, to_snapshots = torch.autograd.grad(value, (factor, snapshots), allow_unused=True)
    assert to_factor.abs().max() > 0 and to_snapshots is None
