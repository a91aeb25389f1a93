# SPDX-License-Identifier: Apache-2.0
"""Training of the localization network: :func:`fit`.

A run's folder holds ``config.json``, ``metrics.jsonl``, and the checkpoints ``last`` (weights and
everything needed to continue) and ``best`` (the weights with the lowest validation loss).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checklist import run_checklist
from .checkpoint import (
    config_differences,
    has_checkpoint,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from .configs import ConfigError, ExperimentConfig, TrainConfig, save_config
from .data import open_scenes, resolve_device
from .loss import LocalizationLoss
from .model import LocalizationNet, infer
from .optim import StepGuard, StepReport, WeightAverage, build_optimizer, warmup_cosine
from .progress import RunLog
from .simulate import Scenes

__all__ = [
    "TrainResult",
    "Trainer",
    "TrainingError",
    "fit",
    "infer",
    "resolve_device",
    "validate",
]

FREE_TO_CHANGE = {"epochs", "patience", "log_every", "device", "covariance"}
"""Fields of TrainConfig that may differ when a run is continued."""

Metrics = dict[str, float]


class TrainingError(RuntimeError):
    """A training that cannot go on."""


@dataclass(frozen=True)
class TrainResult:
    """Outcome of :func:`fit`."""

    best_val_loss: float
    """Lowest validation loss; infinite if none was finite."""
    first_train_loss: float
    """Mean over the first ``log_every`` real steps, at most the first half of all."""
    last_train_loss: float
    """Mean over as many last steps."""
    history: list[Metrics]
    """Metrics of every epoch."""
    skipped_steps: int
    """Steps skipped because of a non-finite gradient or loss."""
    checkpoint: Path
    """The best checkpoint, or the last where no validation loss was finite."""


@torch.no_grad()
def validate(net: LocalizationNet, loss: LocalizationLoss, batches: Iterable[Scenes]) -> Metrics:
    """Mean of every loss term over the scenes of ``batches``, through :func:`infer`."""
    was_training = net.training
    net.eval()
    sums: dict[str, Tensor] = {}
    count = 0
    for scenes in batches:
        for name, value in loss(infer(net, scenes), scenes).items():
            sums[name] = sums.get(name, value.new_zeros(())) + value * len(scenes)
        count += len(scenes)
    net.train(was_training)
    means = (torch.stack(list(sums.values())) / count).tolist()
    return dict(zip(sums, means, strict=True))


class Trainer:
    """The moving parts of one run, and their saved form."""

    def __init__(self, config: ExperimentConfig, device: torch.device) -> None:
        train = config.train
        self.config, self.device = config, device
        self.data = open_scenes(config, device)
        self.net = LocalizationNet(config.system, config.model, config.covariance).to(device)
        self.loss = LocalizationLoss(
            config.system, config.loss, config.covariance, train.covariance
        )
        sizes, group = self.data.batch_sizes, train.accumulate
        self.groups = [sizes[i : i + group] for i in range(0, len(sizes), group)]
        self.total_steps = train.epochs * len(self.groups)
        parameter_groups = self.net.parameter_groups()
        optimizer = build_optimizer(parameter_groups, train)
        self.amp = train.amp and device.type == "cuda"
        self.guard = StepGuard(
            parameter_groups,
            optimizer,
            warmup_cosine(optimizer, train, self.total_steps),
            torch.amp.GradScaler(device.type, enabled=self.amp),
            train.clip_norm,
            self._after_step,
        )
        self.ema = WeightAverage.exponential(self.net, train.ema_decay) if train.ema_decay else None
        self.swa = WeightAverage.stochastic(self.net) if train.swa_start < 1 else None
        self.real_steps = self.epoch = self.stale_epochs = 0
        self.best = math.inf
        self.history: list[Metrics] = []
        self.first_losses: list[float] = []
        self.last_losses: list[float] = []

    def _after_step(self) -> None:
        self.real_steps += 1
        if self.ema is not None:
            self.ema.update(self.net)
        if (
            self.swa is not None
            and self.real_steps > self.config.train.swa_start * self.total_steps
        ):
            self.swa.update(self.net)

    def _parts(self) -> dict[str, Any]:
        guard = self.guard
        parts = {"optimizer": guard.optimizer, "scheduler": guard.scheduler, "data": self.data}
        parts |= {"scaler": guard.scaler, "ema": self.ema, "swa": self.swa}
        return {name: part for name, part in parts.items() if part is not None}

    _COUNTERS = (
        "real_steps", "epoch", "stale_epochs", "best", "history", "first_losses", "last_losses",
    )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything but the network's weights; tensors and plain values only."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state["counters"] = {name: getattr(self, name) for name in self._COUNTERS}
        state["skipped"], state["device"] = self.guard.skipped, self.device.type
        state["random"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, folder: Path) -> None:
        """Continue from the checkpoint in ``folder``."""
        saved = load_checkpoint(folder, device=self.device)
        kept = {name: getattr(saved.config.train, name) for name in FREE_TO_CHANGE}
        comparable = dataclasses.replace(
            self.config, train=dataclasses.replace(self.config.train, **kept)
        )
        if saved.state["device"] != self.device.type:
            raise ConfigError(
                f"{folder}: a run on {saved.state['device']} cannot continue on "
                f"{self.device.type}, whose random streams differ; set train.device"
            )
        differences = config_differences(saved.config, comparable)
        if differences:
            raise ConfigError(
                f"{folder}: cannot continue with another configuration (saved -> wanted): "
                f"{', '.join(differences)}; use the saved one or another output folder"
            )
        self.net.load_state_dict(saved.net.state_dict())
        for name, part in self._parts().items():
            part.load_state_dict(saved.state[name])
        for name, value in saved.state["counters"].items():
            setattr(self, name, value)
        self.guard.skipped = saved.state["skipped"]
        torch.set_rng_state(saved.state["random"]["cpu"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved.state["random"]["cuda"].cpu(), self.device)

    def train_step(self, batches: list[Scenes]) -> tuple[StepReport, dict[str, Tensor]]:
        """One step over the batches of an accumulation group; returns the terms' means too."""
        samples = sum(map(len, batches))
        means: dict[str, Tensor] = {}
        for scenes in batches:
            share = len(scenes) / samples
            with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
                inference = infer(self.net, scenes)
            terms = self.loss(inference, scenes)
            torch.autograd.backward(self.guard.scaler.scale(terms["total"] * share))
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + value.detach() * share
        return self.guard(means["total"]), means

    def train_epoch(self, log: RunLog) -> Metrics:
        """All steps of one epoch; returns the means over its real steps."""
        self.net.train()
        train = self.config.train
        label, rate = f"{self.epoch + 1}/{train.epochs}", self.guard.scheduler
        sums: dict[str, Tensor] = {}
        taken = 0
        with contextlib.closing(self.data.epoch()) as batches:
            for number, group in enumerate(self.groups, start=1):
                lr = float(rate.get_last_lr()[0])
                report, terms = self.train_step([next(batches) for _ in group])
                values = {"loss": report.loss, "lr": lr}
                if report.stepped:
                    taken += sum(group)
                    for name, value in terms.items():
                        sums[name] = sums.get(name, 0.0) + value * sum(group)
                    if len(self.first_losses) < train.log_every:
                        self.first_losses.append(report.loss)
                    self.last_losses = [*self.last_losses, report.loss][-train.log_every :]
                else:
                    self._report_skip(log, report)
                shown = number % train.log_every == 0 or number in (1, len(self.groups))
                log.advance(label, values, show=shown)
        if not taken:
            raise TrainingError(
                f"no step of epoch {self.epoch + 1} had finite gradients ({self.guard.skipped} "
                "skipped): check the data for non-finite values, or lower the learning rates"
            )
        means = (torch.stack(list(sums.values())) / taken).tolist()
        return {f"train_{name}": v for name, v in zip(sums, means, strict=True)}

    def _report_skip(self, log: RunLog, report: StepReport) -> None:
        norms = {f"grad_{name}": value for name, value in report.norms.items()}
        values = {"loss": report.loss, **norms, "skipped_steps": self.guard.skipped}
        log.record("skipped", values)
        shown = " ".join(f"{name}={value:.3g}" for name, value in values.items())
        log.say(f"step {log.done_steps + 1} skipped, nothing changed: non-finite among {shown}")

    def evaluated(self) -> tuple[str, LocalizationNet]:
        """The weights that validation and the best checkpoint use, and their name."""
        return ("model", self.net) if self.ema is None else ("ema", self.ema.module)

    def keep_if_best(self, folder: Path, weights: str, net: LocalizationNet, value: float) -> bool:
        """Save ``net`` as the best checkpoint if its validation loss is the lowest so far."""
        if not value < self.best:
            return False
        self.best = value
        state = {"epoch": self.epoch, "val_loss": value, "weights": weights}
        save_checkpoint(folder, self.config, net, state)
        return True

    def run_epoch(self, out_dir: Path, log: RunLog) -> Metrics:
        """Train, validate and save one epoch."""
        metrics = self.train_epoch(log)
        weights, net = self.evaluated()
        metrics |= {
            f"val_{k}": v for k, v in validate(net, self.loss, self.data.validation).items()
        }
        metrics["train_loss"], metrics["val_loss"] = metrics["train_total"], metrics["val_total"]
        metrics["skipped_steps"] = float(self.guard.skipped)
        self.epoch += 1
        better = self.keep_if_best(out_dir / "best", weights, net, metrics["val_loss"])
        self.stale_epochs = 0 if better else self.stale_epochs + 1
        self.history.append(metrics)
        save_checkpoint(out_dir / "last", self.config, self.net, self.state_dict())
        log.record("epoch", {"epoch": self.epoch, **metrics})
        log.say(
            f"epoch {self.epoch}/{self.config.train.epochs}  train loss "
            f"{metrics['train_loss']:.4f}  validation loss {metrics['val_loss']:.4f} "
            f"({weights} weights)  skipped steps {self.guard.skipped}"
        )
        return metrics

    def finish(self, out_dir: Path, log: RunLog) -> TrainResult:
        """Validate the SWA weights, which may be the best, and sum up."""
        if self.swa is not None and self.swa.count:
            value = validate(self.swa.module, self.loss, self.data.validation)["total"]
            better = self.keep_if_best(out_dir / "best", "swa", self.swa.module, value)
            log.record("swa", {"val_loss": value, "updates": self.swa.count})
            log.say(f"SWA weights: validation loss {value:.4f}{' (best)' if better else ''}")
        checkpoint = out_dir / ("best" if math.isfinite(self.best) else "last")
        # The two windows share no step, so that a short run shows its progress too.
        window = max(1, min(len(self.first_losses), self.real_steps // 2))
        ends = self.first_losses[:window], self.last_losses[-window:]
        first, last = (sum(losses) / window for losses in ends)
        return TrainResult(self.best, first, last, self.history, self.guard.skipped, checkpoint)


def fit(
    config: ExperimentConfig,
    out_dir: str | Path,
    *,
    on_epoch: Callable[[int, Metrics], None] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train a network, with its results in ``out_dir``.

    Args:
        config: the experiment.
        out_dir: made if needed; an earlier run's files are replaced unless ``resume``.
        on_epoch: called with the epoch's number from 0 and its metrics (``train_loss``,
            ``val_loss`` and every term with the prefix ``train_`` or ``val_``), after the
            checkpoint is written; what it raises ends the training.
        resume: continue exactly after the last complete epoch of ``out_dir``, if there is one.
            The fields of TrainConfig in :data:`FREE_TO_CHANGE` may differ from the saved run's.
        quiet: print nothing.

    Raises:
        ConfigError: the configuration cannot be used, or differs from the run to continue.
        TrainingError: no step of an epoch had finite gradients.
    """
    out_dir, train = Path(out_dir), config.train
    device = resolve_device(train.device)
    devices = [torch.device(device.type, device.index or 0)] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(train.seed)
        trainer = Trainer(config, device)
        if resume and has_checkpoint(out_dir / "last"):
            trainer.restore(out_dir / "last")
        else:
            for name in ("last", "best"):
                remove_checkpoint(out_dir / name)
        out_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, out_dir / "config.json")
        done = trainer.epoch * len(trainer.groups)
        with RunLog(out_dir, total_steps=trainer.total_steps, done_steps=done, quiet=quiet) as log:
            if not _ended(trainer, train):
                report = run_checklist(config, trainer.net, trainer.data.validation[0])
                for line in report.lines:
                    log.say(line)
                log.record("checklist", {"ok": report.ok, "lines": report.lines})
                if not report.ok:
                    log.say("the checklist has failed lines (ok=False above): training goes on")
            log.start_clock()
            while not _ended(trainer, train):
                metrics = trainer.run_epoch(out_dir, log)
                if on_epoch is not None:
                    on_epoch(trainer.epoch - 1, metrics)
            return trainer.finish(out_dir, log)


def _ended(trainer: Trainer, train: TrainConfig) -> bool:
    return trainer.epoch >= train.epochs or trainer.stale_epochs >= train.patience
