# SPDX-License-Identifier: Apache-2.0
"""Order of a training step: skipped steps, accumulation, schedule and averages."""

import math

import pytest
import torch
from training_helpers import (
    CPU,
    experiment,
    frozen,
    make_trainer,
    read_metrics,
    same,
    scenes_of,
    with_nan,
)

from ris_pytorch_pipeline import loss as loss_module
from ris_pytorch_pipeline import trainer as trainer_module
from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import (
    TrainConfig,
)
from ris_pytorch_pipeline.model import infer
from ris_pytorch_pipeline.optim import StepGuard, WeightAverage, build_optimizer, warmup_cosine
from ris_pytorch_pipeline.simulate import Scenes, Simulator
from ris_pytorch_pipeline.train import Trainer, TrainingError, fit


def poison_head_gradient(trainer, patch):
    weight = trainer.net.existence.weight
    return weight.register_hook(lambda grad: torch.full_like(grad, math.nan))


def poison_one_gradient_entry(trainer, patch):
    def poison(grad):
        grad = grad.clone()
        grad.view(-1)[3] = math.inf
        return grad

    return trainer.net.image_token.weight.register_hook(poison)


def poison_loss_term(trainer, patch):
    hinge = loss_module.eigengap_hinge
    patch.setattr(loss_module, "eigengap_hinge", lambda *a: hinge(*a) * math.nan)


def poison_loss_value_only(trainer, patch):
    # A constant NaN leaves every gradient finite; the step must still not be taken.
    patch.setattr(loss_module, "eigengap_hinge", lambda v, *a: torch.full((len(v),), math.nan))


def poison_sample(trainer, patch):
    patch.setattr(trainer_module, "infer", lambda net, scenes: infer(net, with_nan(scenes, row=5)))


@pytest.mark.parametrize(
    "poison",
    [
        poison_head_gradient,
        poison_one_gradient_entry,
        poison_loss_term,
        poison_loss_value_only,
        poison_sample,
    ],
)
def test_a_non_finite_step_leaves_no_trace(poison, monkeypatch):
    trainer = make_trainer(swa_start=0.0)
    batches = scenes_of(trainer, 8)
    for _ in range(2):
        assert trainer.train_step(batches)[0].stepped
    assert trainer.ema.count == trainer.swa.count == 2
    before = frozen(trainer)
    with monkeypatch.context() as patch:
        hook = poison(trainer, patch)
        report, _ = trainer.train_step(batches)
        if hook is not None:
            hook.remove()
    assert not report.stepped and trainer.guard.skipped == 1
    assert same(frozen(trainer), before)
    assert all(p.grad is None for p in trainer.net.parameters())
    assert trainer.train_step(batches)[0].stepped
    assert not same(frozen(trainer), before)


def test_the_step_order():
    """unscale once, clip, check, step, scaler.update, zero_grad, then schedule and averages."""
    calls = []
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    class Spy:
        def __init__(self, name, target):
            self.name, self.target = name, target

        def __getattr__(self, attribute):
            value = getattr(self.target, attribute)
            if not callable(value):
                return value

            def call(*args, **kwargs):
                calls.append(f"{self.name}.{attribute}")
                if attribute == "step" and self.name == "scaler":
                    calls.append(f"norm={weight.grad.norm():.2f}")
                return value(*(optimizer if isinstance(a, Spy) else a for a in args), **kwargs)

            return call

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    guard = StepGuard(
        {"all": [weight]},
        Spy("optimizer", optimizer),
        Spy("scheduler", torch.optim.lr_scheduler.ConstantLR(optimizer)),
        Spy("scaler", scaler),
        0.5,
        lambda: calls.append("averages"),
    )
    loss = (weight * 3).sum()
    scaler.scale(loss).backward()
    report = guard(loss.detach())
    assert report.stepped and report.norms["all"] == pytest.approx(math.sqrt(27))
    assert calls == [
        "scaler.unscale_",
        "scaler.step",
        "norm=0.50",
        "scaler.update",
        "optimizer.zero_grad",
        "scheduler.step",
        "averages",
    ]
    calls.clear()
    scaler.scale((weight * math.inf).sum()).backward()
    assert not guard(loss.detach()).stepped
    assert calls == ["scaler.unscale_", "scaler.update", "optimizer.zero_grad"]


