# SPDX-License-Identifier: Apache-2.0
"""Training of the localization network: :func:`fit`.

A run's folder holds ``config.json``, ``metrics.jsonl``, and the checkpoints ``last`` (weights and
everything needed to continue), ``last.previous`` (the one before it) and ``best`` (the weights with
the lowest validation loss).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from .checklist import run_checklist
from .checkpoint import (
    CheckpointError,
    fall_back,
    has_checkpoint,
    load_checkpoint,
    remove_checkpoint,
)
from .configs import ConfigError, ExperimentConfig, save_config
from .data import resolve_device
from .distributed import LostProcessError, training_processes
from .durable import remove_drafts
from .interrupts import DeferredInterrupt, Interrupted
from .locking import FolderLock
from .model import infer
from .outcome import Metrics, TrainResult, validate
from .progress import RunLog
from .trainer import FREE_TO_CHANGE, Trainer, TrainingError

__all__ = [
    "FREE_TO_CHANGE",
    "LostProcessError",
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
    ``interrupts.Interrupted``; the second stops at once. After the last step it is noted in the
    result.

    Called in every process that ``torchrun`` started, it is one training: each batch is divided
    among the processes, all take the same steps, and rank 0 alone writes to ``out_dir``, which all
    can read, and prints. A signal to one stops all after the same step, and only the first counts.

    Args:
        config: the experiment.
        out_dir: made if needed; an earlier run's files are replaced unless ``resume``.
        on_epoch: called with the epoch's number from 0 and its metrics (``train_loss``,
            ``val_loss`` and every term with the prefix ``train_`` or ``val_``), after the
            checkpoint is written, in every process; what it raises ends the training.
        resume: continue exactly where the checkpoint ``last`` of ``out_dir`` was saved, if there is
            one: after an epoch, or within it (``train.checkpoint_every``, or an interrupt). On the
            CPU the result is bitwise that of a run that was never stopped, with as many processes.
            Another number of them takes the same scenes. The fields of TrainConfig in
            :data:`FREE_TO_CHANGE` may differ from the saved run's. A ``last`` that cannot be read
            is replaced by the one saved before it, with a warning.
        quiet: print nothing.

    Raises:
        ConfigError: the configuration cannot be used, differs from the run to continue, or another
            process is training in ``out_dir``.
        CheckpointError: no checkpoint of the run to continue can be read.
        OSError: a file cannot be written; names it. What was saved before is whole.
        TrainingError: no step of an epoch had finite gradients.
        LostProcessError: another process of the training ended, failed, or did not answer within
            ``train.process_timeout``.
    """
    out_dir = Path(out_dir)
    # Signals are not deferred before the processes have met: until then nothing would heed them.
    with training_processes(config) as processes, contextlib.ExitStack() as stack:
        device = processes.device
        if processes.leader:
            lock = FolderLock(out_dir, RUN_LOCK)
            if not lock.try_acquire():
                raise ConfigError(
                    f"{out_dir}: another process is training there; use another folder"
                )
            stack.enter_context(lock)
            remove_drafts(out_dir)
        forked = [torch.device(device.type, device.index or 0)] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=forked))
        interrupt = DeferredInterrupt(patient=processes.size > 1)
        processes.interrupt = stack.enter_context(interrupt)
        torch.manual_seed(config.train.seed)
        trainer = Trainer(config, device, processes)
        processes.seed_streams(config.train.seed)
        _begin(trainer, out_dir, resume)
        log = stack.enter_context(
            RunLog(
                out_dir if processes.leader else None,
                total_steps=trainer.total_steps,
                done_steps=trainer.steps,
                quiet=quiet,
            )
        )
        if processes.leader and not _ended(trainer):
            _report_checklist(trainer, log)
        log.start_clock()
        while not _ended(trainer):
            metrics = trainer.run_epoch(
                out_dir, log, lambda: _save_between_steps(trainer, out_dir, log)
            )
            if processes.signum is not None and not _ended(trainer):
                raise _interrupted(trainer, out_dir, processes.signum)
            if on_epoch is not None:
                _tell(on_epoch, trainer, out_dir, metrics)
        result = trainer.finish(out_dir, log)
    return dataclasses.replace(result, signum=processes.signum)


def _tell(
    on_epoch: Callable[[int, Metrics], None], trainer: Trainer, out_dir: Path, metrics: Metrics
) -> None:
    """Call ``on_epoch``; where it ends the training, a signal that came is still the reason."""
    try:
        on_epoch(trainer.epoch - 1, metrics)
    except Exception as error:
        signum = trainer.processes.signum
        if signum is None:
            raise
        raise _interrupted(trainer, out_dir, signum) from error


def _begin(trainer: Trainer, out_dir: Path, resume: bool) -> None:
    """Continue the saved run, or make way for a new one."""
    processes = trainer.processes
    if processes.leader_decides(resume and has_checkpoint(out_dir / "last")):
        _restore(trainer, out_dir / "last")
    elif processes.leader:
        for name in ("last", "best"):
            remove_checkpoint(out_dir / name)
    if processes.leader:
        save_config(trainer.config, out_dir / "config.json")


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
    save decides what comes after it. Of several processes the leader finds out what is there.
    """
    if trainer.processes.leader:
        _restore_readable(trainer, last)
    trainer.processes.synchronise()
    if not trainer.processes.leader:
        trainer.restore(last)
    lost = trainer.processes.leader and _best_is_lost(trainer, last.with_name("best"))
    if trainer.processes.leader_decides(lost):
        trainer.best = math.inf


def _best_is_lost(trainer: Trainer, best: Path) -> bool:
    if not math.isfinite(trainer.best):
        return False
    try:
        # A network that is made draws its weights, and the streams were restored already.
        with torch.random.fork_rng(devices=[]):
            load_checkpoint(best)
    except ValueError as error:
        warnings.warn(
            f"{error}; the next epoch's weights replace it, whatever their validation loss",
            stacklevel=4,
        )
        return True
    return False


def _restore_readable(trainer: Trainer, last: Path) -> None:
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


def _save_between_steps(trainer: Trainer, out_dir: Path, log: RunLog) -> None:
    every, signum = trainer.config.train.checkpoint_every, trainer.processes.signum
    if signum is None and not (every and trainer.steps % every == 0):
        return
    log.sync()
    trainer.save(out_dir)
    if signum is not None:
        raise _interrupted(trainer, out_dir, signum)


def _interrupted(trainer: Trainer, out_dir: Path, signum: int) -> Interrupted:
    place = f"step {trainer.steps} of {trainer.total_steps} in {out_dir / 'last'}"
    return Interrupted(signum, f"saved after {place}")
