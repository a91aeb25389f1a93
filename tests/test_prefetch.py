# SPDX-License-Identifier: Apache-2.0
"""Batches made ahead of their use: the same scenes, in order, with nothing left behind."""

import contextlib
import threading
import time

import pytest
import torch
from training_helpers import CPU, experiment, same

from ris_pytorch_pipeline import prefetch as prefetch_module
from ris_pytorch_pipeline.configs import DataConfig
from ris_pytorch_pipeline.data import open_scenes
from ris_pytorch_pipeline.prefetch import prefetch
from ris_pytorch_pipeline.shards import write_shards
from ris_pytorch_pipeline.simulate import Scenes


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.fixture(autouse=True)
def nothing_is_left():
    assert not workers()
    yield
    assert not workers()


def fields(scenes):
    return dict(scenes.tensors())


@pytest.fixture(params=["simulated", "shards"])
def config(request, tmp_path):
    base = experiment()
    if request.param == "simulated":
        return base
    write_shards(tmp_path / "s", base.system, base.simulation, samples=40, shard_size=16, seed=1)
    return experiment(DataConfig(shards=str(tmp_path / "s"), val_samples=12))


def sources(config, monkeypatch):
    """The same data twice: plain, and made ahead."""
    plain, ahead = open_scenes(config, CPU), open_scenes(config, CPU)
    monkeypatch.setattr(ahead, "ahead", prefetch)
    return plain, ahead


def test_epochs_are_bitwise_those_of_a_plain_loop(config, monkeypatch):
    plain, ahead = sources(config, monkeypatch)
    for _ in range(2):
        expected = [fields(scenes) for scenes in plain.epoch()]
        assert same([fields(scenes) for scenes in ahead.epoch()], expected)
        # What a checkpoint at the end of an epoch holds.
        assert same(ahead.state_dict(), plain.state_dict())


def test_an_epoch_left_at_its_last_batch_has_drawn_nothing_beyond_it(config, monkeypatch):
    """The trainer takes as many batches as it planned and never asks for one more."""
    plain, ahead = sources(config, monkeypatch)
    for source in (plain, ahead):
        with contextlib.closing(source.epoch()) as batches:
            for _ in source.batch_sizes:
                next(batches)
    assert same(ahead.state_dict(), plain.state_dict())


def some_scenes(count, made=None, fail_at=None, wait=None):
    data = open_scenes(experiment(), CPU)
    batch = data.validation[0]
    for number in range(count):
        if number == fail_at:
            raise OSError(f"batch {number}")
        if wait is not None and number == 2:
            assert wait.wait(20)
        if made is not None:
            made.append((number, threading.current_thread().name))
        yield batch[number : number + 1]


def test_the_next_batch_is_made_while_one_is_in_use_and_by_one_thread():
    made = []
    batches = prefetch(some_scenes(5, made))
    next(batches)
    deadline = time.monotonic() + 20
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    # The second is made without being asked for; the third waits for its turn.
    time.sleep(0.02)
    assert [number for number, _ in made] == [0, 1]
    assert len(list(batches)) == 4
    assert len({name for _, name in made}) == 1
    assert made[0][1] != threading.current_thread().name


def test_closing_early_waits_for_the_batch_in_hand_and_ends_the_thread():
    go, made = threading.Event(), []
    batches = prefetch(some_scenes(4, made, wait=go))
    next(batches)
    next(batches)
    assert workers() and len(made) == 2
    threading.Timer(0.05, go.set).start()
    batches.close()
    assert not workers() and len(made) == 3
    with pytest.raises(StopIteration):
        next(batches)


def test_a_generator_that_was_never_started_has_no_thread():
    made = []
    batches = prefetch(some_scenes(2, made))
    batches.close()
    assert not made and not workers()
    with pytest.raises(StopIteration):
        next(batches)


def test_an_exception_reaches_the_consumer_at_its_batch():
    batches = prefetch(some_scenes(4, fail_at=2))
    assert len(next(batches)) == len(next(batches)) == 1
    with pytest.raises(OSError, match="batch 2"):
        next(batches)


def test_an_exception_of_the_consumer_ends_the_thread():
    with pytest.raises(KeyError), contextlib.closing(prefetch(some_scenes(4))) as batches:
        next(batches)
        raise KeyError("step")


class FakeStream:
    """Stands in for a CUDA stream: writes down what is asked of it."""

    device = torch.device("cuda:0")

    def __init__(self, name, log):
        self.name, self.log, self.events = name, log, 0

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        self.events += 1
        self.log.append(f"{self.name} records {self.events}")
        return self.events

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for event {event}")


def test_events_order_the_streams_and_memory_is_kept_for_the_consumer(monkeypatch):
    log, kept, current = [], [], threading.local()
    main, side = FakeStream("main", log), FakeStream("side", log)

    @contextlib.contextmanager
    def use(stream):
        current.stream = stream
        yield
        current.stream = main

    cuda = prefetch_module.torch.cuda
    monkeypatch.setattr(cuda, "current_stream", lambda device: getattr(current, "stream", main))
    monkeypatch.setattr(cuda, "stream", use)
    monkeypatch.setattr(cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, s: kept.append((id(t), s.name)))

    def made():
        for scenes in some_scenes(2):
            log.append(f"made on {current.stream.name}")
            yield scenes

    batches = prefetch(made(), side)
    assert not log
    for number in (1, 2):
        scenes = next(batches)
        assert f"main waits for event {number}" in log
        expected = [(id(tensor), "main") for _, tensor in scenes.tensors()]
        assert kept[-len(expected) :] == expected
    assert list(batches) == []
    assert log[0] == "side waits for main"
    # A batch is made before its event, which the consumer waits for.
    for number in (1, 2):
        record, wait = f"side records {number}", f"main waits for event {number}"
        assert log.index(record) < log.index(wait)
        assert log[: log.index(record)].count("made on side") == number


def test_the_cpu_makes_no_batch_ahead():
    source = open_scenes(experiment(), CPU)
    with contextlib.closing(source.epoch()) as batches:
        assert isinstance(next(batches), Scenes) and not workers()
