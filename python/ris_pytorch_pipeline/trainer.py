# SPDX-License-Identifier: Apache-2.0
"""One training run: its moving parts, their saved form, a step, an epoch.

Everything that decides what comes next (weights, optimizer, schedule, scaler, averages, random
streams, place in the data, counters) is in :meth:`Trainer.state_dict`, so that a run continued from
a checkpoint reaches bitwise the parameters of a run that was never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import (
    CheckpointError,
    config_differences,
    load_checkpoint,
    save_checkpoint,
)
from .configs import ConfigError, ExperimentConfig
from .data import open_scenes
from .distributed import Processes
from .loss import LocalizationLoss
from .model import LocalizationNet, infer
from .optim import (
    StepGuard,
    StepReport,
    WeightAverage,
    build_optimizer,
    load_optimizer,
    load_schedule,
    warmup_cosine,
)
from .outcome import Metrics, TrainResult, validate
from .progress import RunLog
from .simulate import Scenes

FREE_TO_CHANGE = {
    "epochs", "patience", "log_every", "checkpoint_every", "device", "covariance",
    "process_timeout",
}  # fmt: skip
"""Fields of TrainConfig that may differ when a run is continued."""

LOADERS = {"optimizer": load_optimizer, "scheduler": load_schedule}
"""For the parts whose own ``load_state_dict`` takes what it is given unseen."""


class TrainingError(RuntimeError):
    """A training that cannot go on."""


class Trainer:
    """The moving parts of one run, and their saved form; in several processes, one's own."""

    def __init__(
        self, config: ExperimentConfig, device: torch.device, processes: Processes | None = None
    ) -> None:
        train = config.train
        self.config, self.device = config, device
        self.processes = processes or Processes(device)
        self.data = open_scenes(config, device, self.processes.share)
        self.net = LocalizationNet(config.system, config.model, config.covariance).to(device)
        self.processes.copy_from_leader(self.net)
        self.loss = LocalizationLoss(
            config.system, config.loss, config.covariance, train.covariance
        )
        sizes, group = self.data.batch_sizes, train.accumulate
        self.groups = [sizes[i : i + group] for i in range(0, len(sizes), group)]
        self.total_steps = train.epochs * len(self.groups)
        parameter_groups = self.net.parameter_groups()
        self.parameters = [p for group in parameter_groups.values() for p in group]
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
        # Of the present epoch: steps tried, scenes of those taken, sums of their loss terms.
        self.epoch_steps = self.epoch_scenes = 0
        self.epoch_sums: dict[str, Tensor] = {}

    @property
    def steps(self) -> int:
        """Steps tried so far, of all epochs."""
        return self.epoch * len(self.groups) + self.epoch_steps

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
        "epoch_steps", "epoch_scenes", "epoch_sums",
    )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything but the network's weights; tensors and plain values only."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state["counters"] = {name: getattr(self, name) for name in self._COUNTERS}
        state["skipped"], state["device"] = self.guard.skipped, self.device.type
        state["random"] = {"cpu": self.processes.gather(torch.get_rng_state())}
        if self.device.type == "cuda":
            own = torch.cuda.get_rng_state(self.device)
            state["random"]["cuda"] = self.processes.gather(own)
        return state

    def restore(self, folder: Path) -> None:
        """Continue from the checkpoint in ``folder``.

        With dropout, of which every process draws its own, it takes as many processes as before.

        Raises:
            ConfigError: the checkpoint is of another experiment, or of another kind of device.
            CheckpointError: it cannot be read, or its state is not one of this training.
        """
        saved = load_checkpoint(folder, device=self.device)
        kept = {name: getattr(saved.config.train, name) for name in FREE_TO_CHANGE}
        comparable = dataclasses.replace(
            self.config, train=dataclasses.replace(self.config.train, **kept)
        )
        device = saved.state.get("device", self.device.type)
        if device != self.device.type:
            raise ConfigError(
                f"{folder}: a run on {device} cannot continue on "
                f"{self.device.type}, whose random streams differ; set train.device"
            )
        differences = config_differences(saved.config, comparable)
        if differences:
            raise ConfigError(
                f"{folder}: cannot continue with another configuration (saved -> wanted): "
                f"{', '.join(differences)}; use the saved one or another output folder"
            )
        self.net.load_state_dict(saved.net.state_dict())
        try:
            streams = self._streams(saved.state["random"], folder)
            self._take(saved.state, streams)
        except ConfigError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise CheckpointError(
                f"{folder}: its state is not one of this training ({reason})"
            ) from error

    def _streams(self, random: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
        """This process's random streams of those that were saved."""
        states = {name: torch.atleast_2d(state.cpu()) for name, state in random.items()}
        count, processes = len(states["cpu"]), self.processes
        if count != processes.size and self.config.model.dropout > 0:
            raise ConfigError(
                f"{folder}: saved by {count} process(es) with a random stream of dropout each; "
                f"continue with as many, not {processes.size}"
            )
        # Clones, because PyTorch reads a state as if it began its memory.
        return {name: rows[processes.rank % count].clone() for name, rows in states.items()}

    def _take(self, state: dict[str, Any], streams: dict[str, Tensor]) -> None:
        for name, part in self._parts().items():
            load = LOADERS.get(name, type(part).load_state_dict)
            load(part, state[name])
        for name in self._COUNTERS:
            value, present = state["counters"][name], getattr(self, name)
            if type(value) is not type(present) or (isinstance(value, int) and value < 0):
                raise ValueError(f"{name} is a {type(value).__name__} that cannot be")
            setattr(self, name, value)
        if self.epoch_steps >= len(self.groups):
            raise ValueError(f"step {self.epoch_steps} of {len(self.groups)} in an epoch")
        self.guard.skipped = int(state["skipped"])
        torch.set_rng_state(streams["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(streams["cuda"], self.device)

    def train_step(self, batches: list[Scenes]) -> tuple[StepReport, dict[str, Tensor]]:
        """One step over the batches of an accumulation group; returns the terms' means too.

        In several processes the batches are this one's shares, and the step is over all.
        """
        samples = sum(map(len, batches))
        means: dict[str, Tensor] = dict.fromkeys(self.loss.names, torch.zeros(()))
        for scenes in (scenes for scenes in batches if len(scenes)):
            share = len(scenes) / samples
            with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
                inference = infer(self.net, scenes)
            terms = self.loss(inference, scenes)
            torch.autograd.backward(self.guard.scaler.scale(terms["total"] * share))
            for name, value in terms.items():
                means[name] = means[name] + value.detach() * share
        means = self.processes.reduce_step(self.parameters, means, samples)
        return self.guard(means["total"]), means

    def train_epoch(self, log: RunLog, between_steps: Callable[[], None]) -> Metrics:
        """The steps that are left of the present epoch; returns the means over its real steps.

        ``between_steps`` is called after every step but the last; what it raises ends the epoch.
        """
        self.net.train()
        train = self.config.train
        label, rate = f"{self.epoch + 1}/{train.epochs}", self.guard.scheduler
        with contextlib.closing(self.data.epoch()) as batches:
            for group in self.groups[self.epoch_steps :]:
                lr = float(rate.get_last_lr()[0])
                report, terms = self.train_step([next(batches) for _ in group])
                values = {"loss": report.loss, "lr": lr}
                if report.stepped:
                    self._count(sum(group), report.loss, terms)
                self.epoch_steps += 1
                number, last = self.epoch_steps, self.epoch_steps == len(self.groups)
                log.advance(
                    label, values, show=number % train.log_every == 0 or number == 1 or last
                )
                if not report.stepped:
                    self._report_skip(log, report)
                if not last:
                    between_steps()
        if not self.epoch_scenes:
            raise TrainingError(
                f"no step of epoch {self.epoch + 1} had finite gradients ({self.guard.skipped} "
                "skipped): check the data for non-finite values, or lower the learning rates"
            )
        means = (torch.stack(list(self.epoch_sums.values())) / self.epoch_scenes).tolist()
        return {f"train_{name}": v for name, v in zip(self.epoch_sums, means, strict=True)}

    def _count(self, scenes: int, loss: float, terms: dict[str, Tensor]) -> None:
        """Take a real step into the sums of its epoch and the losses of the run's ends."""
        self.epoch_scenes += scenes
        for name, value in terms.items():
            self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + value * scenes
        every = self.config.train.log_every
        if len(self.first_losses) < every:
            self.first_losses.append(loss)
        self.last_losses = [*self.last_losses, loss][-every:]

    def _report_skip(self, log: RunLog, report: StepReport) -> None:
        norms = {f"grad_{name}": value for name, value in report.norms.items()}
        values = {"loss": report.loss, **norms, "skipped_steps": self.guard.skipped}
        log.record("skipped", values)
        shown = " ".join(f"{name}={value:.3g}" for name, value in values.items())
        log.say(f"step {log.done_steps} skipped, nothing changed: non-finite among {shown}")

    def evaluated(self) -> tuple[str, LocalizationNet]:
        """The weights that validation and the best checkpoint use, and their name."""
        return ("model", self.net) if self.ema is None else ("ema", self.ema.module)

    def keep_if_best(self, folder: Path, weights: str, net: LocalizationNet, value: float) -> bool:
        """Save ``net`` as the best checkpoint if its validation loss is the lowest so far."""
        if not value < self.best:
            return False
        self.best = value
        state = {"epoch": self.epoch, "val_loss": value, "weights": weights}
        self._write(folder, net, state)
        return True

    def save(self, out_dir: Path) -> None:
        """Save everything as the checkpoint ``last``, and keep the one before it."""
        self._write(out_dir / "last", self.net, self.state_dict(), keep_previous=True)

    def _write(
        self,
        folder: Path,
        net: LocalizationNet,
        state: dict[str, Any],
        *,
        keep_previous: bool = False,
    ) -> None:
        """The leader saves; every process goes on when it is on the disk."""
        if self.processes.leader:
            save_checkpoint(folder, self.config, net, state, keep_previous=keep_previous)
        self.processes.synchronise()

    def validate(self, net: LocalizationNet) -> Metrics:
        """The metrics of ``net`` on the validation set."""
        return validate(net, self.loss, self.data.validation, self.processes)

    def run_epoch(
        self, out_dir: Path, log: RunLog, between_steps: Callable[[], None] = lambda: None
    ) -> Metrics:
        """Train, validate and save one epoch, or what is left of it."""
        metrics = self.train_epoch(log, between_steps)
        weights, net = self.evaluated()
        metrics |= {f"val_{name}": value for name, value in self.validate(net).items()}
        metrics["train_loss"], metrics["val_loss"] = metrics["train_total"], metrics["val_total"]
        metrics["skipped_steps"] = float(self.guard.skipped)
        self.epoch, self.epoch_steps, self.epoch_scenes, self.epoch_sums = self.epoch + 1, 0, 0, {}
        self.processes.require_same_weights(self.net)
        better = self.keep_if_best(out_dir / "best", weights, net, metrics["val_loss"])
        self.stale_epochs = 0 if better else self.stale_epochs + 1
        self.history.append(metrics)
        # First the record: a run killed before the save repeats the epoch and drops it.
        log.record("epoch", {"epoch": self.epoch, **metrics})
        log.sync()
        self.save(out_dir)
        log.say(
            f"epoch {self.epoch}/{self.config.train.epochs}  train loss "
            f"{metrics['train_loss']:.4f}  validation loss {metrics['val_loss']:.4f} "
            f"({weights} weights)  skipped steps {self.guard.skipped}"
        )
        return metrics

    def finish(self, out_dir: Path, log: RunLog) -> TrainResult:
        """Validate the SWA weights, which may be the best, and sum up."""
        if self.swa is not None and self.swa.count:
            value = self.validate(self.swa.module)["total"]
            better = self.keep_if_best(out_dir / "best", "swa", self.swa.module, value)
            log.record("swa", {"val_loss": value, "updates": self.swa.count})
            log.say(f"SWA weights: validation loss {value:.4f}{' (best)' if better else ''}")
        checkpoint = out_dir / ("best" if math.isfinite(self.best) else "last")
        # The two windows share no step, so that a short run shows its progress too.
        window = max(1, min(len(self.first_losses), self.real_steps // 2))
        ends = self.first_losses[:window], self.last_losses[-window:]
        first, last = (sum(losses) / window for losses in ends)
        return TrainResult(self.best, first, last, self.history, self.guard.skipped, checkpoint)
