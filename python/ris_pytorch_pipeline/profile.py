# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes: ``ris profile``.

Real training steps run in phases, on three paths that compute the same loss: ``reference`` (N x N
matrices in plain, vectorised PyTorch, :mod:`.eager`), ``dense`` (N x N matrices, riskernels) and
``factored`` (their factors alone, riskernels). What covariances cost, forward and backward, is told
apart from the network by cutting the graph of the loss at the prediction.

The paths of a size run on the same scenes from the same weights, and a report is only made if their
first losses agree. On the CPU they take turns, step by step; on CUDA, where the next batch is drawn
beside the step, one path runs after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from . import eager
from .configs import ConfigError, CovarianceConfig, DataConfig, ExperimentConfig, to_dict
from .covariance import back_projected_snapshots
from .data import resolve_device
from .inference import Inference
from .machine import commit, machine, versions
from .model import Prediction
from .optim import StepReport
from .simulate import Scenes
from .train import Trainer

StepPath = Literal["reference", "dense", "factored"]
PATHS: tuple[StepPath, ...] = ("reference", "dense", "factored")
PHASES = (
    "data",
    "back-projection",
    "model forward",
    "loss forward",
    "loss backward",
    "model backward",
    "optimizer",
)
"""Phases of a step in their order. The back-projection makes the snapshots at the surface, which
are an input of the network and the factor of R_samp; the loss includes its covariances."""
COVARIANCE_PHASES = ("back-projection", "loss forward", "loss backward")
"""What counts as covariance and loss."""
CUT = ("factor", "phi", "theta", "r", "existence")
"""Fields of the prediction that gradients pass through."""
AGREEMENT = 1e-3
"""Largest relative difference of the paths' first losses."""
SCHEMA = "step profile 1"
Report = dict[str, Any]


class DisagreementError(RuntimeError):
    """The paths do not compute the same loss: their times would not compare."""


class Clock:
    """Times of marks: wall clock on the CPU, events on the present stream on CUDA.

    Events do not make the step wait, so that batches are drawn beside it as in a training.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.times: list[float] = []
        self.events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """The end of a phase, and the start of the next."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.events.append(event)
        else:
            self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Time between every two marks."""
        if self.cuda:
            self.events[-1].synchronize()
            pairs = zip(self.events, self.events[1:], strict=False)
            return [one.elapsed_time(other) / 1000 for one, other in pairs]
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def cut_graph(prediction: Prediction) -> Prediction:
    """The same prediction as leaves of a new graph, whose gradients stay there."""
    leaves = {name: getattr(prediction, name).detach().requires_grad_() for name in CUT}
    return dataclasses.replace(prediction, **leaves)


def split_step(
    trainer: Trainer,
    batches: Iterator[Scenes],
    mark: Callable[[], None],
    back_project: Callable[[Scenes, CovarianceConfig], Tensor] = back_projected_snapshots,
) -> StepReport:
    """One training step on the next of ``batches``, the trainer's own up to rounding.

    Args:
        trainer: its network, loss and guard are used.
        batches: where the scenes come from.
        mark: called before the first of :data:`PHASES` and after each.
        back_project: makes the snapshots at the surface.
    """
    net, scaler = trainer.net, trainer.guard.scaler
    mark()
    scenes = next(batches)
    mark()
    snapshots = back_project(scenes, net.covariance)
    mark()
    with torch.autocast(trainer.device.type, torch.float16, enabled=trainer.amp):
        prediction = net(scenes, snapshots)
    mark()
    leaves = cut_graph(prediction)
    total = trainer.loss(Inference(leaves, scenes, net.covariance), scenes)["total"]
    mark()
    torch.autograd.backward(scaler.scale(total))
    mark()
    roots: list[Tensor] = []
    gradients: list[Tensor] = []
    for name in CUT:
        gradient = getattr(leaves, name).grad
        # Terms without a weight leave some of the prediction unused.
        if gradient is not None:
            roots.append(getattr(prediction, name))
            gradients.append(gradient)
    torch.autograd.backward(roots, gradients)
    mark()
    report = trainer.guard(total.detach())
    mark()
    return report


class _Run:
    """The steps of one path at one size."""

    def __init__(self, config: ExperimentConfig, path: StepPath, device: torch.device) -> None:
        form: Literal["dense", "factored"] = "factored" if path == "factored" else "dense"
        train = dataclasses.replace(config.train, covariance=form)
        torch.manual_seed(train.seed)
        self.trainer = Trainer(dataclasses.replace(config, train=train), device)
        self.back_project = back_projected_snapshots
        if path == "reference":
            self.trainer.loss = eager.EagerLoss(config.system, config.loss, config.covariance)
            self.back_project = eager.back_projected_snapshots
        self.trainer.net.train()
        self.path, self.device = path, device
        self.batches = self.trainer.data.epoch()
        self.samples: list[list[float]] = []
        self.losses: list[float] = []

    def step(self) -> None:
        # Dropout draws the same on every path.
        torch.manual_seed(len(self.losses))
        clock = Clock(self.device)
        report = split_step(self.trainer, self.batches, clock.mark, self.back_project)
        self.losses.append(report.loss)
        self.samples.append(clock.seconds())

    def result(self, warmup: int) -> Report:
        """Medians over the steps after the first ``warmup``, in seconds."""
        columns = [list(column) for column in zip(*self.samples[warmup:], strict=True)]
        phases = dict(zip(PHASES, map(statistics.median, columns), strict=True))
        samples = dict(zip(PHASES, columns, strict=True))
        step = statistics.median(map(sum, self.samples[warmup:]))
        spent = statistics.median(
            map(sum, zip(*(samples[name] for name in COVARIANCE_PHASES), strict=True))
        )
        return {
            "elements": self.trainer.config.system.elements,
            "path": self.path,
            "phases": phases,
            "step": step,
            "covariance_and_loss": spent,
            "share": spent / step,
            "samples": samples,
            "losses": self.losses,
        }


@dataclass(frozen=True)
class ProfileOptions:
    """What is measured; every option of ``ris profile`` that changes a figure."""

    elements: Sequence[int] = (144, 400, 1024)
    paths: Sequence[StepPath] = PATHS
    steps: int = 10
    warmup: int = 3
    threads: int | None = None
    """Threads of PyTorch and of the operators on the CPU; as they are when left out."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"profile: {name} is {getattr(self, name)}, expected at least {least}"
                )
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"profile: threads is {self.threads}, expected at least 1")
        if not self.elements or not self.paths:
            raise ConfigError("profile: elements and paths need at least one value each")
        for name in ("elements", "paths"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"profile: {name} {list(values)} names a value twice")
        for count in self.elements:
            side = round(max(count, 1) ** 0.5)
            if side * side != count:
                raise ConfigError(
                    f"profile: {count} elements are no square surface; the nearest is {side**2}"
                )


