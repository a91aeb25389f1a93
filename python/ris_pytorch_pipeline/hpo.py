# SPDX-License-Identifier: Apache-2.0
"""Hyperparameter search with Optuna: ``python -m ris_pytorch_pipeline.hpo`` or ``ris hpo``.

Every trial trains a network through :func:`.train.fit`. Its value is the validation loss of the
checkpoint it kept, under the *base* configuration's loss weights: the weights a trial trains with
are searched, so its own loss is not comparable with another trial's. After each epoch the same
weighted sum of the validation terms goes to a median pruner.

A results folder holds ``study.db``, ``best.json`` and, per study, a folder with its own
``best.json`` and one folder per trial (configuration, metrics, checkpoints, ``trial.json``). The
first trial is the base configuration itself, moved into the search space where it lies outside.

Running a command again continues its study until ``n_trials`` trials are finished. A trial holds a
lock on its folder for as long as its process lives; one that is marked as running but whose lock
is free was interrupted: it is marked failed and its parameters are put back in the queue, unless
they were interrupted too often or none were drawn yet.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from .configs import (
    ConfigError,
    DataConfig,
    ExperimentConfig,
    SimulationConfig,
    SystemConfig,
    from_dict,
    to_dict,
)
from .durable import write_atomically
from .search_space import SPACES, apply_parameters, starting_point
from .study import SharedStudy
from .untrusted import SMALL, read_json

if TYPE_CHECKING:
    import optuna

    from .train import TrainResult

FORMAT = 1
QUEUED = ("its parameters are not tried again", "its parameters are queued again")
"""What became of an interrupted trial, by whether it was queued."""
OBJECTIVE = "validation loss of the kept checkpoint under the base configuration's loss weights"


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
    """Any Optuna storage URL; SQLite in the results folder when left out."""
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
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    system: SystemConfig = field(default_factory=SystemConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    base: tyro.conf.Suppress[ExperimentConfig] = field(default_factory=ExperimentConfig)
    """Everything that neither an option above nor the search decides."""

    def __post_init__(self) -> None:
        for name in ("n_trials", "epochs_per_trial", "train_samples", "val_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"hpo: {name} is {getattr(self, name)}, expected at least 1")
        if self.space not in SPACES:
            raise ConfigError(f"hpo: unknown space {self.space!r}, expected one of {list(SPACES)}")

    @property
    def name(self) -> str:
        """The study's name, also the name of its folder of trials."""
        return self.study or f"ris-{self.space}"

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


