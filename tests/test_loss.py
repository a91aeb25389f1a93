# SPDX-License-Identifier: Apache-2.0
"""Loss terms against dense or brute-force counterparts."""

import dataclasses
import itertools
import math

import pytest
import torch

import riskernels
from ris_pytorch_pipeline import loss as loss_module
from ris_pytorch_pipeline.assignment import assign_slots
from ris_pytorch_pipeline.configs import (
    ConfigError,
    CovarianceConfig,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    SimulationConfig,
    SystemConfig,
)
from ris_pytorch_pipeline.covariance import (
    back_projected_snapshots,
    blend_factor,
    effective_covariance,
    predicted_covariance,
)
from ris_pytorch_pipeline.inference import Inference
from ris_pytorch_pipeline.loss import (
    TERMS,
    LocalizationLoss,
    angle_error,
    eigengap_hinge,
    margin_hinge,
)
from ris_pytorch_pipeline.model import LocalizationNet, Prediction, infer
from ris_pytorch_pipeline.simulate import Simulator, true_steering

SYSTEM = SystemConfig(n_h=5, n_v=3, antennas=4, snapshots=4, max_sources=3)
COVARIANCE = CovarianceConfig(loading=0.05, shrinkage=0.1)
MODEL = ModelConfig(channels=8, conv_blocks=1, width=32, heads=2, layers=1)


@pytest.fixture(scope="module")
def scenes():
    return Simulator(SYSTEM, SimulationConfig(), seed=3, split="test").batch(9)


@pytest.fixture(scope="module")
def inference(scenes):
    torch.manual_seed(0)
    return infer(LocalizationNet(SYSTEM, MODEL, COVARIANCE), scenes)


def perfect(scenes, existence=30.0):
    """A prediction that knows everything, with its slots reversed."""
    order = list(reversed(range(SYSTEM.max_sources)))
    steering = true_steering(SYSTEM, scenes)
    energy = (scenes.power * SYSTEM.elements).sqrt()
    logits = torch.where(scenes.mask, existence, -existence)
    snapshots = back_projected_snapshots(scenes, COVARIANCE)
    prediction = Prediction(
        (steering * energy[:, None])[..., order],
        scenes.phi[:, order],
        scenes.theta[:, order],
        scenes.r[:, order],
        logits[:, order],
        snapshots,
    )
    return Inference(prediction, scenes, COVARIANCE)


def test_leakage_of_the_true_subspace_is_zero(scenes):
    truth = perfect(scenes)
    leaked = riskernels.subspace_leakage(
        truth.r_pred, true_steering(SYSTEM, scenes), scenes.num_sources, 1e-7
    )
    assert leaked.max() < 1e-4


