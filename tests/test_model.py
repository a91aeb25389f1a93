# SPDX-License-Identifier: Apache-2.0
"""The network, and the one pass from scenes to R_blend."""

import dataclasses
import math

import pytest
import torch

import ris_pytorch_pipeline.simulate as simulate
from ris_pytorch_pipeline.configs import (
    ConfigError,
    CovarianceConfig,
    ModelConfig,
    SimulationConfig,
    SystemConfig,
)
from ris_pytorch_pipeline.covariance import effective_covariance
from ris_pytorch_pipeline.model import LocalizationNet, infer
from ris_pytorch_pipeline.simulate import Simulator

MODEL = ModelConfig(channels=8, conv_blocks=1, width=32, heads=2, layers=1, map_ranges=3)
SYSTEM = SystemConfig(n_h=6, n_v=5, antennas=6, snapshots=5, max_sources=3)
SYSTEMS = [
    SystemConfig(),
    SYSTEM,
    SystemConfig(n_h=3, n_v=7, antennas=1, snapshots=1, max_sources=1),
    SystemConfig(n_h=5, n_v=1, antennas=2, snapshots=3, max_sources=5),
    SystemConfig(n_h=8, n_v=8, antennas=20, snapshots=4, max_sources=7, taper=True),
]


def make_net(system=SYSTEM, covariance=None, seed=0):
    torch.manual_seed(seed)
    return LocalizationNet(system, MODEL, covariance or CovarianceConfig())


def make_scenes(system=SYSTEM, batch=6, seed=0, **options):
    simulation = SimulationConfig(min_separation=0.1, **options)
    return Simulator(system, simulation, seed=seed, split="test").batch(batch)


def covariances(inference):
    return inference.r_pred, inference.r_samp, inference.r_blend


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: f"{s.n_h}x{s.n_v}")
def test_outputs_for_any_system(system):
    scenes = make_scenes(system)
    inference = infer(make_net(system), scenes)
    prediction = inference.prediction
    r_pred, r_samp, r_blend = covariances(inference)
    n, slots = system.elements, system.max_sources
    assert prediction.factor.shape == (6, n, slots) and prediction.factor.dtype == torch.complex64
    assert prediction.snapshots.shape == (6, system.snapshots, n)
    for value, low, high in (
        (prediction.phi, -system.phi_max, system.phi_max),
        (prediction.theta, -system.theta_max, system.theta_max),
        (prediction.r, system.r_min, system.r_max),
    ):
        assert value.shape == (6, slots)
        assert (value >= low - 1e-6).all() and (value <= high + 1e-6).all()
    assert prediction.existence.shape == (6, slots)
    assert r_pred.shape == r_samp.shape == r_blend.shape == (6, n, n)
    trace = torch.einsum("bii->b", r_pred).real
    torch.testing.assert_close(trace, torch.full((6,), float(n)))
    singular = torch.linalg.svdvals(prediction.factor.to(torch.complex128))
    assert (singular[:, -1] > 1e-4 * singular[:, 0]).all()


def test_positions_stay_in_the_field_of_view_at_any_output():
    net = make_net()
    for value in (1e4, -1e4):
        torch.nn.init.constant_(net.position.bias, value)
        prediction = infer(net, make_scenes()).prediction
        assert (prediction.r >= SYSTEM.r_min).all() and (prediction.r <= SYSTEM.r_max).all()
        assert (prediction.phi.abs() <= SYSTEM.phi_max * (1 + 1e-6)).all()
        assert (prediction.theta.abs() <= SYSTEM.theta_max * (1 + 1e-6)).all()
        assert torch.isfinite(torch.view_as_real(prediction.factor)).all()


def test_training_and_inference_give_the_same_blend_bitwise():
    system = SystemConfig()
    net, scenes = make_net(system), make_scenes(system, 5)
    trained = infer(net.train(), scenes)
    assert trained.r_blend.requires_grad
    net.eval()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            inferred = infer(net, scenes, CovarianceConfig())
        for one, other in zip(covariances(trained), covariances(inferred), strict=True):
            assert torch.equal(one.detach(), other)
    assert torch.equal(
        trained.r_blend, effective_covariance(trained.r_pred, trained.r_samp, net.covariance)
    )


def test_another_covariance_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"beta=0\.5.*beta=0\.3"):
        infer(make_net(), make_scenes(), CovarianceConfig(beta=0.5))