@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 8, 3), (5,)])
def test_accumulation_is_one_large_batch(sizes):
    trainer = make_trainer()
    trainer.net.eval()  # dropout draws differ between the two ways
    captured = []

    def capture(loss):
        captured.append((loss, [p.grad.clone() for p in trainer.net.parameters()]))
        trainer.net.zero_grad(set_to_none=True)

    capture.scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer.guard = capture
    batches = scenes_of(trainer, *sizes)
    trainer.train_step(batches)
    trainer.train_step([Scenes.concat(batches)])
    (loss_parts, parts), (loss_whole, whole) = captured
    torch.testing.assert_close(loss_parts, loss_whole)
    for one, other in zip(parts, whole, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale + 1e-7)


@pytest.mark.parametrize(("accumulate", "groups"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_accumulation_flushes_at_the_last_batch(tmp_path, accumulate, groups):
    config = experiment(epochs=1, accumulate=accumulate)
    result = fit(config, tmp_path, quiet=True)
    trainer = Trainer(config, CPU)
    assert [len(g) for g in trainer.groups] == [
        min(accumulate, 4 - accumulate * i) for i in range(groups)
    ]
    state = load_checkpoint(tmp_path / "last").state
    assert state["scheduler"]["last_epoch"] == groups == state["counters"]["real_steps"]
    assert math.isfinite(result.best_val_loss)


def test_schedule():
    config = TrainConfig(warmup_steps=4, lr_final=0.1, lr_backbone=1.0, lr_head=2.0)
    weights = {"backbone": [torch.nn.Parameter(torch.ones(2, 2))], "head": []}
    optimizer = build_optimizer(weights, config)
    schedule = warmup_cosine(optimizer, config, 14)
    rates = []
    for _ in range(16):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[9] == pytest.approx(0.55) and rates[14:] == pytest.approx([0.1, 0.1])
    assert rates[4:15] == sorted(rates[4:15], reverse=True)


def test_groups_have_their_rate_and_only_matrices_decay():
    trainer = make_trainer(lr_backbone=0.5, lr_head=0.25, weight_decay=0.1, warmup_steps=0)
    groups = trainer.net.parameter_groups()
    backbone = {id(p) for p in groups["backbone"]}
    seen = 0
    for group in trainer.guard.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["initial_lr"] == (0.5 if id(parameter) in backbone else 0.25)
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)
            seen += 1
    assert seen == len(list(trainer.net.parameters()))


def test_averages():
    net = torch.nn.Linear(2, 1)
    ema, swa = WeightAverage.exponential(net, 0.5), WeightAverage.stochastic(net)
    expected = net.weight.detach().clone()
    history = []
    for step in range(6):
        with torch.no_grad():
            net.weight.copy_(torch.randn(1, 2))
        history.append(net.weight.detach().clone())
        ema.update(net)
        swa.update(net)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * history[-1]
    torch.testing.assert_close(ema.module.weight, expected)
    torch.testing.assert_close(swa.module.weight, torch.stack(history).mean(0))


@pytest.mark.parametrize("where", ["sample", "term"])
def test_a_run_goes_on_after_a_non_finite_step(tmp_path, monkeypatch, capsys, where):
    batch, hinge = Simulator.batch, loss_module.eigengap_hinge
    batches, terms = [], []

    def broken_batch(self, size, *part):
        batches.append(size)
        scenes = batch(self, size)
        # Two validation batches are drawn first.
        return with_nan(scenes, row=2) if len(batches) == 5 else scenes

    def broken_term(eigenvalues, *args):
        terms.extend([1] * eigenvalues.requires_grad)
        return hinge(eigenvalues, *args) * (math.nan if len(terms) == 12 else 1.0)

    if where == "sample":
        monkeypatch.setattr(Simulator, "batch", broken_batch)
    else:
        # The checklist takes the first nine gradients.
        monkeypatch.setattr(loss_module, "eigengap_hinge", broken_term)
    result = fit(experiment(), tmp_path)
    assert result.skipped_steps == 1 and math.isfinite(result.best_val_loss)
    assert math.isfinite(result.last_train_loss)
    assert all(math.isfinite(m["train_loss"]) for m in result.history)
    skipped = [r for r in read_metrics(tmp_path) if r["kind"] == "skipped"]
    assert len(skipped) == 1 and skipped[0]["skipped_steps"] == 1 and skipped[0]["loss"] is None
    out = capsys.readouterr().out
    assert "skipped, nothing changed" in out and "skipped steps 1" in out
    assert load_checkpoint(tmp_path / "last").state["counters"]["real_steps"] == 7


def test_an_epoch_without_a_real_step_is_an_error(tmp_path, monkeypatch):
    margin = loss_module.margin_hinge
    monkeypatch.setattr(loss_module, "margin_hinge", lambda *a: margin(*a) * math.nan)
    with pytest.raises(TrainingError, match="4 skipped"):
        fit(experiment(), tmp_path, quiet=True)
