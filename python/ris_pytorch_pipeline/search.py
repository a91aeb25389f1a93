# SPDX-License-Identifier: Apache-2.0
"""One worker of a search: takes trials, trains, judges, reports, until the study has them all."""

from __future__ import annotations

import json
import math
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from . import hpo
from .checkpoint import CheckpointError, has_checkpoint, load_checkpoint
from .configs import ConfigError, ExperimentConfig, to_dict
from .continuation import carry_over, whole_records
from .data import open_scenes, resolve_device
from .durable import remove_drafts, write_atomically
from .hpo import HpoError, HpoOptions
from .interrupts import Interrupted
from .locking import FolderLock
from .loss import TERMS, LocalizationLoss
from .search_space import SPACES, apply_parameters, starting_point
from .shards import ShardError
from .slots import CONTINUES, ERROR, LEASE, UNSOUND
from .storage import StorageError, find_storage
from .study import SharedStudy, TakenOverError
from .untrusted import first_line

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from .train import TrainResult

STATES = optuna.trial.TrialState
AGAIN = ("other parameters are drawn", "its parameters are tried again")
"""What follows an interrupted trial, by whether its parameters are tried again."""
OBJECTIVE = "validation loss of the kept checkpoint under the base configuration's loss weights"


def open_study(options: HpoOptions, base: ExperimentConfig, workers: int) -> SharedStudy:
    """The study that ``options`` name, for as many workers on this machine."""
    out = Path(options.out)
    storage = find_storage(options.storage, out, workers)
    if options.storage is None:
        out.mkdir(parents=True, exist_ok=True)
    return SharedStudy(
        options.name,
        options.folder,
        storage=storage,
        settings={"space": options.space, "config": to_dict(base)},
        first=starting_point(SPACES[options.space], base),
        seed=options.seed,
        grace=options.grace_period,
    )


def save_best(shared: SharedStudy, base: ExperimentConfig, out: Path) -> dict[str, Any] | None:
    """Write ``best.json`` of the study and of the results folder; returns what it holds.

    Workers that share the folder write one after another, each what the study holds by then.
    """
    with FolderLock(shared.folder, ".best.lock"):
        remove_drafts(shared.folder)
        completed = shared.completed()
        if not completed:
            return None
        best = min(completed, key=lambda t: t.value if t.value is not None else math.inf)
        text = {
            "format": hpo.FORMAT,
            "study": shared.name,
            "trial": best.number,
            "value": best.value,
            "objective": OBJECTIVE,
            "folder": str(_place(shared, best)),
            "config": to_dict(apply_parameters(base, best.params)),
        }
        for folder in (shared.folder, out):
            write_atomically(folder / "best.json", json.dumps(text, indent=2) + "\n")
        return text


def _place(shared: SharedStudy, trial: FrozenTrial) -> Path:
    """Folder of a trial, which a worker with another results folder may have run."""
    own = shared.trial_folder(trial.number)
    held = trial.user_attrs.get(LEASE, {}).get("folder", str(own.absolute()))
    return own if held == str(own.absolute()) else Path(held)


def summarise(
    shared: SharedStudy, options: HpoOptions, base: ExperimentConfig, ran: list[FrozenTrial]
) -> None:
    """Print the outcome, of which the trials ``ran`` are this run's.

    Raises:
        HpoError: there is none to be trusted.
    """
    failures = [t for t in ran if t.state == STATES.FAIL and ERROR in t.user_attrs]
    ended = [t for t in ran if t in failures or t.state in (STATES.COMPLETE, STATES.PRUNED)]
    if ended and len(failures) == len(ended):
        last = failures[-1]
        raise HpoError(
            f"every trial of this run failed; the last: trial {last.number} failed "
            f"({last.user_attrs[ERROR]})"
        )
    best = save_best(shared, base, Path(options.out))
    if best is None:
        raise HpoError(f"study {shared.name!r} has no completed trial")
    file = Path(options.out) / "best.json"
    print(f"best of {len(shared.finished())} finished trials: trial {best['trial']}")
    print(f"  objective {best['value']:.4f} ({OBJECTIVE})")
    print(f"  results      {best['folder']}")
    print(f"  study        {shared.storage}")
    print(f"  configuration {file} (ris train --from_hpo {file})")
    unsound = [t.number for t in ran if UNSOUND in t.user_attrs]
    if unsound:
        raise HpoError(f"the checklist failed in trial(s) {unsound}: see ok=False above")


