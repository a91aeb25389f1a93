# SPDX-License-Identifier: Apache-2.0
"""An Optuna study that several runs, one after another or at once, work on.

A trial's folder is locked by the process that runs it. A trial that is marked as running although
nobody holds its lock was interrupted; :meth:`SharedStudy.recover` marks it failed and puts its
parameters back in the queue. Trials of workers on other machines, which have no folder here, are
left alone.
"""

from __future__ import annotations

import json
import sqlite3
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configs import ConfigError
from .locking import FolderLock

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial, TrialState

MAX_INTERRUPTIONS = 3
"""Parameters whose trials were interrupted this often are given up."""
SETTINGS, INTERRUPTIONS, QUEUED = "settings", "interruptions", "queued"


def _sqlite(path: Path) -> optuna.storages.RDBStorage:
    """Storage in the SQLite file ``path``, whatever its name: a URL would end at a ``?`` in it."""
    import optuna

    connect = partial(sqlite3.connect, path.absolute(), check_same_thread=False)
    return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [line for n in names for line in _differences(old.get(n), new.get(n), f"{key}.{n}")]
    return [] if old == new else [f"{key[1:]} {old!r} -> {new!r}"]


class SharedStudy:
    """A study with its folder of trials.

    Args:
        name: of the study.
        folder: where its trials' folders lie.
        storage: Optuna storage URL, or the path of a SQLite file.
        shared_storage: whether workers without access to ``folder`` may use the storage.
        settings: what all trials have in common; a study made with others is refused, because its
            values could not be compared.
        first: parameters of the first trial of a new study.
        seed: of the sampler.

    Raises:
        ConfigError: the storage cannot be opened, or the study was made with other settings.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        storage: str | Path,
        shared_storage: bool,
        settings: dict[str, Any],
        first: dict[str, Any],
        seed: int,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.name, self.folder, self._shared_storage = name, folder, shared_storage
        self._seed = seed
        self._states = optuna.trial.TrialState
        folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(folder):
            try:
                self.study: optuna.Study = optuna.create_study(
                    study_name=name,
                    storage=storage if isinstance(storage, str) else _sqlite(storage),
                    direction="minimize",
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
                    load_if_exists=True,
                )
                trials = self.study.get_trials(deepcopy=False)
            except Exception as error:
                # Every database driver has exceptions of its own; all mean the same to the user.
                reason = str(error).strip().split("\n")[0]
                raise ConfigError(
                    f"study {name!r}: its storage cannot be opened "
                    f"({type(error).__name__}: {reason})"
                ) from error
            self._check_settings(settings)
            if not trials:
                self._enqueue(first, 0)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        saved = self.study.user_attrs.get(SETTINGS)
        if saved is None:
            self.study.set_user_attr(SETTINGS, json.dumps(settings))
            return
        differences = _differences(json.loads(saved), json.loads(json.dumps(settings)))
        if differences:
            shown = ", ".join(differences[:6]) + (", ..." if len(differences) > 6 else "")
            raise ConfigError(
                f"study {self.name!r} was made with other settings (study -> now): {shown}; its "
                "values cannot be compared: use the same settings, or another --study or --out"
            )

    def trial_folder(self, number: int) -> Path:
        """Where trial ``number`` keeps its files."""
        return self.folder / f"trial_{number:04d}"

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def finished(self) -> int:
        """Number of completed and pruned trials."""
        return len(self._trials(self._states.COMPLETE, self._states.PRUNED))

    def completed(self) -> list[FrozenTrial]:
        """Trials that have a value."""
        return self._trials(self._states.COMPLETE)

    def _interrupted(self, number: int) -> bool:
        folder = self.trial_folder(number)
        if folder.is_dir():
            return not FolderLock.is_held(folder)
        return not self._shared_storage

    def recover(self) -> dict[int, bool]:
        """Fail every interrupted trial; returns their numbers and whether each was requeued."""
        with FolderLock(self.folder):
            stale = [t for t in self._trials(self._states.RUNNING) if self._interrupted(t.number)]
            return {t.number: self._requeue(t.number, t.params, t.user_attrs) for t in stale}

    def interrupt(self, trial: Trial) -> bool:
        """Fail a trial that is being interrupted; returns whether it was requeued."""
        return self._requeue(trial.number, trial.params, trial.user_attrs)

    def _requeue(self, number: int, params: dict[str, Any], attrs: dict[str, Any]) -> bool:
        """Fail a trial and put its parameters, if it has any, back in the queue.

        They are those drawn so far and, for a trial out of the queue, those it was queued with.
        """
        self.study.tell(number, state=self._states.FAIL)
        params = attrs.get(QUEUED, {}) | params
        count = int(attrs.get(INTERRUPTIONS, 0)) + 1
        queued = bool(params) and count < MAX_INTERRUPTIONS
        if queued:
            self._enqueue(params, count)
        return queued

    def _enqueue(self, params: dict[str, Any], interruptions: int) -> None:
        attrs = {INTERRUPTIONS: interruptions, QUEUED: params}
        self.study.enqueue_trial(params, user_attrs=attrs)

    def ask(self, total: int) -> tuple[Trial, FolderLock] | None:
        """The next trial and the held lock of its new folder, or None.

        None means that ``total`` trials are finished or being run.
        """
        import numpy as np
        import optuna

        states = self._states
        with FolderLock(self.folder):
            # One snapshot: a trial that ends between two queries would be in neither.
            if len(self._trials(states.COMPLETE, states.PRUNED, states.RUNNING)) >= total:
                return None
            trial = self.study.ask()
            # Draws depend on the seed and the trial, not on which run or worker makes them.
            words = np.random.SeedSequence([self._seed, trial.number]).generate_state(1)
            self.study.sampler = optuna.samplers.TPESampler(seed=int(words[0]), constant_liar=True)
            return trial, FolderLock(self.trial_folder(trial.number)).acquire()
