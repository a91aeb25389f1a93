# SPDX-License-Identifier: Apache-2.0
"""The dense and the factored form of a training step are the same step."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_helpers import CPU, experiment, scenes_of

import riskernels
from ris_pytorch_pipeline.configs import (
    ConfigError,
    CovarianceConfig,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    SystemConfig,
    TrainConfig,
)
from ris_pytorch_pipeline.covariance import effective_covariance
from ris_pytorch_pipeline.inference import covariance_form
from ris_pytorch_pipeline.loss import TERMS, LocalizationLoss
from ris_pytorch_pipeline.model import infer
from ris_pytorch_pipeline.train import Trainer, fit, validate

FORMS = ("dense", "factored")
COVARIANCES = {
    "default": CovarianceConfig(),
    "loading": CovarianceConfig(loading=0.1),
    "shrinkage": CovarianceConfig(shrinkage=0.2, loading=0.05),
    "center": CovarianceConfig(center=True),
    "target_trace": CovarianceConfig(target_trace=7.5),
    "relative": CovarianceConfig(relative=True, alpha=1e-2),
    "no sample": CovarianceConfig(beta=0.0),
}
ACTIVE = LossConfig(eigengap_ratio=0.01, margin_floor=0.6)
"""Every hinge acts."""
TERM_TOLERANCE = 2e-5
"""Relative difference of a term. Both forms round complex64 inputs; the dense one also rounds the
N x N entries, and the leakage and eigenvalue ratios multiply that by their condition."""
GRADIENT_TOLERANCE = 2e-4
"""Difference of a parameter's gradient relative to its norm."""


def trainer_of(form, covariance=None, loss=ACTIVE, **train):
    config = dataclasses.replace(
        experiment(covariance=form, **train), covariance=covariance or CovarianceConfig(), loss=loss
    )
    torch.manual_seed(0)
    return Trainer(config, CPU)


def step_of(trainer, batches):
    """Terms and parameter gradients of one training step, as its guard sees them."""
    seen = {}
    guard = trainer.guard

    def capture(total):
        named = trainer.net.named_parameters()
        seen.update((name, p.grad.clone()) for name, p in named if p.grad is not None)
        return guard(total)

    capture.scaler = guard.scaler
    trainer.guard = capture
    # Dropout draws from the global stream.
    torch.manual_seed(1)
    _, terms = trainer.train_step(batches)
    trainer.guard = guard
    return terms, seen


@pytest.mark.parametrize("name", COVARIANCES)
def test_a_training_step_is_the_same_in_both_forms(name):
    steps = []
    for form in FORMS:
        trainer = trainer_of(form, COVARIANCES[name])
        assert trainer.loss.form == form
        steps.append(step_of(trainer, scenes_of(trainer, 8, 5)))
    (dense, dense_grad), (factored, factored_grad) = steps
    assert dense.keys() == factored.keys() == {*TERMS, "total"}
    for term, value in dense.items():
        assert value > 0, term
        torch.testing.assert_close(
            factored[term], value, rtol=TERM_TOLERANCE, atol=0, msg=lambda m, t=term: f"{t}: {m}"
        )
    assert dense_grad.keys() == factored_grad.keys() and len(dense_grad) > 40
    whole = torch.cat([g.flatten() for g in dense_grad.values()]).norm()
    for parameter, gradient in dense_grad.items():
        difference = (factored_grad[parameter] - gradient).norm()
        # A bias in front of a normalisation has a gradient of rounding errors alone.
        limit = GRADIENT_TOLERANCE * gradient.norm() + 1e-6 * whole
        assert difference <= limit, (parameter, float(difference), float(gradient.norm()))