def square_system(config: ExperimentConfig, elements: int, steps: int) -> ExperimentConfig:
    """``config`` for a square surface of ``elements``, with data for ``steps`` steps, simulated."""
    side = math.isqrt(elements)
    return dataclasses.replace(
        config,
        system=dataclasses.replace(config.system, n_h=side, n_v=side),
        data=DataConfig(train_samples=steps * config.train.batch_size, val_samples=1),
        train=dataclasses.replace(config.train, epochs=1, accumulate=1),
    )


def _check_agreement(runs: Sequence[_Run]) -> None:
    first = {run.path: run.losses[0] for run in runs}
    low, high = min(first.values()), max(first.values())
    if not all(map(math.isfinite, first.values())) or high - low > AGREEMENT * abs(high):
        raise DisagreementError(
            f"profile: N = {runs[0].trainer.config.system.elements}: the losses of the first step "
            f"are not finite or differ by more than {AGREEMENT:g} relative: {first}"
        )


@contextlib.contextmanager
def _thread_count(threads: int | None) -> Generator[int, None, None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _measure_size(
    config: ExperimentConfig, options: ProfileOptions, device: torch.device
) -> list[Report]:
    """The results of one size, one per path."""
    runs = [_Run(config, path, device) for path in options.paths]
    total = options.warmup + options.steps
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(contextlib.closing(run.batches))
        if device.type == "cuda":
            for run in runs:
                for _ in range(total):
                    run.step()
            _check_agreement(runs)
        else:
            for step in range(total):
                for run in runs:
                    run.step()
                if step == 0:
                    _check_agreement(runs)
    results = [run.result(options.warmup) for run in runs]
    spent = {case["path"]: case["covariance_and_loss"] for case in results}
    for case in results:
        if "reference" in spent:
            case["speedup"] = spent["reference"] / case["covariance_and_loss"]
    return results


def profile(
    config: ExperimentConfig,
    options: ProfileOptions,
    *,
    on_size: Callable[[Report, list[Report]], None] | None = None,
) -> Report:
    """Measure training steps and return what the JSON file holds.

    Args:
        config: the experiment; its surface is replaced by square ones, its scenes are simulated.
        options: sizes, paths and counts.
        on_size: called when a size is done, with the report so far and the results of the size.

    Raises:
        ConfigError: an option cannot be used.
        DisagreementError: the paths do not compute the same loss.
    """
    device = resolve_device(config.train.device)
    total = options.warmup + options.steps
    configs = [square_system(config, elements, total) for elements in options.elements]
    cases: list[Report] = []
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, _thread_count(options.threads) as threads:
        report: Report = {
            "schema": SCHEMA,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(device.type, device.index),
            "versions": versions(),
            **commit(),
            "threads": threads,
            "settings": {
                "device": device.type,
                "batch_size": config.train.batch_size,
                "steps": options.steps,
                "warmup": options.warmup,
                "config": to_dict(config),
            },
            "phases": list(PHASES),
            "covariance_phases": list(COVARIANCE_PHASES),
            "cases": cases,
        }
        for sized in configs:
            results = _measure_size(sized, options, device)
            cases += results
            if on_size is not None:
                on_size(report, results)
    return report
