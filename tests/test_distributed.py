# SPDX-License-Identifier: Apache-2.0
"""A training in several processes is the training of one: scenes, gradients, steps, decisions."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from process_helpers import Team, before_step
from training_helpers import CPU, experiment, same, with_nan

from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SystemConfig,
    TrainConfig,
)
from ris_pytorch_pipeline.data import everything, open_scenes
from ris_pytorch_pipeline.distributed import Processes
from ris_pytorch_pipeline.model import infer
from ris_pytorch_pipeline.optim import StepReport
from ris_pytorch_pipeline.shards import write_shards
from ris_pytorch_pipeline.simulate import Scenes
from ris_pytorch_pipeline.train import fit
from ris_pytorch_pipeline.trainer import Trainer

FULL = bool(os.environ.get("RISKERNELS_FULL_DISTRIBUTED"))
"""Compare all 50 steps' gradients at the default size with those of one process."""
TOLERANCE = 1e-5


def without_dropout(config: ExperimentConfig) -> ExperimentConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))


def uneven(**train) -> ExperimentConfig:
    """50 steps on batches of 9 scenes and, at the end of each of 5 epochs, of 1."""
    config = without_dropout(experiment(DataConfig(train_samples=82, val_samples=10)))
    options = dict(epochs=5, batch_size=9, device="cpu", log_every=10, warmup_steps=5)
    return dataclasses.replace(config, train=TrainConfig(**{**options, **train}))


def without_influence(name: str, width: int) -> slice:
    """The entries of a weight that softmax takes out again: a number common to all its inputs.

    Their gradient is rounding, which Adam scales to full steps in directions of its own.
    """
    if name == "power.bias":
        return slice(None)
    return slice(0, width) if name.endswith("key_value.bias") else slice(0)


def largest_difference(one: torch.nn.Module, other: torch.nn.Module, width: int) -> float:
    """Over all weights, of the difference relative to the weight's largest entry."""
    worst = 0.0
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        difference = (a - b).abs()
        difference[without_influence(name, width)] = 0
        worst = max(worst, float(difference.max() / a.abs().max()))
    return worst