@pytest.mark.parametrize("term", ["nmse_blend", "nmse_pred", "subspace", "eigengap", "margin"])
def test_each_term_alone_gives_the_same_gradient(term):
    loss = dataclasses.replace(ACTIVE, **{**dict.fromkeys(TERMS, 0.0), term: 1.0})
    gradients = []
    for form in FORMS:
        trainer = trainer_of(form, COVARIANCES["shrinkage"], loss)
        terms, seen = step_of(trainer, scenes_of(trainer, 6))
        assert set(terms) == {term, "total"}
        gradients.append(torch.cat([g.flatten() for g in seen.values()]))
    dense, factored = gradients
    assert dense.norm() > 0
    assert (factored - dense).norm() <= GRADIENT_TOLERANCE * dense.norm()


def test_fifty_steps_agree():
    losses = {}
    for form in FORMS:
        trainer = trainer_of(form, loss=LossConfig(), data=DataConfig(None, 50 * 8, 4), epochs=1)
        torch.manual_seed(2)
        trainer.net.train()
        batches = trainer.data.epoch()
        losses[form] = torch.tensor(
            [trainer.train_step([scenes])[0].loss for scenes in batches], dtype=torch.float64
        )
    dense, factored = losses["dense"], losses["factored"]
    assert len(dense) == 50 and dense[-10:].mean() < dense[:10].mean()
    assert not torch.equal(dense, factored)
    torch.testing.assert_close(factored, dense, rtol=1e-3, atol=0)


