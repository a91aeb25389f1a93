# SPDX-License-Identifier: Apache-2.0
"""An Optuna study that several workers, one after another or at once, work on.

:mod:`.slots` says which trials count, so that any number of workers finish exactly as many as were
asked for; :mod:`.leases` says whose worker is dead. Nothing but the storage must be shared. Workers
with one results folder also lock it while they take a trial, which spares them attempts that are
made in vain.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from .configs import ConfigError
from .leases import Heart
from .locking import FolderLock
from .slots import ERROR, QUEUED, SLOT, STOPPED, counting, first_attempt, next_attempt, tried_again
from .storage import Storage, StorageError, reason
from .study_settings import settings_differences

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial, TrialState

Result = TypeVar("Result")
SETTINGS = "settings"


class TakenOverError(Exception):
    """The trial at hand was given to another worker, because this one seemed to be dead."""


class SharedStudy:
    """A study with its folder of trials; use it in a ``with`` statement.

    Args:
        name: of the study.
        folder: where its trials' folders lie.
        storage: where the study is kept.
        settings: what all trials have in common; a study made with others is refused, because its
            values could not be compared.
        first: parameters of the first trial of a new study.
        seed: of the sampler.
        grace: seconds after which a trial whose worker is silent is given to another one, and for
            which a storage that is away is waited for.

    Raises:
        ConfigError: the storage cannot be opened, serves one worker and has one, or the study was
            made with other settings.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        storage: Storage,
        settings: dict[str, Any],
        first: dict[str, Any],
        seed: int,
        grace: float = 60.0,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.name, self.folder, self.storage = name, folder, storage
        self._first, self._seed, self._grace = first, seed, grace
        self._states = optuna.trial.TrialState
        self._alone = storage.lock()
        try:
            self._storage = storage.open()
            try:
                self.study: optuna.Study = optuna.create_study(
                    study_name=name,
                    storage=self._storage,
                    direction="minimize",
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
                    load_if_exists=True,
                )
                # What failed for a reason of its own before this worker came is tried again, once.
                self._failed_before = {t.number for t in self._trials(self._states.FAIL)}
            except Exception as error:
                raise ConfigError(
                    f"study {name!r} in {storage}: cannot be opened ({reason(error)})"
                ) from error
            self._check_settings(settings)
            folder.mkdir(parents=True, exist_ok=True)
        except BaseException:
            self._release()
            raise
        self._heart = Heart(grace, self._running)

    def __enter__(self) -> SharedStudy:
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._heart.stop()
        self._release()

    def _release(self) -> None:
        if self._alone is not None:
            self._alone.release()

    def _check_settings(self, settings: dict[str, Any]) -> None:
        saved = self.study.user_attrs.get(SETTINGS)
        if saved is None:
            self.study.set_user_attr(SETTINGS, json.dumps(settings))
            return
        differences = settings_differences(saved, settings)
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
        return self.study.get_trials(deepcopy=False, states=states or None)

    def steadily(self, work: Callable[[], Result]) -> Result:
        """The result of ``work``, which uses the storage; waits for one that is away.

        Raises:
            StorageError: it stayed away for the grace period.
        """
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        started = time.monotonic()
        while True:
            try:
                return work()
            except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
                if time.monotonic() - started > self._grace:
                    raise StorageError(
                        f"study {self.name!r}: its storage cannot be used ({reason(error)}); the "
                        "same command goes on from the last checkpoints"
                    ) from error
                self._heart.wait()

    def finished(self) -> list[FrozenTrial]:
        """Completed and pruned trials."""
        return self.steadily(lambda: self._trials(self._states.COMPLETE, self._states.PRUNED))

    def completed(self) -> list[FrozenTrial]:
        """Trials that have a value."""
        return self.steadily(lambda: self._trials(self._states.COMPLETE))

    def trials(self) -> list[FrozenTrial]:
        """All trials."""
        return self.steadily(self._trials)

    def _running(self) -> list[FrozenTrial]:
        return [t for t in self._trials(self._states.RUNNING) if SLOT in t.user_attrs]

    def running(self) -> int:
        """Number of trials that are being run."""
        return len(self.steadily(self._running))

    def let_go(self) -> None:
        """The trial at hand is over, or lost."""
        self._heart.let_go()

    def wait(self) -> None:
        """Sleep until it is worth looking again."""
        self._heart.wait()

    def recover(self) -> dict[int, bool]:
        """Fail the trials of dead workers, so that they are tried again.

        Returns their numbers and whether their parameters are tried again.
        """
        if self._alone is not None:  # there is no other worker
            dead = self.steadily(self._running)
        else:
            dead = self.steadily(self._heart.dead)
        return {trial.number: again for trial in dead for again in self._fail(trial)}

    def interrupt(self, trial: Trial) -> bool | None:
        """Fail a trial that is stopped on purpose.

        Returns whether its parameters are tried again, or None if it was over already.
        """
        import optuna

        self._heart.let_go()

        def stopped() -> FrozenTrial:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                trial.set_user_attr(STOPPED, True)
            return self._storage.get_trial(trial._trial_id)

        return next(iter(self._fail(self.steadily(stopped))), None)

    def _fail(self, trial: FrozenTrial) -> list[bool]:
        """Fail a trial; empty if it was over already, else whether it is tried again."""
        if not self.steadily(lambda: self._set_state(trial, self._states.FAIL)):
            return []
        return [tried_again(trial)]

    def _set_state(self, trial: FrozenTrial, state: TrialState) -> bool:
        """Whether this worker, and no other one, brought the trial into ``state``."""
        import optuna

        try:
            return bool(self._storage.set_trial_state_values(trial._trial_id, state=state))
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def ask(self, total: int) -> tuple[Trial, FolderLock] | None:
        """The next trial and the held lock of its new folder, or None.

        None means that ``total`` trials are finished, being run, or failed in this run.
        """
        while True:
            with FolderLock(self.folder):
                trials = self.trials()
                finished = [
                    t for t in trials if t.state in (self._states.COMPLETE, self._states.PRUNED)
                ]
                if len(finished) >= total:
                    return None
                counted = counting(trials)
                self._drop_duplicates(trials, counted)
                foreign = sum(SLOT not in trial.user_attrs for trial in finished)
                wanted = range(total - foreign)
                waiting = self._first_in(counted, wanted, self._states.WAITING)
                if waiting is None:
                    if not self._open_slot(counted, wanted):
                        return None
                    continue
                claimed = self.steadily(partial(self._claim, waiting))
                if claimed is not None:
                    return claimed
            self._heart.wait()

    def _drop_duplicates(self, trials: list[FrozenTrial], counted: dict[int, FrozenTrial]) -> None:
        """Fail the waiting trials that do not count, and so are never run."""
        numbers = {trial.number for trial in counted.values()}
        for trial in trials:
            waits = trial.state == self._states.WAITING and SLOT in trial.user_attrs
            if waits and trial.number not in numbers:
                self._fail(trial)

    @staticmethod
    def _first_in(
        counted: dict[int, FrozenTrial], wanted: range, state: TrialState
    ) -> FrozenTrial | None:
        return next(
            (counted[s] for s in wanted if s in counted and counted[s].state == state), None
        )

    def _open_slot(self, counted: dict[int, FrozenTrial], wanted: range) -> bool:
        """Queue an attempt at the first slot that needs one; whether there was one.

        Interrupted trials come before new ones.
        """
        for slot in wanted:
            held = counted.get(slot)
            if held is None or held.state != self._states.FAIL:
                continue
            if ERROR not in held.user_attrs or held.number in self._failed_before:
                self._queue(next_attempt(held))
                return True
        for slot in wanted:
            if slot not in counted:
                self._queue(first_attempt(slot, {} if slot else self._first))
                return True
        return False

    def _queue(self, attrs: dict[str, Any]) -> None:
        self.steadily(lambda: self.study.enqueue_trial(attrs[QUEUED], user_attrs=attrs))

    def _claim(self, waiting: FrozenTrial) -> tuple[Trial, FolderLock] | None:
        """Take a waiting trial, unless another worker is faster."""
        import numpy as np
        import optuna

        folder = self.trial_folder(waiting.number)
        lock = FolderLock(folder)
        if not lock.try_acquire():
            return None
        try:
            if not self._set_state(waiting, self._states.RUNNING):
                lock.release()
                return None
            # Draws depend on the seed and the trial, not on which run or worker makes them.
            words = np.random.SeedSequence([self._seed, waiting.number]).generate_state(1)
            self.study.sampler = optuna.samplers.TPESampler(seed=int(words[0]), constant_liar=True)
            trial = optuna.trial.Trial(self.study, waiting._trial_id)
            self.steadily(lambda: self._heart.hold(trial, folder))
        except optuna.exceptions.UpdateFinishedTrialError:
            # So slow that others took its worker for dead.
            self._heart.let_go()
            lock.release()
            return None
        except BaseException:
            lock.release()
            raise
        return trial, lock

    def tell(
        self, trial: Trial, state: TrialState, value: float | None, attrs: dict[str, Any]
    ) -> None:
        """Finish a trial, with attributes that say how it went.

        Raises:
            TakenOverError: it is not this worker's any more.
        """
        import optuna

        self._heart.let_go()

        def tell() -> None:
            try:
                for name, attr in attrs.items():
                    trial.set_user_attr(name, attr)
                self.study.tell(trial, value, state=state)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                found = self._storage.get_trial(trial._trial_id).state
                if not found.is_finished():
                    raise
                # The same state means that an earlier try had come through after all.
                if found != state or state == self._states.FAIL:
                    raise TakenOverError from None

        self.steadily(tell)