def test_eigengap_sees_the_eigenvalues_of_the_dense_blend(scenes):
    generator = torch.Generator().manual_seed(8)
    factor = torch.randn(9, 15, 3, dtype=torch.complex128, generator=generator, requires_grad=True)
    snapshots = torch.randn(9, 4, 15, dtype=torch.complex128, generator=generator)
    r_samp = snapshots.mT @ snapshots.conj() / 4
    blend = effective_covariance(predicted_covariance(factor), r_samp, COVARIANCE)
    values = torch.linalg.eigvalsh(blend).flip(1)
    index = scenes.num_sources[:, None]
    expected = torch.relu(values.gather(1, index) / values.gather(1, index - 1) - 0.1)[:, 0]
    assert expected.count_nonzero() >= 5
    spectrum = riskernels.factored_spectrum(*blend_factor(factor, snapshots, COVARIANCE))
    actual = eigengap_hinge(spectrum, scenes.num_sources, 0.1)
    torch.testing.assert_close(actual, expected)
    gradients = [
        torch.autograd.grad(v.sum(), factor, retain_graph=True) for v in (actual, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_margin_sees_the_eigenvalues_of_r_pred(scenes):
    generator = torch.Generator().manual_seed(9)
    columns = torch.tensor([1.0, 0.15, 0.05], dtype=torch.float64)
    factor = torch.randn(9, 15, 3, dtype=torch.complex128, generator=generator) * columns
    factor.requires_grad_()
    values = torch.linalg.eigvalsh(factor @ factor.mH).flip(1)
    share = values / values.sum(1, keepdim=True)
    counted = scenes.mask
    expected = (torch.relu(1 - share[:, :3] / 0.05) * counted).sum(1) / scenes.num_sources
    assert expected.count_nonzero() >= 3
    actual = margin_hinge(riskernels.factored_spectrum(factor), scenes.num_sources, 0.05)
    torch.testing.assert_close(actual, expected)
    gradients = [
        torch.autograd.grad(v.sum(), factor, retain_graph=True) for v in (actual, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_equal_eigenvalues_have_finite_gradients():
    factor = torch.eye(15, 3, dtype=torch.complex64)[None].repeat(2, 1, 1).requires_grad_()
    count = torch.tensor([2, 3])
    margin_hinge(riskernels.factored_spectrum(factor), count, 0.9).sum().backward()
    assert torch.isfinite(factor.grad).all()


@pytest.mark.parametrize("slots", [1, 2, 5, 7])
def test_assignment_is_optimal(slots):
    generator = torch.Generator().manual_seed(slots)
    cost = torch.randn(4, slots, slots, generator=generator)
    mask = torch.arange(slots) < torch.randint(1, slots + 1, (4, 1), generator=generator)
    chosen = assign_slots(cost, mask)
    assert torch.equal(chosen.sort(1).values, torch.arange(slots).expand(4, -1))
    for matrix, real, slot in zip(cost, mask, chosen, strict=True):
        sources = real.nonzero()[:, 0]
        best = min(
            float(matrix[list(p), sources].sum())
            for p in itertools.permutations(range(slots), len(sources))
        )
        assert float(matrix[slot[sources], sources].sum()) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("slots", [3, 7])
def test_assignment_of_a_non_finite_scene_leaves_the_others(slots):
    cost = torch.rand(3, slots, slots)
    mask = torch.ones(3, slots, dtype=torch.bool)
    expected = assign_slots(cost, mask)
    cost[1] = math.nan
    actual = assign_slots(cost, mask)
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])
    with pytest.raises(ValueError, match="assign_slots"):
        assign_slots(cost, mask[:, :-1])


def test_a_perfect_prediction_costs_nothing(scenes):
    terms = LocalizationLoss(SYSTEM, LossConfig(), COVARIANCE)(perfect(scenes), scenes)
    for name in ("nmse_pred", "angle", "range_log", "existence"):
        assert terms[name] < 1e-9, name
    assert terms["nmse_blend"] > 1e-3


def test_sources_at_equal_angles_are_told_apart_by_range(scenes):
    scenes = dataclasses.replace(
        scenes,
        phi=torch.full_like(scenes.phi, 0.3),
        theta=torch.full_like(scenes.theta, -0.1),
        r=torch.tensor([1.0, 2.5, 6.0]).expand(len(scenes), -1),
        num_sources=torch.full_like(scenes.num_sources, 2),
    )
    terms = LocalizationLoss(SYSTEM, LossConfig(), COVARIANCE)(perfect(scenes), scenes)
    for name in ("angle", "range_log", "existence"):
        assert terms[name] < 1e-9, name


def test_the_default_margin_acts_on_a_vanishing_column():
    config = ExperimentConfig()
    simulation = dataclasses.replace(config.simulation, min_sources=config.system.max_sources)
    scenes = Simulator(config.system, simulation, seed=4, split="test").batch(4)
    torch.manual_seed(0)
    net = LocalizationNet(config.system, config.model, config.covariance)
    loss = LocalizationLoss(config.system, config.loss, config.covariance)
    assert loss(infer(net, scenes), scenes)["margin"] == 0
    vanishing = torch.tensor([0.0, 0.0, 0.0, 0.0, -6.0])[:, None]
    net.power.register_forward_hook(lambda module, inputs, logits: logits + vanishing)
    before = loss(infer(net, scenes), scenes)["margin"]
    assert before > 0
    (gradient,) = torch.autograd.grad(before, net.power.weight)
    assert torch.isfinite(gradient).all() and gradient.norm() > 1e-4
    with torch.no_grad():
        net.power.weight -= 0.5 * gradient / gradient.norm()
        assert loss(infer(net, scenes), scenes)["margin"] < before


def test_slots_have_no_order(scenes, inference):
    prediction = inference.prediction
    order = torch.tensor([2, 0, 1])
    moved = dataclasses.replace(
        prediction,
        factor=prediction.factor[..., order],
        **{k: getattr(prediction, k)[:, order] for k in ("phi", "theta", "r", "existence")},
    )
    loss = LocalizationLoss(SYSTEM, LossConfig(eigengap_ratio=0.01, margin_floor=0.3), COVARIANCE)
    first = loss(inference, scenes)
    second = loss(dataclasses.replace(inference, prediction=moved), scenes)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)


def test_angles_wrap():
    error = angle_error(torch.tensor(math.pi - 0.01), torch.tensor(-math.pi + 0.01))
    torch.testing.assert_close(error, angle_error(torch.tensor(0.02), torch.tensor(0.0)))


def test_the_total_is_the_weighted_sum_and_every_weight_counts(scenes, inference):
    config = LossConfig(eigengap_ratio=0.01, margin_floor=0.3)
    terms = LocalizationLoss(SYSTEM, config, COVARIANCE)(inference, scenes)
    assert set(terms) == {*TERMS, "total"}
    expected = sum(getattr(config, name) * terms[name] for name in TERMS)
    torch.testing.assert_close(terms["total"], expected)
    for name in TERMS:
        assert terms[name] > 0, name
        alone = LossConfig(**{**dict.fromkeys(TERMS, 0.0), name: 2.0, "margin_floor": 0.3})
        alone = dataclasses.replace(alone, eigengap_ratio=0.01)
        single = LocalizationLoss(SYSTEM, alone, COVARIANCE)(inference, scenes)
        assert set(single) == {name, "total"}
        if name not in ("angle", "range_log", "existence"):  # the assignment follows the weights
            torch.testing.assert_close(single[name], terms[name])


def test_a_term_of_weight_zero_is_not_computed(scenes, inference, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    for name in ("eigengap_hinge", "margin_hinge", "assign_slots"):
        monkeypatch.setattr(loss_module, name, refuse)
    for name in ("subspace_leakage", "factored_leakage", "factored_spectrum"):
        monkeypatch.setattr(riskernels, name, refuse)
    config = LossConfig(**{name: 0.0 for name in TERMS if not name.startswith("nmse")})
    assert set(LocalizationLoss(SYSTEM, config, COVARIANCE)(inference, scenes)) == {
        "nmse_blend", "nmse_pred", "total",
    }  # fmt: skip
    monkeypatch.setattr(loss_module, "true_steering", refuse)
    with pytest.raises(AssertionError):
        LocalizationLoss(SYSTEM, config, COVARIANCE)(inference, scenes)
    positions = LossConfig(**{**dict.fromkeys(TERMS, 0.0), "existence": 1.0})
    monkeypatch.undo()
    monkeypatch.setattr(loss_module, "true_steering", refuse)
    LocalizationLoss(SYSTEM, positions, COVARIANCE)(inference, scenes)


def test_all_weights_zero_is_refused():
    with pytest.raises(ConfigError, match="at least one term"):
        LossConfig(**dict.fromkeys(TERMS, 0.0))


def test_target_trace_does_not_change_the_nmse(scenes, inference):
    scaled = CovarianceConfig(**{**dataclasses.asdict(COVARIANCE), "target_trace": 40.0})
    first = LocalizationLoss(SYSTEM, LossConfig(), COVARIANCE)(inference, scenes)
    second = LocalizationLoss(SYSTEM, LossConfig(), scaled)(
        dataclasses.replace(inference, config=scaled), scenes
    )
    torch.testing.assert_close(second["nmse_blend"], first["nmse_blend"])


def test_losses_ignore_autocast(scenes, inference):
    loss = LocalizationLoss(SYSTEM, LossConfig(), COVARIANCE)
    expected = loss(inference, scenes)
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(inference, scenes)
    for name, value in expected.items():
        assert actual[name].dtype == torch.float32
        assert torch.equal(actual[name], value)


def test_a_non_finite_scene_stays_in_its_own_terms(scenes, inference):
    loss = LocalizationLoss(SYSTEM, LossConfig(), COVARIANCE)
    expected = loss.per_scene(inference, scenes)
    y = scenes.y.clone()
    y[4, 0, 0] = math.nan
    broken_scenes = dataclasses.replace(scenes, y=y)
    torch.manual_seed(0)
    broken = infer(LocalizationNet(SYSTEM, MODEL, COVARIANCE), broken_scenes)
    terms = loss.per_scene(broken, broken_scenes)
    others = torch.arange(9) != 4
    assert not torch.isfinite(sum(terms.values())[4])
    for name, value in terms.items():
        torch.testing.assert_close(value[others], expected[name][others], rtol=1e-4, atol=1e-5)
