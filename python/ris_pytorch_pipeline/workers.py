# SPDX-License-Identifier: Apache-2.0
"""Several workers of a search on this machine, one process each.

The workers know each other only through the study's storage, as workers on other machines do: one
that dies needs no help from here. This process starts them, shows what they print, hands signals
on, and says in the end how it went.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, NamedTuple

from .configs import from_dict, to_dict
from .hpo import HpoError, HpoOptions, base_config, run_worker
from .interrupts import SIGNALS, Interrupted

THREADS = "OMP_NUM_THREADS"
STOPPED = tuple(128 + number for number in SIGNALS)
"""Statuses of workers that a signal stopped after they had saved."""


def spread_devices(names: list[str], count: int) -> list[str]:
    """A device for each of ``count`` workers, in turn; ``auto`` stands for all GPUs there are.

    Raises:
        ConfigError: a device is not there.
    """
    import torch

    from .data import resolve_device

    if names == ["auto"]:
        names = [f"cuda:{n}" for n in range(torch.cuda.device_count())] or ["cpu"]
    for name in names:
        resolve_device(name, "--devices")
    return [names[number % len(names)] for number in range(count)]


def threads_per_worker(count: int) -> int:
    """CPU threads of each of ``count`` workers: an equal share of what this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // count)


def run_workers(options: HpoOptions, names: list[str], count: int) -> None:
    """Run a search with ``count`` processes on the devices ``names``.

    Raises:
        HpoError: a worker ended with an error, or trials are missing because workers died.
        Interrupted: by a signal, after all workers have stopped.
    """
    from .search import open_study, summarise

    devices = spread_devices(names, count)
    options = dataclasses.replace(options, device=devices[0])
    base, wanted = base_config(options), options.n_trials
    with open_study(options, base, count) as shared:
        before = {trial.number for trial in shared.trials() if trial.state.is_finished()}
        done = len(shared.finished())
        print(f"study {shared.name!r} has {done} finished trials ({shared.storage})")
        if done < wanted:
            print(f"{wanted - done} of {wanted} trials to run by {count} workers", flush=True)
            threads = os.environ.get(THREADS) or str(threads_per_worker(count))
            statuses = _processes(
                [dataclasses.replace(options, device=device, workers=1) for device in devices],
                {**os.environ, THREADS: threads, "PYTHONUNBUFFERED": "1"},
            )
            done = len(shared.finished())
            _judge(statuses, done, wanted)
        else:
            print(f"nothing left to run: --n_trials {wanted} is the total of finished trials")
        ran = [trial for trial in shared.trials() if trial.number not in before]
        summarise(shared, options, base, ran)


def _judge(statuses: list[int], done: int, wanted: int) -> None:
    for number, status in enumerate(statuses):
        if status < 0:
            print(f"worker {number} was killed by signal {-status}")
        elif status in STOPPED:
            print(f"worker {number} was stopped by signal {status - 128}")
    stopped = [status < 0 or status in STOPPED for status in statuses]
    errors = [n for n, status in enumerate(statuses) if status and not stopped[n]]
    if errors:
        raise HpoError(f"worker(s) {errors} ended with an error, shown above")
    if done < wanted and any(stopped):
        raise HpoError(
            f"{done} of {wanted} trials are finished, and no worker is left; the same command goes "
            "on from the last checkpoints"
        )


def _processes(each: list[HpoOptions], environment: dict[str, str]) -> list[int]:
    """Run one process for each of the options; their return codes."""
    children: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    with _handed_on(children) as came:
        try:
            for number, options in enumerate(each):
                if came:
                    break
                readers += _start(number, options, environment, children)
                if came and came[-1].told < len(children):
                    children[-1].send_signal(came[-1].signum)
        except BaseException:
            for child in children:
                child.terminate()
            raise
        statuses = [child.wait() for child in children]
        for reader in readers:
            reader.join()
    if came:
        raise Interrupted(came[0].signum, "all workers have stopped")
    return statuses


def _start(
    number: int,
    options: HpoOptions,
    environment: dict[str, str],
    children: list[subprocess.Popen[str]],
) -> list[threading.Thread]:
    """Add one process to ``children``; returns the threads that show what it prints."""
    # A session of its own: Ctrl-C reaches a worker through this process, and only once.
    child = subprocess.Popen(
        [sys.executable, "-m", "ris_pytorch_pipeline.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    children.append(child)
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    readers = [
        threading.Thread(target=_show, args=(number, stream, shown))
        for stream, shown in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    ]
    for reader in readers:
        reader.start()
    # One that has ended already cannot be told; its status says why.
    with suppress(BrokenPipeError):
        json.dump(to_dict(options), child.stdin)
        child.stdin.close()
    return readers


class _Signal(NamedTuple):
    """A signal that came, and how many workers there were by then to hand it on to."""

    signum: int
    told: int


@contextmanager
def _handed_on(children: list[subprocess.Popen[str]]) -> Iterator[list[_Signal]]:
    """In the block, signals go on to ``children``; yields the list of those that came."""
    came: list[_Signal] = []

    def hand_on(signum: int, frame: FrameType | None) -> None:
        came.append(_Signal(signum, len(children)))
        for child in children:
            if child.poll() is None:
                child.send_signal(signum)

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(number: int, stream: IO[str], shown: IO[str]) -> None:
    for line in stream:
        print(f"[{number}] {line}", end="", file=shown, flush=True)


def main() -> int:
    """The process of one worker: its options come as JSON on the standard input."""
    from .cli import guarded

    def work() -> int:
        run_worker(from_dict(HpoOptions, json.load(sys.stdin), "options"))
        return 0

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
