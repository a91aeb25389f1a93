# SPDX-License-Identifier: Apache-2.0
"""Training of the localization network: :func:`fit`.

A run's folder holds ``config.json``, ``metrics.jsonl``, and the checkpoints ``last`` (weights and
everything needed to continue), ``last.previous`` (the one before it) and ``best`` (the weights with
the lowest validation loss).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from .checklist import run_checklist
from .checkpoint import CheckpointError, fall_back, has_checkpoint, remove_checkpoint
from .configs import ConfigError, ExperimentConfig, save_config
from .data import resolve_device
from .durable import remove_drafts
from .interrupts import DeferredInterrupt, Interrupted
from .locking import FolderLock
from .model import infer
from .progress import RunLog
from .trainer import FREE_TO_CHANGE, Metrics, Trainer, TrainingError, TrainResult, validate

__all__ = [
    "FREE_TO_CHANGE",
    "TrainResult",
    "Trainer",
    "TrainingError",
    "fit",
    "infer",
    "resolve_device",
    "validate",
]

RUN_LOCK = ".run.lock"
"""Held in a run's folder by the process that trains there."""


def fit(
    config: ExperimentConfig,
    out_dir: str | Path,
    *,
    on_epoch: Callable[[int, Metrics], None] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train a network, with its results in ``out_dir``.

    The first SIGINT or SIGTERM lets the step at hand finish, saves, and raises
    ``interrupts.Interrupted``; the second stops at once.

    Args:
        config: the experiment.
        out_dir: made if needed; an earlier run's files are replaced unless ``resume``.
        on_epoch: called with the epoch's number from 0 and its metrics (``train_loss``,
            ``val_loss`` and every term with the prefix ``train_`` or ``val_``), after the
            checkpoint is written; what it raises ends the training.
        resume: continue exactly where the checkpoint ``last`` of ``out_dir`` was saved, if there is
            one: after an epoch, or within it (``train.checkpoint_every``, or an interrupt). On the
            CPU the result is bitwise that of a run that was never stopped. The fields of
            TrainConfig in :data:`FREE_TO_CHANGE` may differ from the saved run's. A ``last`` that
            cannot be read is replaced by the one saved before it, with a warning.
        quiet: print nothing.

    Raises:
        ConfigError: the configuration cannot be used, differs from the run to continue, or another
            process is training in ``out_dir``.
        CheckpointError: no checkpoint of the run to continue can be read.
        OSError: a file cannot be written; names it. What was saved before is whole.
        TrainingError: no step of an epoch had finite gradients.
    """
    out_dir, device = Path(out_dir), resolve_device(config.train.device)
    devices = [torch.device(device.type, device.index or 0)] if device.type == "cuda" else []
    lock = FolderLock(out_dir, RUN_LOCK)
    if not lock.try_acquire():
        raise ConfigError(f"{out_dir}: another process is training there; use another folder")
    with lock, torch.random.fork_rng(devices=devices), DeferredInterrupt() as interrupt:
        remove_drafts(out_dir)
        torch.manual_seed(config.train.seed)
        trainer = Trainer(config, device)
        if resume and has_checkpoint(out_dir / "last"):
            _restore(trainer, out_dir / "last")
        else:
            for name in ("last", "best"):
                remove_checkpoint(out_dir / name)
        save_config(config, out_dir / "config.json")
        with RunLog(
            out_dir, total_steps=trainer.total_steps, done_steps=trainer.steps, quiet=quiet
        ) as log:
            if not _ended(trainer):
                _report_checklist(trainer, log)
            log.start_clock()
            while not _ended(trainer):
                metrics = trainer.run_epoch(
                    out_dir, log, lambda: _save_between_steps(trainer, out_dir, log, interrupt)
                )
                if on_epoch is not None:
                    on_epoch(trainer.epoch - 1, metrics)
                if interrupt.signum is not None and not _ended(trainer):
                    raise _interrupted(trainer, out_dir, interrupt.signum)
            return trainer.finish(out_dir, log)


def _ended(trainer: Trainer) -> bool:
    train = trainer.config.train
    return trainer.epoch >= train.epochs or trainer.stale_epochs >= train.patience


def _report_checklist(trainer: Trainer, log: RunLog) -> None:
    report = run_checklist(trainer.config, trainer.net, trainer.data.validation[0])
    for line in report.lines:
        log.say(line)
    log.record("checklist", {"ok": report.ok, "lines": report.lines})
    if not report.ok:
        log.say("the checklist has failed lines (ok=False above): training goes on")


def _restore(trainer: Trainer, last: Path) -> None:
    """Continue from ``last``, or where it cannot be read from the checkpoint saved before it.

    The steps in between are taken again, and are the same ones: nothing that a run writes after a
    save decides what comes after it.
    """
    try:
        trainer.restore(last)
    except CheckpointError as error:
        try:
            damaged = fall_back(last)
        except CheckpointError as second:
            raise CheckpointError(
                f"{error}; {second}: begin anew in this or another folder"
            ) from None
        warnings.warn(
            f"{error}; it is kept as {damaged}, and the run continues from the checkpoint saved "
            "before it",
            stacklevel=3,
        )
        trainer.restore(last)


def _save_between_steps(
    trainer: Trainer, out_dir: Path, log: RunLog, interrupt: DeferredInterrupt
) -> None:
    every = trainer.config.train.checkpoint_every
    if interrupt.signum is None and not (every and trainer.steps % every == 0):
        return
    log.sync()
    trainer.save(out_dir)
    if interrupt.signum is not None:
        raise _interrupted(trainer, out_dir, interrupt.signum)


def _interrupted(trainer: Trainer, out_dir: Path, signum: int) -> Interrupted:
    place = f"step {trainer.steps} of {trainer.total_steps} in {out_dir / 'last'}"
    return Interrupted(signum, f"saved after {place}")