def test_weights_without_influence_have_none():
    torch.manual_seed(1)
    trainer = Trainer(without_dropout(experiment()), CPU)
    scenes, net = trainer.data.validation[0], trainer.net.eval()
    with torch.no_grad():
        before = infer(net, scenes).prediction
        for name, weight in net.named_parameters():
            part = without_influence(name, net.model.width)
            weight[part] += (
                torch.randn(1) if name == "power.bias" else torch.randn_like(weight[part])
            )
        after = infer(net, scenes).prediction
    for name in ("factor", "phi", "theta", "r", "existence"):
        torch.testing.assert_close(
            getattr(before, name), getattr(after, name), rtol=2e-5, atol=2e-6
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of :func:`uneven` in one process."""
    folder = tmp_path_factory.mktemp("alone")
    fit(uneven(), folder, quiet=True)
    return folder


@pytest.mark.lasts(20)
@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_take_the_steps_of_one(alone, tmp_path, size):
    with Team(size, lambda rank: fit(uneven(), tmp_path / "run") and None, tmp_path) as team:
        assert team.wait() == [0] * size
    assert "validation loss" in team.printed(0)
    assert [team.printed(rank) for rank in range(1, size)] == [""] * (size - 1)
    worst = {}
    for name in ("last", "best"):
        one, other = (load_checkpoint(folder / name) for folder in (alone, tmp_path / "run"))
        worst[name] = largest_difference(one.net, other.net, one.net.model.width)
    counters = [load_checkpoint(f / "last").state["counters"] for f in (alone, tmp_path / "run")]
    assert counters[1]["real_steps"] == 50 == counters[0]["real_steps"]
    for one, other in zip(*(c["history"] for c in counters), strict=True):
        assert one.keys() == other.keys()
        worst |= {
            k: max(worst.get(k, 0), abs(one[k] - other[k]) / max(abs(one[k]), 1e-2)) for k in one
        }
    print({name: f"{value:.1e}" for name, value in worst.items()})
    assert max(worst.values()) < TOLERANCE


class Watched:
    """Stands for a trainer's guard and keeps the gradients that come to it."""

    def __init__(self, trainer: Trainer, *, step: bool) -> None:
        self.trainer, self.guard, self.step = trainer, trainer.guard, step
        self.scaler = trainer.guard.scaler

    def __call__(self, loss: torch.Tensor) -> StepReport:
        self.gradients = {n: p.grad.clone() for n, p in self.trainer.net.named_parameters()}
        if self.step:
            return self.guard(loss)
        self.trainer.net.zero_grad(set_to_none=True)
        return StepReport(False, 0.0, {})

    def difference(self, other: Watched) -> float:
        """The largest over all weights, relative to the largest entry of the weight's gradient."""
        worst = 0.0
        for name, gradient in self.gradients.items():
            difference = (other.gradients[name] - gradient).abs()
            difference[without_influence(name, self.trainer.net.model.width)] = 0
            worst = max(worst, float(difference.max() / gradient.abs().max().clamp_min(1e-6)))
        return worst


def compared_fit(config: ExperimentConfig, rank: int, folder: Path) -> None:
    """Rank 0 also computes every step's gradients alone, from the same weights, and compares.

    It does so twice, the second time on the scenes in reversed order: what that changes is
    rounding, which several processes may change as much.
    """
    real, source, worst = Trainer.train_step, open_scenes(config, CPU), []

    def endless():
        while True:
            yield from source.epoch()

    whole = endless()

    def train_step(trainer, batches):
        guard, processes = trainer.guard, trainer.processes
        one, turned, several = (Watched(trainer, step=step) for step in (False, False, True))
        scenes = [next(whole) for _ in batches]
        trainer.guard, trainer.processes = one, Processes(CPU)
        real(trainer, scenes)
        trainer.guard = turned
        real(trainer, [batch.index_select(torch.arange(len(batch)).flip(0)) for batch in scenes])
        trainer.guard, trainer.processes = several, processes
        result = real(trainer, batches)
        trainer.guard = guard
        worst.append([one.difference(other) for other in (several, turned)])
        return result

    if rank == 0:
        Trainer.train_step = train_step
    fit(config, folder, quiet=True)
    if rank == 0:
        print(len(worst), *map(max, zip(*worst, strict=True)))


@pytest.mark.parametrize("size", [2, 4] if FULL else [3])
def test_gradients_are_those_of_one_process(tmp_path, size):
    config = uneven(epochs=10 if FULL else 2, accumulate=2)
    if FULL:
        config = dataclasses.replace(config, system=SystemConfig(), model=ModelConfig())
    with Team(size, lambda rank: compared_fit(config, rank, tmp_path / "run"), tmp_path) as team:
        assert team.wait() == [0] * size, team.error(0)
    steps, worst, rounding = map(float, team.printed(0).split())
    print(
        f"{steps:.0f} steps in {size} processes: gradients to {worst:.1e} of their largest entry,"
    )
    print(f"by the order of scenes in one process {rounding:.1e}")
    # Where a ReLU sits at its kink, rounding turns a pixel of a bias's gradient on or off.
    assert steps == (50 if FULL else 10) and worst < max(TOLERANCE, 4 * rounding)


@pytest.mark.parametrize("kind", ["simulated", "shards"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_shares_of_a_batch_are_the_batch(tmp_path, kind, size):
    data = DataConfig(train_samples=25, val_samples=18)
    if kind == "shards":
        config = experiment()
        write_shards(
            tmp_path / "s", config.system, config.simulation, samples=43, shard_size=20, seed=1
        )
        data = dataclasses.replace(data, shards=str(tmp_path / "s"))
    config = experiment(data)

    def share(rank: int):
        processes = Processes(CPU)
        processes.rank, processes.size = rank, size
        return processes.share

    whole = open_scenes(config, CPU)
    parts = [open_scenes(config, CPU, share(rank)) for rank in range(size)]
    assert all(part.batch_sizes == whole.batch_sizes == [8, 8, 8, 1] for part in parts)
    epochs = [list(batches) for batches in zip(*(part.epoch() for part in parts), strict=True)]
    for scenes, shares in zip(whole.epoch(), epochs, strict=True):
        assert len(shares[0]) and max(map(len, shares)) - min(map(len, shares)) <= 1
        together = Scenes.concat(shares)
        for (name, one), (_, other) in zip(scenes.tensors(), together.tensors(), strict=True):
            if kind == "simulated" and name in ("y", "h"):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(one, other), name
    # As many processes as there may be continue at the same place.
    assert all(same(part.state_dict(), whole.state_dict()) for part in parts)
    held = [scenes.phi for part in parts for scenes in part.validation]
    expected = torch.cat([scenes.phi for scenes in whole.validation])
    assert all(map(len, held))
    assert torch.equal(torch.cat(held).flatten().sort()[0], expected.flatten().sort()[0])


def test_a_process_alone_has_everything():
    assert all(Processes(CPU).share(n) == everything(n) == slice(0, n) for n in (0, 1, 7))


def poisoned_fit(rank: int, size: int, folder: Path) -> None:
    """Steps 2, 4 and 6 are not finite: a sample, a gradient, the value of the loss alone."""
    real, steps = Trainer.train_step, []

    def train_step(trainer, batches):
        steps.append(None)
        number = len(steps)
        hook = None
        last = rank == size - 1
        if number == 2 and last:
            batches = [with_nan(batches[0], row=-1), *batches[1:]]
        if number == 4 and rank == 0:
            weight = trainer.net.existence.weight
            hook = weight.register_hook(lambda grad: torch.full_like(grad, math.inf))
        if number == 6 and last:
            per_scene = trainer.loss.per_scene
            trainer.loss.per_scene = lambda *a: {
                k: v.detach() * math.nan if k == "margin" else v for k, v in per_scene(*a).items()
            }
        report, means = real(trainer, batches)
        if number == 6 and last:
            trainer.loss.per_scene = per_scene
        if hook is not None:
            hook.remove()
        assert report.stepped is (number not in (2, 4, 6))
        return report, means

    Trainer.train_step = train_step
    config = without_dropout(experiment(epochs=2))
    result = fit(config, folder, quiet=True)
    assert result.skipped_steps == 3 and len(steps) == 8


def test_what_is_not_finite_in_one_process_is_skipped_in_all(tmp_path):
    with Team(2, lambda rank: poisoned_fit(rank, 2, tmp_path / "two"), tmp_path) as team:
        assert team.wait() == [0, 0], [team.error(rank) for rank in range(2)]

    def one_process(rank: int) -> None:
        os.environ["WORLD_SIZE"] = "1"
        poisoned_fit(0, 1, tmp_path / "one")

    with Team(1, one_process, tmp_path) as team:
        assert team.wait() == [0], team.error(0)
    one, two = (load_checkpoint(tmp_path / name / "last") for name in ("one", "two"))
    assert one.state["skipped"] == two.state["skipped"] == 3
    assert largest_difference(one.net, two.net, one.net.model.width) < TOLERANCE


@pytest.mark.lasts(20)
def test_another_number_of_processes_goes_on(alone, tmp_path):
    def stopped(rank: int) -> None:
        before_step(25, lambda: signal.raise_signal(signal.SIGTERM))
        fit(uneven(), tmp_path / "run", quiet=True)

    with Team(3, stopped, tmp_path) as team:
        assert team.wait() == [143] * 3
    fit(uneven(), tmp_path / "run", resume=True, quiet=True)
    one, other = (load_checkpoint(folder / "last").net for folder in (alone, tmp_path / "run"))
    assert largest_difference(one, other, one.model.width) < TOLERANCE
