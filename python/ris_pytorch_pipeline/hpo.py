# SPDX-License-Identifier: Apache-2.0
"""Hyperparameter search with Optuna: ``python -m ris_pytorch_pipeline.hpo`` or ``ris hpo``.

Every trial trains a network through :func:`.train.fit`. Its value is the validation loss of the
checkpoint it kept, under the *base* configuration's loss weights: the weights a trial trains with
are searched, so its own loss is not comparable with another trial's. After each epoch the same
weighted sum of the validation terms goes to a median pruner.

A results folder holds ``study.db``, ``best.json`` and, per study, a folder with its own
``best.json`` and one folder per trial (configuration, metrics, checkpoints, ``trial.json``). The
first trial is the base configuration itself, moved into the search space where it lies outside.

Running a command again continues its study until ``n_trials`` trials are finished, and so do any
number of workers at once (:mod:`.search` is one of them, :mod:`.workers` starts several). A trial
whose worker died or was interrupted is marked failed; its parameters are tried again, from the last
checkpoint where there is one, unless they were interrupted too often. ``study.db`` is
``study.journal`` where several workers began the study (:mod:`.storage`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .configs import (
    ConfigError,
    DataConfig,
    ExperimentConfig,
    SimulationConfig,
    SystemConfig,
    from_dict,
)
from .search_space import SPACES
from .untrusted import SMALL, read_json

FORMAT = 1
MIN_GRACE = 2
"""Seconds: a worker beats four times in a grace period, and may be late."""


class HpoError(RuntimeError):
    """A search whose trials all failed, or whose checklist did."""


@dataclass(frozen=True)
class HpoOptions:
    """Search for hyperparameters with Optuna; run again to continue."""

    n_trials: int = 20
    """Trials that the study shall have finished in the end, those of earlier runs included."""
    epochs_per_trial: int = 5
    """Epochs of each trial."""
    space: Literal["wide", "narrow"] = "wide"
    """Search space: wide includes the network's size, narrow does not."""
    out: str = "results_hpo"
    """Results folder."""
    study: str | None = None
    """Name of the study; ris-<space> when left out."""
    storage: str | None = None
    """A file (*.db, SQLite: one worker; *.journal: several) or the URL of a database server; a file
    in the results folder when left out."""
    workers: int | None = None
    """Processes to start on this machine, each on the next device (auto: the next GPU); one per
    device when left out."""
    grace_period: float = 60.0
    """Seconds after which a trial whose worker is silent is given to another worker."""
    shards: str | None = None
    """Folder of shards to train on; scenes are simulated on the fly when left out."""
    train_samples: int = 2048
    """Training scenes per epoch (with shards: at most)."""
    val_samples: int = 256
    """Validation scenes, the same ones in every trial."""
    batch_size: int = 64
    """Scenes per training step."""
    seed: int = 0
    """Seed of the sampler, the scenes and the networks."""
    device: Annotated[str, tyro.conf.arg(aliases=("--devices",))] = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N, or several with commas."""
    system: SystemConfig = field(default_factory=SystemConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    base: tyro.conf.Suppress[ExperimentConfig] = field(default_factory=ExperimentConfig)
    """Everything that neither an option above nor the search decides."""

    def __post_init__(self) -> None:
        for name in ("n_trials", "epochs_per_trial", "train_samples", "val_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"hpo: {name} is {getattr(self, name)}, expected at least 1")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"hpo: workers is {self.workers}, expected at least 1")
        if not MIN_GRACE <= self.grace_period < math.inf:
            raise ConfigError(
                f"hpo: grace_period is {self.grace_period:g}, expected at least {MIN_GRACE} s"
            )
        if self.space not in SPACES:
            raise ConfigError(f"hpo: unknown space {self.space!r}, expected one of {list(SPACES)}")

    @property
    def name(self) -> str:
        """The study's name, also the name of its folder of trials."""
        return self.study or f"ris-{self.space}"

    @property
    def device_names(self) -> list[str]:
        """The devices that the workers are spread over."""
        return [name.strip() for name in self.device.split(",")]

    @property
    def folder(self) -> Path:
        """Where the study's trials lie."""
        return Path(self.out) / self.name


def base_config(options: HpoOptions) -> ExperimentConfig:
    """The configuration of a trial before its parameters are applied.

    With shards the system is the shards'. The warm-up is held to a fifth of a trial's steps: the
    trials are short, and none would reach its learning rate otherwise.
    """
    system = options.system
    if options.shards is not None:
        from .shards import ShardDataset

        stored = ShardDataset(options.shards).system
        if system not in (SystemConfig(), stored):
            raise ConfigError(
                f"{options.shards}: made for another system than the one configured; leave the "
                "system options out to use the shards' own"
            )
        system = stored
    data = DataConfig(options.shards, options.train_samples, options.val_samples)
    steps = options.epochs_per_trial * -(-options.train_samples // options.batch_size)
    train = dataclasses.replace(
        options.base.train,
        epochs=options.epochs_per_trial,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
        warmup_steps=min(options.base.train.warmup_steps, steps // 5),
    )
    return dataclasses.replace(
        options.base, system=system, simulation=options.simulation, data=data, train=train
    )


def load_best(path: str | Path) -> ExperimentConfig:
    """The configuration in a ``best.json``, checked field by field."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected the best.json of a search")
    best = read_json(path, SMALL, ConfigError)
    if not isinstance(best, dict) or best.get("format") != FORMAT or "config" not in best:
        raise ConfigError(f"{path}: not a best.json of this version (format {FORMAT})")
    return from_dict(ExperimentConfig, best["config"], f"{path}: config")


def checklist_passed(folder: Path) -> bool:
    """Whether the last checklist recorded in a run's ``metrics.jsonl`` passed."""
    with (folder / "metrics.jsonl").open() as stream:
        records = [record for record in map(json.loads, stream) if record["kind"] == "checklist"]
    return bool(records) and bool(records[-1]["ok"])


def run_worker(options: HpoOptions) -> list[int]:
    """Run trials on the one device of ``options`` until the study has all; which ones it ran.

    Raises:
        Interrupted: by a signal; the trial at hand is saved and free for another worker.
        HpoError: the storage failed.
    """
    return _work(options, summarised=False)


def _work(options: HpoOptions, *, summarised: bool) -> list[int]:
    from .interrupts import RaisedInterrupt
    from .search import Worker, open_study, summarise

    base = base_config(options)
    with RaisedInterrupt("between two trials"):
        # Bad data is refused before a study is made.
        worker = Worker(options, base)
        with open_study(options, base, 1) as shared:
            worker.run(shared)
            if summarised:
                ran = [trial for trial in shared.trials() if trial.number in worker.ran]
                summarise(shared, options, base, ran)
    return worker.ran


def run(options: HpoOptions) -> int:
    """Run or continue a search; returns 0, or raises :class:`HpoError`."""
    from .interrupts import Interrupted

    names = options.device_names
    count = options.workers or len(names)
    if count < len(names):
        raise ConfigError(f"hpo: {count} worker(s) leave devices of {options.device!r} unused")
    try:
        if count == 1:
            _work(dataclasses.replace(options, device=names[0]), summarised=True)
        else:
            from .workers import run_workers

            run_workers(options, names, count)
    except Interrupted as stop:
        stop.args = (f"{stop}; the same command goes on",)
        raise
    return 0


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["hpo", *sys.argv[1:]]))
