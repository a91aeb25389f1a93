# SPDX-License-Identifier: Apache-2.0
"""The next batch is made by a background thread while the consumer works on the present one.

On CUDA the thread's work is queued on a stream of its own, beside the training step. On the CPU
there is nothing to gain: the step's own threads keep the cores busy.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from .simulate import Scenes


def prefetch(
    batches: Iterator[Scenes], stream: torch.cuda.Stream | None = None
) -> Generator[Scenes, None, None]:
    """The scenes of ``batches`` in their order, each made while the one before it is in use.

    ``batches`` is advanced by one thread alone and never beyond one batch ahead, so that the
    scenes are bitwise those of a plain loop, and at its end no random number has been drawn that
    a plain loop would not have drawn. What ``batches`` raises, the consumer sees at that batch.
    Closing the generator early waits for the batch that is being made and ends the thread.

    Args:
        batches: makes the scenes; used from another thread until the generator ends.
        stream: CUDA stream to make them on. It starts behind what the consumer's stream holds at
            the first batch; the consumer's stream waits for a batch, and the batch's memory for
            the consumer. None makes them without CUDA.
    """
    if stream is not None:
        # What the batches are made from was put on the device by the consumer's stream.
        stream.wait_stream(torch.cuda.current_stream(stream.device))

    def make() -> tuple[Scenes | None, torch.cuda.Event | None]:
        if stream is None:
            return next(batches, None), None
        # The current device and stream are a thread's own.
        with torch.cuda.device(stream.device), torch.cuda.stream(stream):
            return next(batches, None), stream.record_event()

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        pending = thread.submit(make)
        while True:
            scenes, made = pending.result()
            if scenes is None:
                return
            pending = thread.submit(make)
            if stream is not None and made is not None:
                consumer = torch.cuda.current_stream(stream.device)
                consumer.wait_event(made)
                for _, tensor in scenes.tensors():
                    tensor.record_stream(consumer)
            yield scenes
