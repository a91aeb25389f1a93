# SPDX-License-Identifier: Apache-2.0
"""Which trials of a study count: the rules by which workers agree without talking.

A study of n trials has the slots 0 to n - 1. A trial belongs to a slot and is one attempt at it; a
trial that was interrupted is followed by the next attempt. Two workers may create the same attempt
at once. Then the one with the lower number counts, and this is final: storages number trials in the
order in which they become visible, so whoever sees a trial has seen every lower number. Only a
trial that counts is ever run, and storages give a waiting trial to exactly one worker. So a slot is
finished at most once, and no slot is forgotten: what a worker leaves undone when it dies (an
attempt not created, a waiting trial) is seen and done by the next one that looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SLOT, ATTEMPT = "slot", "attempt"
INTERRUPTIONS, QUEUED, CONTINUES = "interruptions", "queued", "continues"
LEASE, ERROR, UNSOUND, STOPPED = "lease", "error", "unsound", "stopped"
MAX_INTERRUPTIONS = 3
"""Parameters whose trials were interrupted this often are given up; one that was ``STOPPED`` on
purpose (by a signal, or because its files could not be used) does not count."""


def counting(trials: Iterable[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that counts of every slot that has one.

    >>> import optuna
    >>> def trial(number, slot, attempt):
    ...     made = optuna.trial.create_trial(value=0.0, user_attrs={SLOT: slot, ATTEMPT: attempt})
    ...     made.number = number
    ...     return made
    >>> found = counting([trial(0, 0, 0), trial(1, 0, 0), trial(2, 1, 0), trial(3, 1, 1)])
    >>> {slot: trial.number for slot, trial in found.items()}
    {0: 0, 1: 3}
    """
    found: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        attrs = trial.user_attrs
        if SLOT in attrs:
            held = found.get(attrs[SLOT])
            if held is None or attrs[ATTEMPT] > held.user_attrs[ATTEMPT]:
                found[attrs[SLOT]] = trial
    return found


def first_attempt(slot: int, params: dict[str, Any]) -> dict[str, Any]:
    """Attributes of the first trial of a slot, queued with ``params``."""
    return {SLOT: slot, ATTEMPT: 0, INTERRUPTIONS: 0, QUEUED: params, CONTINUES: []}


def tried_again(trial: FrozenTrial) -> bool:
    """Whether the parameters of an interrupted trial are tried again.

    Not if there are none, or they were interrupted too often: then the next attempt draws others.
    """
    params = {**trial.user_attrs[QUEUED], **trial.params}
    return bool(params) and (
        STOPPED in trial.user_attrs or trial.user_attrs[INTERRUPTIONS] + 1 < MAX_INTERRUPTIONS
    )


def next_attempt(trial: FrozenTrial) -> dict[str, Any]:
    """Attributes of the trial that follows a failed one in its slot.

    The parameters (``QUEUED``) are those drawn so far and those it was queued with. Folders whose
    last checkpoint may be continued (``CONTINUES``) come newest first.
    """
    attrs = first_attempt(trial.user_attrs[SLOT], {})
    attrs[ATTEMPT] = trial.user_attrs[ATTEMPT] + 1
    if ERROR not in trial.user_attrs and tried_again(trial):
        lease = trial.user_attrs.get(LEASE)
        attrs[INTERRUPTIONS] = trial.user_attrs[INTERRUPTIONS] + (STOPPED not in trial.user_attrs)
        attrs[QUEUED] = {**trial.user_attrs[QUEUED], **trial.params}
        own = [lease["folder"]] if lease else []
        attrs[CONTINUES] = own + trial.user_attrs[CONTINUES]
    return attrs