def test_validation_and_inference_do_not_depend_on_the_form():
    trainers = [trainer_of(form) for form in FORMS]
    batches = scenes_of(trainers[0], 6, 3)
    dense, factored = (validate(t.net, t.loss, batches) for t in trainers)
    for name, value in dense.items():
        assert factored[name] == pytest.approx(value, rel=TERM_TOLERANCE), name
    # The estimators' matrix is the one function's, whatever the training used.
    found = infer(trainers[1].net, batches[0])
    expected = effective_covariance(found.r_pred, found.r_samp, found.config)
    assert torch.equal(found.r_blend, expected)
    x, rho = found.factors
    rebuilt = x @ x.mH + rho[:, None, None] * torch.eye(x.shape[1])
    torch.testing.assert_close(rebuilt, found.r_blend, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_no_term(form):
    trainer = trainer_of(form, COVARIANCES["shrinkage"])
    (scenes,) = scenes_of(trainer, 6)
    net = trainer.net.eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = infer(net, scenes)
        mixed = trainer.loss(found, scenes)
    # The same prediction, with covariances that are made anew.
    expected = trainer.loss(dataclasses.replace(found), scenes)
    for name, value in expected.items():
        assert mixed[name].dtype == torch.float32 and torch.equal(mixed[name], value), name
    assert found.factors[0].dtype == torch.complex64 and found.r_blend.dtype == torch.complex64


def test_gradients_do_not_depend_on_who_asks_first():
    trainer = trainer_of("dense")
    (scenes,) = scenes_of(trainer, 4)
    found = infer(trainer.net.eval(), scenes)
    with torch.no_grad():
        assert found.r_blend is found.r_blend and len(found.factors) == 2
    assert found.r_blend.requires_grad and found.r_pred.requires_grad
    assert found.factors[0].requires_grad and not found.r_samp.requires_grad
    with torch.no_grad():
        quiet = infer(trainer.net, scenes)
    assert not quiet.r_blend.requires_grad and not quiet.factors[0].requires_grad


def test_a_factored_step_solves_for_the_snapshots_once(monkeypatch):
    calls = []
    for name in ("tikhonov_snapshots", "tikhonov_covariance", "true_steering"):
        module = riskernels if name.startswith("tikhonov") else "ris_pytorch_pipeline.loss"
        real = getattr(riskernels, name, None)
        if real is None:
            from ris_pytorch_pipeline.loss import true_steering as real

        def counted(*args, real=real, name=name, **kwargs):
            calls.append(name)
            return real(*args, **kwargs)

        if module is riskernels:
            monkeypatch.setattr(riskernels, name, counted)
        else:
            monkeypatch.setattr(f"{module}.{name}", counted)
    for form, expected in (
        ("factored", ["tikhonov_snapshots", "true_steering"]),
        ("dense", ["tikhonov_snapshots", "true_steering", "tikhonov_covariance"]),
    ):
        trainer = trainer_of(form)
        batches = scenes_of(trainer, 4)
        calls.clear()
        trainer.train_step(batches)
        assert sorted(calls) == sorted(expected)


class Shapes(TorchDispatchMode):
    """Largest number of dimensions of size ``elements`` in any tensor that an operator gives."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.most, self.operators = elements, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.most = max(self.most, list(leaf.shape).count(self.elements))
        self.operators.add(func.name())
        return result


def largest_allocation(call):
    """Bytes of the largest single allocation of PyTorch during ``call``, inside operators too."""
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("name", ["default", "shrinkage", "target_trace"])
def test_nothing_in_a_factored_step_is_as_large_as_a_matrix(name):
    system = SystemConfig(n_h=16, n_v=16, antennas=4, snapshots=3, max_sources=2)
    matrix = system.elements**2 * 8
    found = {}
    for form in FORMS:
        base = experiment(covariance=form)
        config = dataclasses.replace(base, system=system, covariance=COVARIANCES[name], loss=ACTIVE)
        trainer = Trainer(config, CPU)
        batches = scenes_of(trainer, 3)
        trainer.train_step(batches)
        with Shapes(system.elements) as shapes:
            trainer.train_step(batches)
        largest = largest_allocation(lambda t=trainer, b=batches: t.train_step(b))
        found[form] = shapes, largest
    shapes, largest = found["factored"]
    assert shapes.most == 1 and largest < matrix / 2
    # Forward, loss and backward were all watched.
    for operator in (
        "factored_nmse_forward",
        "factored_nmse_backward",
        "factored_leakage_backward",
    ):
        assert f"riskernels::{operator}" in shapes.operators
    shapes, largest = found["dense"]
    assert shapes.most == 2 and largest >= 3 * matrix


@pytest.mark.parametrize(
    ("elements", "sources", "snapshots", "expected"),
    [
        (144, 5, 16, "factored"),
        (144, 5, 67, "factored"),
        (144, 5, 68, "dense"),
        (12, 2, 4, "factored"),
        (12, 3, 4, "dense"),
        (9, 2, 2, "factored"),
        (9, 2, 3, "dense"),
        (6, 6, 1, "dense"),
    ],
)
def test_auto_is_factored_up_to_half_as_many_columns_as_elements(
    elements, sources, snapshots, expected
):
    system = SystemConfig(
        n_h=elements // 3, n_v=3, antennas=4, snapshots=snapshots, max_sources=sources
    )
    assert covariance_form("auto", system) == expected
    assert LocalizationLoss(system, LossConfig(), CovarianceConfig()).form == expected
    for form in FORMS:
        assert covariance_form(form, system) == form


def test_the_default_training_is_factored_and_an_unknown_form_is_refused():
    config = ExperimentConfig()
    assert config.train.covariance == "auto"
    assert covariance_form(config.train.covariance, config.system) == "factored"
    with pytest.raises(ConfigError, match="unknown covariance 'sparse'"):
        TrainConfig(covariance="sparse")


def test_a_run_may_be_continued_in_the_other_form(tmp_path):
    fit(experiment(epochs=1, covariance="dense"), tmp_path, quiet=True)
    result = fit(experiment(epochs=2, covariance="factored"), tmp_path, resume=True, quiet=True)
    assert len(result.history) == 2


def test_more_columns_than_elements_work_in_the_factored_form():
    steps = []
    for form in FORMS:
        base = experiment(covariance=form)
        system = dataclasses.replace(base.system, n_h=2, n_v=2, snapshots=5)
        torch.manual_seed(0)
        trainer = Trainer(dataclasses.replace(base, system=system), CPU)
        steps.append(step_of(trainer, scenes_of(trainer, 6))[0])
    for term, value in steps[0].items():
        torch.testing.assert_close(steps[1][term], value, rtol=1e-4, atol=1e-6)
