# SPDX-License-Identifier: Apache-2.0
"""The processes of one training: this one alone, or those that ``torchrun`` started.

Every process holds the whole network and works on its share of the scenes of each batch; before a
step the gradients are reduced, so that all take the same step. The reduction is one explicit sum,
because it has to be exactly the gradient of one process:

- shares differ by a scene, and one can be empty, so processes are weighted by their scenes;
- the batches of an accumulation group are reduced once;
- a parameter that no process has a gradient for keeps none, so that it is not decayed;
- the loss terms travel with the gradients, and what one process has that is not finite all have:
  :class:`~.optim.StepGuard`, which unscales, clips and checks after it, decides alike everywhere.

``DistributedDataParallel`` gives the mean over processes instead, and wants the same work in each.

Counts and signals are exchanged on the host (gloo) before each reduction, which on CUDA is NCCL's.
The exchange waits for the slowest process, notices one that is gone, and is what makes all stop
after the same step.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from .configs import ConfigError, ExperimentConfig, to_dict
from .data import resolve_device

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from .interrupts import DeferredInterrupt

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells a process in its environment."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LostProcessError(RuntimeError):
    """The processes of a training cannot go on together: one ended, failed, or does not answer."""


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_leader() -> bool:
    """Whether this process is the one that writes files and prints."""
    return not launched() or os.environ["RANK"] == "0"


def require_one_process(command: str) -> None:
    """Refuse to run ``command`` as one of several processes."""
    if launched():
        raise ConfigError(
            f"{command}: started as {os.environ['WORLD_SIZE']} processes, of which each would do "
            "the whole work; only `train` divides it. Start it without torchrun"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Processes:
    """A training in this process alone, and what a training in several offers."""

    rank, size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Where signals to this process are noted.
        self.interrupt: DeferredInterrupt | None = None

    @property
    def leader(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def signum(self) -> int | None:
        """The signal after which all processes stop."""
        return None if self.interrupt is None else self.interrupt.signum

    def share(self, count: int) -> slice:
        """Which of the ``count`` scenes of a batch are this process's; the leader has some."""
        first, last = (-(-count * rank // self.size) for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    def seed_streams(self, seed: int) -> None:
        """Give this process a random stream of its own for dropout."""

    def reduce_step(
        self, parameters: Sequence[nn.Parameter], terms: Mapping[str, Tensor], samples: int
    ) -> dict[str, Tensor]:
        """Make gradients and ``terms``, means over this process's ``samples``, those over all."""
        return dict(terms)

    def reduce_sums(self, sums: Tensor, count: int) -> tuple[Tensor, int]:
        """``sums`` and ``count`` summed over the processes."""
        return sums, count

    def leader_decides(self, value: bool) -> bool:
        """The leader's ``value``."""
        return value

    def synchronise(self) -> None:
        """Wait until every process is here."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The host tensor of every process, [size, ...]; of one process, the tensor itself."""
        return tensor

    def copy_from_leader(self, net: nn.Module) -> None:
        """Make the weights of ``net`` the leader's."""

    def require_same_weights(self, net: nn.Module) -> None:
        """Raise :class:`LostProcessError` unless all have bitwise the same weights."""


class _Group(Processes):
    """One of several processes."""

    def __init__(self, device: torch.device, store: Store, timeout: float) -> None:
        import torch.distributed as dist

        super().__init__(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._store, self._timeout = store, timeout
        self._agreed: int | None = None

    @property
    def signum(self) -> int | None:
        return self._agreed

    @contextlib.contextmanager
    def _with_others(self) -> Iterator[None]:
        """Turns the error of a collective into one that says which process is to blame."""
        started = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            raise LostProcessError(self._reason(error, time.monotonic() - started)) from error

    def _reason(self, error: RuntimeError, waited: float) -> str:
        me = f"process {self.rank} of {self.size} stopped"
        # Where the leader's process holds the store, it is gone with it.
        with contextlib.suppress(RuntimeError):
            for rank in range(self.size):
                if self._store.check([f"failure/{rank}"]):
                    text = self._store.get(f"failure/{rank}").decode()
                    return f"{me}, because process {rank} failed: {text}"
        if waited >= self._timeout:
            what = f"did not answer within train.process_timeout = {self._timeout:g} s"
        else:
            # gloo says where in its sources, then what happened, then advice.
            cause = re.sub(r"^\[[^]]*\] ", "", _line(error)).partition(". ")[0]
            what = f"was killed or cannot be reached ({cause})"
        return f"{me}, because another one {what}; --resume auto goes on from the last save"

    def tell_failure(self, error: BaseException) -> None:
        """Leave word for the others of why this process ends."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"failure/{self.rank}", _line(error))

    def _exchange(self, *values: int) -> list[int]:
        """Sums of ``values`` over the processes; signals are agreed on."""
        import torch.distributed as dist

        mine = None if self.interrupt is None else self.interrupt.signum
        flags = [int(mine == number) for number in _SIGNALS]
        sums = torch.tensor([*flags, *values], dtype=torch.int64)
        with self._with_others():
            dist.all_reduce(sums)
        arrived = [number for number, count in zip(_SIGNALS, sums.tolist(), strict=False) if count]
        self._agreed = arrived[0] if arrived else None
        return sums.tolist()[len(flags) :]

    def _sum(self, tensor: Tensor) -> None:
        import torch.distributed as dist

        with self._with_others():
            dist.all_reduce(tensor)

    def seed_streams(self, seed: int) -> None:
        if self.rank > 0:
            # (0, ...) and (1, ...) are the streams of scenes.
            child = np.random.SeedSequence(seed, spawn_key=(2, self.rank))
            torch.manual_seed(int(child.generate_state(1)[0]))

    def reduce_step(
        self, parameters: Sequence[nn.Parameter], terms: Mapping[str, Tensor], samples: int
    ) -> dict[str, Tensor]:
        total, *holders = self._exchange(samples, *(p.grad is not None for p in parameters))
        held = [p for p, count in zip(parameters, holders, strict=True) if count]
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in held]
        pieces += [torch.as_tensor(value, device=self.device) for value in terms.values()]
        flat = torch.cat([piece.reshape(-1) for piece in pieces]).mul_(samples / total)
        self._sum(flat)
        *gradients, means = flat.split([*(p.numel() for p in held), len(terms)])
        for parameter, gradient in zip(held, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return dict(zip(terms, means.unbind(), strict=True))

    def reduce_sums(self, sums: Tensor, count: int) -> tuple[Tensor, int]:
        (total,) = self._exchange(count)
        sums = sums.clone()
        self._sum(sums)
        return sums, total

    def leader_decides(self, value: bool) -> bool:
        return bool(self._exchange(value and self.leader)[0])

    def synchronise(self) -> None:
        self._exchange()

    def gather(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._with_others():
            dist.all_gather(found, tensor)
        return torch.stack(found)

    def copy_from_leader(self, net: nn.Module) -> None:
        import torch.distributed as dist

        self.synchronise()
        for tensor in net.state_dict().values():
            with self._with_others():
                dist.broadcast(tensor, 0)

    def require_same_weights(self, net: nn.Module) -> None:
        digest = hashlib.sha256()
        for tensor in net.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        if others := self._different(digest.digest()):
            raise LostProcessError(
                f"the weights of process(es) {others} are no longer those of process 0: use "
                "processors of one kind, and look for what else differs between them"
            )

    def require_same_setting(self, config: ExperimentConfig) -> None:
        """Raise ConfigError unless all have the same configuration and kind of device."""
        setting = json.dumps([to_dict(config), self.device.type], sort_keys=True)
        if others := self._different(hashlib.sha256(setting.encode()).digest()):
            raise ConfigError(
                f"process(es) {others} have another configuration or another kind of device than "
                "process 0: start all with the same options, on machines of one kind"
            )

    def _different(self, digest: bytes) -> list[int]:
        """The processes whose ``digest`` is not the leader's."""
        rows = self.gather(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        return (rows != rows[0]).any(1).nonzero()[:, 0].tolist()


def _own_device(name: str) -> torch.device:
    """The device of this process, one of several: on CUDA the one that the launcher counts out."""
    missing = [variable for variable in VARIABLES if variable not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set: start "
            "several processes with torchrun, or unset WORLD_SIZE and RANK"
        )
    if name.startswith("cuda:"):
        raise ConfigError(
            f"train.device: got {name!r}, but each of several processes has a GPU of its own; use "
            "cuda, auto or cpu"
        )
    device = resolve_device(name)
    if device.type != "cuda":
        return device
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ConfigError(
            f"train.device: process {local} of this machine has no GPU of its own (it has "
            f"{count}); start at most {count} here, or use --train.device cpu"
        )
    return torch.device("cuda", local)


@contextlib.contextmanager
def training_processes(config: ExperimentConfig) -> Generator[Processes, None, None]:
    """The processes of a training under ``config``, while the ``with`` block lasts.

    Without a launcher that is this process alone, and ``torch.distributed`` is not touched. An
    error that leaves the block in one process ends the others with it in their message.

    Raises:
        ConfigError: the environment, the device or the configuration of a process does not fit.
        LostProcessError: a process did not come within ``train.process_timeout``.
    """
    if not launched():
        yield Processes(resolve_device(config.train.device))
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    device = _own_device(config.train.device)
    if not dist.is_available() or dist.is_initialized():
        raise ConfigError(
            "fit: this build of torch cannot start a process group, or one is there already; it "
            "makes its own and wants to be called without one"
        )
    seconds = config.train.process_timeout
    timeout = datetime.timedelta(seconds=seconds)
    on_cuda = device.type == "cuda"
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        # A restart finds the store that the processes before it have left.
        store = PrefixStore(f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
    except RuntimeError as error:
        raise LostProcessError(
            f"the processes of the training did not meet within train.process_timeout = "
            f"{seconds:g} s ({_line(error)})"
        ) from error
    group = _Group(device, PrefixStore("failures", store), seconds)
    try:
        with torch.cuda.device(device) if on_cuda else contextlib.nullcontext():
            group.require_same_setting(config)
            yield group
    except BaseException as error:
        if not isinstance(error, LostProcessError):
            group.tell_failure(error)
        # NCCL would wait for what it has begun with processes that are gone.
        if not on_cuda:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