class _Search:
    """One run of the search."""

    def __init__(self, options: HpoOptions) -> None:
        from .data import open_scenes, resolve_device
        from .loss import TERMS

        self.options, self.base = options, base_config(options)
        self.space = SPACES[options.space]
        self.device = resolve_device(options.device, "--device")
        # The search changes nothing that the data depends on; bad data is refused before a study
        # is made.
        self.validation = open_scenes(self.base, self.device).validation
        self.weights = {f"val_{name}": getattr(self.base.loss, name) for name in TERMS}
        settings: dict[str, Any] = {"space": options.space, "config": to_dict(self.base)}
        for name in ("device", "covariance"):  # they change no value
            del settings["config"]["train"][name]
        self.where = "its storage" if options.storage else f"{options.out}/study.db"
        self.shared = SharedStudy(
            options.name,
            options.folder,
            storage=options.storage or Path(options.out) / "study.db",
            shared_storage=options.storage is not None,
            settings=settings,
            first=starting_point(self.space, self.base),
            seed=options.seed,
        )
        self.failures: list[str] = []
        self.unsound: list[int] = []
        self.ran = 0

    def run(self) -> None:
        """Run trials until the study has all of them; says what it finds and does."""
        shared, wanted = self.shared, self.options.n_trials
        for number, queued in shared.recover().items():
            print(f"trial {number} was interrupted: marked failed, {QUEUED[queued]}")
        done = shared.finished()
        if done:
            print(f"study {shared.name!r} has {done} finished trials, resuming ({self.where})")
        else:
            print(f"study {shared.name!r} is new ({self.where})")
        if done >= wanted:
            print(f"nothing left to run: --n_trials {wanted} is the total of finished trials")
        else:
            print(f"{wanted - done} of {wanted} trials to run on {self.device}", flush=True)
        for _ in range(wanted - done):
            asked = shared.ask(wanted)
            if asked is None:
                if shared.finished() < wanted:
                    print("the remaining trials are being run by other processes")
                break
            self.ran += 1
            trial, lock = asked
            with lock:
                try:
                    self._run_trial(trial)
                except KeyboardInterrupt:
                    queued = shared.interrupt(trial)
                    print(f"trial {trial.number} interrupted: {QUEUED[queued]}")
                    raise
            self._save_best()

    def _run_trial(self, trial: optuna.trial.Trial) -> None:
        import optuna

        folder, states = self.shared.trial_folder(trial.number), optuna.trial.TrialState
        started = time.monotonic()
        parameters = {dimension.path: dimension.suggest(trial) for dimension in self.space}
        record: dict[str, Any] = {"trial": trial.number, "parameters": parameters}
        print(f"trial {trial.number} of study {self.shared.name!r} in {folder}", flush=True)
        try:
            config = apply_parameters(self.base, parameters)
            result, terms = self._train(trial, config, folder)
        except optuna.TrialPruned:
            self.shared.study.tell(trial, state=states.PRUNED)
            record["state"] = "pruned"
            print(f"trial {trial.number} pruned: worse than the median at the same epoch")
        except Exception as error:
            # A trial may fail for reasons of its parameters (memory, divergence): the search goes
            # on, the trace stays beside the trial, and a run in which all fail exits with 1.
            self.shared.study.tell(trial, state=states.FAIL)
            (folder / "error.txt").write_text(traceback.format_exc())
            reason = f"{type(error).__name__}: {first_line(error)}"
            record |= {"state": "failed", "error": str(error)}
            self.failures.append(f"trial {trial.number} failed ({reason})")
            print(f"{self.failures[-1]}; trace in {folder / 'error.txt'}")
        else:
            self.shared.study.tell(trial, terms["total"])
            record |= {
                "state": "complete",
                "value": terms["total"],
                "terms": terms,
                "first_train_loss": result.first_train_loss,
                "last_train_loss": result.last_train_loss,
                "best_val_loss": result.best_val_loss,
                "skipped_steps": result.skipped_steps,
                "checkpoint": str(result.checkpoint),
            }
            print(
                f"trial {trial.number} complete: training loss {result.first_train_loss:.4f} -> "
                f"{result.last_train_loss:.4f}, validation loss {result.best_val_loss:.4f}, "
                f"objective {terms['total']:.4f}"
            )
        record["seconds"] = round(time.monotonic() - started, 2)
        write_atomically(folder / "trial.json", json.dumps(record, indent=2) + "\n")

    def _train(
        self, trial: optuna.trial.Trial, config: ExperimentConfig, folder: Path
    ) -> tuple[TrainResult, dict[str, float]]:
        """Train with pruning, then judge the kept checkpoint by the base configuration's loss."""
        import optuna

        from .checkpoint import load_checkpoint
        from .loss import LocalizationLoss
        from .train import fit, validate

        def report(epoch: int, metrics: dict[str, float]) -> None:
            terms = {name: metrics[name] for name, weight in self.weights.items() if weight > 0}
            trial.report(sum(self.weights[name] * value for name, value in terms.items()), epoch)
            if epoch + 1 < config.train.epochs and trial.should_prune():
                raise optuna.TrialPruned

        result = fit(config, folder, on_epoch=report)
        if not checklist_passed(folder):
            self.unsound.append(trial.number)
        net = load_checkpoint(result.checkpoint, device=self.device, expect=config.covariance).net
        form = config.train.covariance
        loss = LocalizationLoss(config.system, self.base.loss, config.covariance, form)
        terms = validate(net, loss, self.validation)
        if not math.isfinite(terms["total"]):
            raise HpoError(f"validation loss is {terms['total']}")
        return result, terms

    def _save_best(self) -> None:
        completed = self.shared.completed()
        if not completed:
            return
        best = min(completed, key=lambda t: t.value if t.value is not None else math.inf)
        config = apply_parameters(self.base, best.params)
        text = {
            "format": FORMAT,
            "study": self.shared.name,
            "trial": best.number,
            "value": best.value,
            "objective": OBJECTIVE,
            "folder": str(self.shared.trial_folder(best.number)),
            "config": to_dict(config),
        }
        for folder in (self.shared.folder, Path(self.options.out)):
            write_atomically(folder / "best.json", json.dumps(text, indent=2) + "\n")

    def summarise(self) -> None:
        """Print the outcome; raises :class:`HpoError` if there is none to be trusted."""
        out, completed = Path(self.options.out), self.shared.completed()
        if self.ran and len(self.failures) == self.ran:
            raise HpoError(f"every trial of this run failed; the last: {self.failures[-1]}")
        if not completed:
            raise HpoError(f"study {self.shared.name!r} has no completed trial")
        self._save_best()
        best = json.loads((self.shared.folder / "best.json").read_text())
        print(f"best of {self.shared.finished()} finished trials: trial {best['trial']}")
        print(f"  objective {best['value']:.4f} ({OBJECTIVE})")
        print(f"  results      {best['folder']}")
        print(f"  study        {self.where}")
        print(f"  configuration {out / 'best.json'} (ris train --from_hpo {out / 'best.json'})")
        if self.unsound:
            raise HpoError(f"the checklist failed in trial(s) {self.unsound}: see ok=False above")


def first_line(error: BaseException) -> str:
    """First line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "no message")


def checklist_passed(folder: Path) -> bool:
    """Whether the last checklist recorded in a run's ``metrics.jsonl`` passed."""
    with (folder / "metrics.jsonl").open() as stream:
        records = [record for record in map(json.loads, stream) if record["kind"] == "checklist"]
    return bool(records) and bool(records[-1]["ok"])


def run(options: HpoOptions) -> int:
    """Run or continue a search; returns 0, or raises :class:`HpoError`."""
    search = _Search(options)
    search.run()
    search.summarise()
    return 0


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["hpo", *sys.argv[1:]]))
