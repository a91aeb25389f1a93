# SPDX-License-Identifier: Apache-2.0
"""Work in forked processes: one, or several that find each other as those of torchrun do."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch._dynamo  # noqa: F401 - an optimizer imports it: here, and not in every process
import torch.distributed as dist

from ris_pytorch_pipeline.trainer import Trainer

LIMIT = 240.0
"""Seconds after which processes that have not ended are a failure of the test."""

# Both ends of a store's connection ask the name server who 127.0.0.1 is. A lost answer would
# otherwise hold them up for longer than a process may be silent in some of the tests.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")


def in_a_child(work: Callable[[], object]) -> int:
    """Start ``work`` in a forked process and return its number; it exits with 0 or 1."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        # Nothing of the parent's (buffers, fixtures, the test run itself) may end twice.
        os._exit(status)


class Team:
    """``work(rank)`` in ``size`` forked processes with the environment that torchrun gives.

    What a process prints and the error that ends it are in files of ``folder``. Processes that are
    left at the end of the ``with`` block are killed.
    """

    def __init__(self, size: int, work: Callable[[int], None], folder: Path) -> None:
        self.size, self.folder = size, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.statuses: dict[int, int] = {}
        listener = socket.create_server(("127.0.0.1", 0), backlog=size)
        port = listener.getsockname()[1]
        # The processes are there before the store is: its thread may be looking up a name, and a
        # process forked at that moment would wait for the lock of the resolver without end.
        self.running = {
            rank: in_a_child(lambda r=rank: self._run(r, port, work)) for rank in range(size)
        }
        # As the agent of torchrun does: the store outlives every process. It closes the socket.
        self._store: dist.TCPStore | None = dist.TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def _run(self, rank: int, port: int, work: Callable[[int], None]) -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(self.size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
        stdout = os.open(self.folder / f"stdout.{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(stdout, 1)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        try:
            work(rank)
        except BaseException as error:
            (self.folder / f"error.{rank}").write_text(f"{type(error).__name__}: {error}")
            os._exit(getattr(error, "status", 1))

    def error(self, rank: int) -> str:
        """Type and message of what ended a process."""
        return (self.folder / f"error.{rank}").read_text()

    def printed(self, rank: int) -> str:
        """What a process printed."""
        return (self.folder / f"stdout.{rank}").read_text()

    def kill(self, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process that has not ended."""
        if rank in self.running:
            os.kill(self.running[rank], number)

    def wait(self, *ranks: int) -> list[int]:
        """Exit statuses of the processes, negative for a signal; of all by default."""
        ranks = ranks or tuple(range(self.size))
        deadline = time.monotonic() + LIMIT
        while remaining := [rank for rank in ranks if rank in self.running]:
            for rank in remaining:
                child, status = os.waitpid(self.running[rank], os.WNOHANG)
                if child:
                    del self.running[rank]
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, f"processes {remaining} have not ended"
            time.sleep(0.01)
        return [self.statuses[rank] for rank in ranks]

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        # Its thread ends here, before another team is forked.
        self._store = None


def before_step(step: int, action: Callable[[], None]) -> None:
    """Call ``action`` when this process begins a step, counted from its start."""
    real, steps = Trainer.train_step, []

    def train_step(trainer, batches):
        steps.append(None)
        if len(steps) == step:
            action()
        return real(trainer, batches)

    Trainer.train_step = train_step