def test_the_truth_cannot_reach_the_covariance_or_the_prediction(monkeypatch):
    net, scenes = make_net().eval(), make_scenes()
    expected = infer(net, scenes)

    def refuse(*args, **kwargs):
        raise AssertionError("R_true was asked for")

    for name in ("true_covariance", "true_factor", "true_steering"):
        monkeypatch.setattr(simulate, name, refuse)
    moved = dataclasses.replace(
        scenes,
        power=torch.rand_like(scenes.power),
        phi=scenes.phi.flip(0) + 0.1,
        theta=-scenes.theta,
        r=scenes.r * 0.5,
        num_sources=scenes.num_sources.flip(0),
    )
    actual = infer(net, moved)
    for one, other in zip(covariances(actual), covariances(expected), strict=True):
        assert torch.equal(one, other)
    assert all(map(torch.equal, actual.factors, expected.factors))
    for field in dataclasses.fields(actual.prediction):
        one, other = (getattr(x.prediction, field.name) for x in (actual, expected))
        assert torch.equal(one, other), field.name


def test_every_input_matters():
    net, scenes = make_net().eval(), make_scenes()
    base = net(scenes)
    for name, value in (
        ("y", scenes.y.flip(0)),
        ("h", scenes.h.flip(0)),
        ("codes", scenes.codes.flip(0)),
        ("snr_db", scenes.snr_db + 10),
    ):
        changed = net(dataclasses.replace(scenes, **{name: value}))
        assert not torch.allclose(changed.existence, base.existence), name


def test_snapshots_have_no_order():
    net, scenes = make_net().eval(), make_scenes()
    order = torch.randperm(SYSTEM.snapshots)
    shuffled = dataclasses.replace(scenes, y=scenes.y[:, order], codes=scenes.codes[:, order])
    one, other = net(scenes), net(shuffled)
    torch.testing.assert_close(one.existence, other.existence, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(one.factor, other.factor, rtol=1e-3, atol=1e-3)


def test_scale_of_the_measurement_does_not_matter():
    net, scenes = make_net().eval(), make_scenes()
    one, other = net(scenes), net(dataclasses.replace(scenes, y=scenes.y * 1e-4))
    torch.testing.assert_close(one.existence, other.existence, rtol=1e-3, atol=1e-4)


def test_slots_start_at_the_peaks_of_the_power_map():
    system = SystemConfig()
    scenes = Simulator(
        system, SimulationConfig(snr_db_min=30, snr_db_max=30), seed=4, split="test"
    ).batch(64)
    scenes = scenes[scenes.num_sources == 1]
    prediction = make_net(system)(scenes)
    distance = (prediction.phi - scenes.phi[:, :1]).abs() + (
        prediction.theta - scenes.theta[:, :1]
    ).abs()
    # One map cell is 5 degrees in azimuth and in elevation.
    assert (distance.min(1).values < math.radians(15)).float().mean() > 0.8


def test_a_non_finite_scene_leaves_the_others():
    net, scenes = make_net().eval(), make_scenes()
    expected = infer(net, scenes)
    y = scenes.y.clone()
    y[2, 1, 0] = math.inf
    actual = infer(net, dataclasses.replace(scenes, y=y))
    others = torch.arange(6) != 2
    torch.testing.assert_close(
        actual.r_blend[others], expected.r_blend[others], rtol=1e-4, atol=1e-5
    )
    assert not torch.isfinite(torch.view_as_real(actual.r_blend[2])).all()


def test_parameter_groups_hold_every_parameter_once():
    net = make_net()
    groups = net.parameter_groups()
    assert set(groups) == {"backbone", "head"}
    held = [id(p) for group in groups.values() for p in group]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    scenes = make_scenes()
    inference = infer(net, scenes)
    prediction, r_blend = inference.prediction, inference.r_blend
    (r_blend.abs().sum() + prediction.existence.sum() + prediction.r.log().sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_every_size_of_the_model_configuration_is_used():
    base = sum(p.numel() for p in make_net().parameters())
    for name in ("channels", "conv_blocks", "width", "layers", "map_ranges"):
        larger = dataclasses.replace(MODEL, **{name: 2 * getattr(MODEL, name)})
        net = LocalizationNet(SYSTEM, larger, CovarianceConfig())
        assert sum(p.numel() for p in net.parameters()) > base, name
    scenes = make_scenes()
    dropped = LocalizationNet(SYSTEM, dataclasses.replace(MODEL, dropout=0.5), CovarianceConfig())
    assert not torch.equal(dropped(scenes).existence, dropped(scenes).existence)
    dropped.eval()
    assert torch.equal(dropped(scenes).existence, dropped(scenes).existence)
    four = LocalizationNet(SYSTEM, dataclasses.replace(MODEL, heads=4), CovarianceConfig())
    four.load_state_dict(make_net().state_dict())
    assert not torch.allclose(four(scenes).existence, make_net()(scenes).existence)


def test_mixed_precision_stays_inside_the_network():
    net, scenes = make_net().eval(), make_scenes()
    full = infer(net, scenes)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = infer(net, scenes)
    assert mixed.r_blend.dtype == torch.complex64
    assert torch.equal(mixed.r_samp, full.r_samp)
    for name in ("phi", "theta", "r", "existence"):
        value = getattr(mixed.prediction, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, getattr(full.prediction, name), rtol=0.05, atol=0.05)
