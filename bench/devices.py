# SPDX-License-Identifier: Apache-2.0
"""How calls are prepared, verified and timed on the CPU and on a CUDA device.

On a CUDA device every call works on the next of several copies of its inputs and keeps the outputs
of as many calls, so that a small case does not find its data in the L2 cache. Calls are timed by
events, eagerly and as the replay of one CUDA graph that holds a call on every copy.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench import ceilings as cpu_ceilings
from bench import cuda_ceilings, memory
from bench.registry import Case, Inputs, Operator, Peer
from bench.timing import Sampler, wall_clock

Prepare = Callable[[Case, Inputs], Callable[[], Any]]
Finish = Callable[[Any], None]
L2_MULTIPLE = 3
"""Copies of the inputs and outputs span this many times the L2 cache."""
MAXIMUM_COPIES = 64


@dataclass(frozen=True)
class Timed:
    """A call to time, beside the entry it was prepared for: eager, or a graph of it."""

    suffix: str
    """Appended to the entry's name and title; empty for the eager call."""
    call: Callable[[], Any] | None
    sampler: Sampler
    reason: str = ""
    """Why there is no call."""


class Device(Protocol):
    """What :mod:`bench.run` asks of the device."""

    kind: str

    def inputs(self, operator: Operator, case: Case, seed: int) -> list[Inputs]: ...
    def copies(self, operator: Operator, case: Case) -> int: ...
    def prepare(
        self, prepare: Prepare, case: Case, sets: Sequence[Inputs]
    ) -> Callable[[], Any]: ...
    def timed(self, call: Callable[[], Any], peer: Peer | None = None) -> list[Timed]: ...
    def ceilings(self, earlier: Any = None) -> dict[str, Any]: ...
    def memory(
        self, cases: Sequence[Case], threads: int, rivals: Sequence[Peer] = ()
    ) -> dict[str, dict[str, Any]]: ...
    def extra_memory(self, call: Callable[[], Any]) -> dict[str, Any] | None: ...
    def release(self) -> None: ...


class Cpu:
    """One set of inputs, the wall clock, and memory measured in processes of their own."""

    kind = "cpu"

    def inputs(self, operator: Operator, case: Case, seed: int) -> list[Inputs]:
        return [operator.inputs(case, torch.Generator().manual_seed(seed))]

    def copies(self, operator: Operator, case: Case) -> int:
        return 1

    def prepare(self, prepare: Prepare, case: Case, sets: Sequence[Inputs]) -> Callable[[], Any]:
        return prepare(case, sets[0])

    def timed(self, call: Callable[[], Any], peer: Peer | None = None) -> list[Timed]:
        return [Timed("", call, wall_clock)]

    def ceilings(self, earlier: Any = None) -> dict[str, Any]:
        return cpu_ceilings.measure(earlier)

    def memory(
        self, cases: Sequence[Case], threads: int, rivals: Sequence[Peer] = ()
    ) -> dict[str, dict[str, Any]]:
        return memory.measure(cases, threads, rivals)

    def extra_memory(self, call: Callable[[], Any]) -> dict[str, Any] | None:
        return None

    def release(self) -> None:
        """Nothing is kept between cases."""


class Rotation:
    """Calls on several copies of the inputs in turn; the outputs of the last turn stay alive."""

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self.calls = list(calls)
        self.outputs: list[Any] = [None] * len(self.calls)
        self._next = itertools.cycle(range(len(self.calls)))

    def __call__(self) -> Any:
        index = next(self._next)
        # Assigned after the call: its output must not take the place of the one it replaces.
        self.outputs[index] = self.calls[index]()
        return self.outputs[index]


def input_copies(footprint: float, l2_bytes: int) -> int:
    """Copies that together span ``L2_MULTIPLE`` L2 caches, at most ``MAXIMUM_COPIES``."""
    return max(1, min(MAXIMUM_COPIES, math.ceil(L2_MULTIPLE * l2_bytes / footprint)))


def event_clock(call: Callable[[], Any], repeats: int) -> float:
    """Seconds a call between two events on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats


def finished_clock(finish: Finish) -> Sampler:
    """The wall clock up to the end of the last call, for work on other streams than PyTorch's."""

    def sample(call: Callable[[], Any], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            outputs = call()
        finish(outputs)
        return (time.perf_counter() - start) / repeats

    return sample


def replay_clock(calls: int) -> Sampler:
    """Events around replays of a graph that holds so many calls."""

    def sample(replay: Callable[[], Any], repeats: int) -> float:
        return event_clock(replay, max(1, repeats // calls)) / calls

    return sample


def capture(rotation: Rotation) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """One call on every copy of the inputs as a CUDA graph, and its outputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            rotation.calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call() for call in rotation.calls]
    return graph, outputs


class Cuda:
    """Rotated inputs, events, and graph replay on the current CUDA device."""

    kind = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError(f"--device cuda: torch {torch.__version__} finds no CUDA device")
        torch.backends.cuda.matmul.allow_tf32 = False
        self._l2_bytes = torch.cuda.get_device_properties().L2_cache_size

    def copies(self, operator: Operator, case: Case) -> int:
        return input_copies(operator.cost(case).footprint, self._l2_bytes)

    def inputs(self, operator: Operator, case: Case, seed: int) -> list[Inputs]:
        generator = torch.Generator(self.kind).manual_seed(seed)
        with torch.device(self.kind):
            first = operator.inputs(case, generator)
        others = range(1, self.copies(operator, case))
        return [first, *({k: v.clone() for k, v in first.items()} for _ in others)]

    def prepare(self, prepare: Prepare, case: Case, sets: Sequence[Inputs]) -> Callable[[], Any]:
        return Rotation([prepare(case, inputs) for inputs in sets])

    def timed(self, call: Callable[[], Any], peer: Peer | None = None) -> list[Timed]:
        if peer is not None and peer.finish is not None:
            return [Timed("", call, finished_clock(peer.finish))]
        eager = Timed("", call, event_clock)
        if peer is not None and not peer.capturable:
            return [eager]
        assert isinstance(call, Rotation)
        try:
            graph, outputs = capture(call)
        except RuntimeError as error:
            reason = f"cannot be captured: {error}".splitlines()[0]
            return [eager, Timed("CUDA graph", None, event_clock, reason)]

        def replay(kept: Any = outputs) -> Any:
            graph.replay()
            return kept[0]

        return [eager, Timed("CUDA graph", replay, replay_clock(len(call.calls)))]

    def ceilings(self, earlier: Any = None) -> dict[str, Any]:
        return cuda_ceilings.measure(earlier)

    def memory(
        self, cases: Sequence[Case], threads: int, rivals: Sequence[Peer] = ()
    ) -> dict[str, dict[str, Any]]:
        return {}

    def extra_memory(self, call: Callable[[], Any]) -> dict[str, Any] | None:
        """Device memory that a call takes beyond what it returns, as torch's allocator sees it."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        # Not by the rotation, which would give one output back while it takes another.
        outputs = (call.calls[0] if isinstance(call, Rotation) else call)()
        kept = torch.cuda.memory_allocated() - before
        beyond = torch.cuda.max_memory_allocated() - before - kept
        del outputs
        return {"bytes_beyond_output": beyond, "bytes_output": kept}

    def release(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def device(kind: str) -> Device:
    """The device called ``cpu`` or ``cuda``.

    Raises:
        ValueError: there is no CUDA device.
    """
    return Cuda() if kind == "cuda" else Cpu()