class Worker:
    """Runs the trials of a study on one device.

    Args:
        options: of the search; their device is a single one.
        base: :func:`.hpo.base_config` of them.
    """

    shared: SharedStudy
    """The study at hand."""

    def __init__(self, options: HpoOptions, base: ExperimentConfig) -> None:
        self.options, self.base = options, base
        self.space = SPACES[options.space]
        self.device = resolve_device(base.train.device, "--device")
        # The search changes nothing that the data depends on.
        self.validation = open_scenes(base, self.device).validation
        self.weights = {f"val_{name}": getattr(base.loss, name) for name in TERMS}
        self.ran: list[int] = []
        """Numbers of the trials that it took."""
        self.signum: int | None = None
        """A signal that came when the training at hand had no step left to stop at."""

    def run(self, shared: SharedStudy) -> None:
        """Run trials until the study has all of them; says what it finds and does."""
        self.shared, wanted = shared, self.options.n_trials
        self._recover()
        done = len(shared.finished())
        if done:
            print(f"study {shared.name!r} has {done} finished trials, resuming ({shared.storage})")
        else:
            print(f"study {shared.name!r} is new ({shared.storage})")
        if done >= wanted:
            print(f"nothing left to run: --n_trials {wanted} is the total of finished trials")
        else:
            print(f"{wanted - done} of {wanted} trials to run on {self.device}", flush=True)
        waiting = idle = False
        while True:
            asked = shared.ask(wanted)
            # A trial that another worker lets go after this one has asked is seen the second time.
            was_idle, idle = idle, asked is None and not shared.running()
            if asked is not None:
                waiting = False
                trial, lock = asked
                self._hold(trial, lock)
                if self.signum is not None:
                    raise Interrupted(self.signum, f"trial {trial.number} is over")
            elif len(shared.finished()) >= wanted or (idle and was_idle):
                break
            elif idle:
                pass
            elif not waiting:
                waiting = True
                print("others run the remaining trials; waiting, in case one dies", flush=True)
            else:
                shared.wait()
            self._recover()

    def _recover(self) -> None:
        for number, again in self.shared.recover().items():
            print(f"trial {number} was interrupted: marked failed, {AGAIN[again]}", flush=True)

    def _hold(self, trial: Trial, lock: FolderLock) -> None:
        """Run a trial whose folder is locked."""
        self.ran.append(trial.number)
        with lock:
            try:
                self._run_trial(trial)
            except KeyboardInterrupt:
                print(f"trial {trial.number} {self._let_go(trial, 'interrupted')}")
                raise
            except (OSError, ShardError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                how = f"{self._let_go(trial, 'cannot go on')} ({first_line(error)})"
                raise HpoError(f"trial {trial.number} {how}; the same command goes on") from error
            except (TakenOverError, optuna.exceptions.UpdateFinishedTrialError):
                print(
                    f"trial {trial.number} was given to another worker, because this one was "
                    f"silent for {self.options.grace_period:g} s: left to it"
                )
                return
            finally:
                self.shared.let_go()
        save_best(self.shared, self.base, Path(self.options.out))

    def _let_go(self, trial: Trial, how: str) -> str:
        """Give up a trial that is to be tried again, unless it was told already; says so."""
        again = self.shared.interrupt(trial)
        return "is over" if again is None else f"{how}: {AGAIN[again]}"

    def _run_trial(self, trial: Trial) -> None:
        shared, number = self.shared, trial.number
        folder = shared.trial_folder(number)
        started = time.monotonic()
        parameters = {
            d.path: shared.steadily(lambda d=d: d.suggest(trial))  # type: ignore[misc]
            for d in self.space
        }
        record: dict[str, Any] = {"trial": number, "parameters": parameters}
        print(f"trial {number} of study {shared.name!r} in {folder}", flush=True)
        notes: dict[str, Any] = {}
        try:
            config = apply_parameters(self.base, parameters)
            result, terms = self._train(trial, config, folder, notes)
        except optuna.TrialPruned:
            shared.tell(trial, STATES.PRUNED, None, notes)
            record["state"] = "pruned"
            print(f"trial {number} pruned: worse than the median at the same epoch")
        except (OSError, ShardError, StorageError, TakenOverError):
            raise  # no fault of its parameters
        except optuna.exceptions.UpdateFinishedTrialError:
            raise
        except Exception as error:
            # A trial may fail for reasons of its parameters (memory, divergence): the search goes
            # on, the trace stays beside the trial, and a run in which all fail exits with 1.
            (folder / "error.txt").write_text(traceback.format_exc())
            why = f"{type(error).__name__}: {first_line(error)}"
            shared.tell(trial, STATES.FAIL, None, notes | {ERROR: why})
            record |= {"state": "failed", "error": str(error)}
            print(f"trial {number} failed ({why}); trace in {folder / 'error.txt'}")
        else:
            shared.tell(trial, STATES.COMPLETE, terms["total"], notes)
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
                f"trial {number} complete: training loss {result.first_train_loss:.4f} -> "
                f"{result.last_train_loss:.4f}, validation loss {result.best_val_loss:.4f}, "
                f"objective {terms['total']:.4f}"
            )
        record["seconds"] = round(time.monotonic() - started, 2)
        write_atomically(folder / "trial.json", json.dumps(record, indent=2) + "\n")

    def _train(
        self, trial: Trial, config: ExperimentConfig, folder: Path, notes: dict[str, Any]
    ) -> tuple[TrainResult, dict[str, float]]:
        """Train with pruning, then judge the kept checkpoint by the base configuration's loss."""
        from .train import fit, validate

        reported: set[int] = set()

        def note(epoch: int, metrics: dict[str, Any]) -> None:
            if epoch in reported:
                return
            reported.add(epoch)
            terms = {name: metrics[name] for name, weight in self.weights.items() if weight > 0}
            value = sum(
                self.weights[name] * (math.nan if term is None else term)
                for name, term in terms.items()
            )
            self.shared.steadily(lambda: trial.report(value, epoch))

        def report(epoch: int, metrics: dict[str, float]) -> None:
            note(epoch, metrics)
            last = epoch + 1 == config.train.epochs
            if not last and self.shared.steadily(trial.should_prune):
                raise optuna.TrialPruned

        resume = self._continue(trial, folder)
        if resume:
            for record in whole_records(folder, "epoch"):
                note(record["epoch"] - 1, record)
        result = fit(config, folder, on_epoch=report, resume=resume)
        self.signum = result.signum
        if not hpo.checklist_passed(folder):
            notes[UNSOUND] = True
        net = load_checkpoint(result.checkpoint, device=self.device, expect=config.covariance).net
        form = config.train.covariance
        loss = LocalizationLoss(config.system, self.base.loss, config.covariance, form)
        terms = validate(net, loss, self.validation)
        if not math.isfinite(terms["total"]):
            raise HpoError(f"validation loss is {terms['total']}")
        return result, terms

    def _continue(self, trial: Trial, folder: Path) -> bool:
        """Fetch the last checkpoint of the trial's interrupted attempts; whether there is one."""
        for place in trial.user_attrs[CONTINUES]:
            source = Path(place)
            if not has_checkpoint(source / "last"):
                continue
            try:
                problems = carry_over(source, folder, self.device.type)
            except (CheckpointError, ConfigError) as error:
                print(f"trial {trial.number} starts anew: {first_line(error)}")
                continue
            for problem in problems:
                print(f"trial {trial.number}: {problem}; the one saved before it is used")
            print(f"trial {trial.number} goes on from the last checkpoint in {source}")
            return True
        return False
