# SPDX-License-Identifier: Apache-2.0
"""Training and validation scenes: simulated on the fly, or read from a folder of shards.

Both sources plan an epoch as a list of batch sizes, hold one fixed validation set apart from the
training data, and can be saved and continued exactly, between any two batches. On CUDA the next
batch is made beside the training step (:mod:`.prefetch`); what is saved is where the consumer is.

One of several processes (:mod:`.distributed`) gets its share of every batch. The random streams and
the saved place are those of one process, so that the batches are the same for any number of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch

from .checkpoint import config_differences
from .configs import ConfigError, ExperimentConfig
from .prefetch import prefetch
from .shards import ShardDataset
from .simulate import Scenes, Simulator

Batches: TypeAlias = "Generator[Scenes, None, None]"
Share: TypeAlias = "Callable[[int], slice]"
"""Which scenes of a batch of so many are wanted."""
HOLD_OUT_SEED = 20240607
"""Fixes which scenes of a shard folder are held out, whatever the seed of a run."""


def resolve_device(name: str, option: str = "train.device") -> torch.device:
    """The device called ``name``, the value of ``option``; refused if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # as wrong as any other kind
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ConfigError(f"{option}: got {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{option}: {name!r} is not there; use cpu or auto")
    return device


class SceneSource(Protocol):
    """What the trainer needs from its data."""

    batch_sizes: list[int]
    """Sizes of the batches of one epoch, whatever the share."""
    validation: list[Scenes]
    """The share of the validation set, in batches, on the training device; none is empty."""

    def epoch(self) -> Batches:
        """The batches that are left of the present epoch, or all of the next one, on the training
        device, or the shares of them, which can be empty; to be closed when left early."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def everything(count: int) -> slice:
    """The share of a process alone."""
    return slice(0, count)


def _batch_sizes(samples: int, batch_size: int) -> list[int]:
    full, rest = divmod(samples, batch_size)
    return [batch_size] * full + [rest] * (rest > 0)


def _position(state: dict[str, Any], batch_sizes: list[int]) -> int:
    """The saved place in an epoch, refused if there is none such."""
    position = state.get("position", 0)
    if type(position) is not int or not 0 <= position <= len(batch_sizes):
        raise ValueError(f"the place in the data is {position!r}, of {len(batch_sizes)} batches")
    return position


def _ahead(device: torch.device) -> Callable[[Batches], Batches]:
    """How a source on ``device`` makes its batches: ahead of their use, on a stream, on CUDA."""
    if device.type == "cuda":
        return partial(prefetch, stream=torch.cuda.Stream(device))
    return lambda batches: batches


class SimulatedScenes:
    """Fresh scenes in every epoch; validation comes from a random stream of its own."""

    def __init__(
        self, config: ExperimentConfig, device: torch.device, share: Share = everything
    ) -> None:
        def simulator(split: str) -> Simulator:
            seed = config.train.seed
            return Simulator(
                config.system, config.simulation, device=device, seed=seed, split=split
            )

        batch_size = config.train.batch_size
        self.batch_sizes = _batch_sizes(config.data.train_samples, batch_size)
        held_out, sizes = simulator("val"), _batch_sizes(config.data.val_samples, batch_size)
        shares = (held_out.batch(size, share(size)) for size in sizes)
        self.validation = [scenes for scenes in shares if len(scenes)]
        self._simulator = simulator("train")
        self._position, self._state = 0, self._simulator.state_dict()
        self.ahead, self._share = _ahead(device), share

    def epoch(self) -> Batches:
        self._position %= len(self.batch_sizes)
        # Batches that were made ahead of a consumer who left are made again.
        self._simulator.load_state_dict(self._state)
        states: list[dict[str, torch.Tensor]] = []

        def made() -> Batches:
            for size in self.batch_sizes[self._position :]:
                scenes = self._simulator.batch(size, self._share(size))
                states.append(self._simulator.state_dict())
                yield scenes

        with contextlib.closing(self.ahead(made())) as batches:
            for scenes in batches:
                self._position, self._state = self._position + 1, states.pop(0)
                yield scenes

    def state_dict(self) -> dict[str, Any]:
        return {**self._state, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = _position(state, self.batch_sizes)
        self._state = {name: value for name, value in state.items() if name != "position"}
        self._simulator.load_state_dict(self._state)


class ShardScenes:
    """Scenes of a shard folder, reshuffled every epoch.

    ``val_samples`` scenes are held out by a permutation that depends on nothing but the number of
    scenes, so that every run on the folder holds out the same ones; of the rest, at most
    ``train_samples`` are used.
    """

    def __init__(
        self, config: ExperimentConfig, device: torch.device, share: Share = everything
    ) -> None:
        assert config.data.shards is not None
        self._dataset, self._device, self._share = ShardDataset(config.data.shards), device, share
        differences = config_differences(self._dataset.system, config.system)
        if differences:
            raise ConfigError(
                f"{config.data.shards}: made for another system (shards -> configured): "
                + ", ".join(differences)
            )
        count, held_out = len(self._dataset), config.data.val_samples
        if held_out >= count:
            raise ConfigError(
                f"{config.data.shards}: {count} scenes cannot give data.val_samples = {held_out} "
                "and leave any for training; lower data.val_samples"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(HOLD_OUT_SEED))
        self.val_indices = order[:held_out]
        self.train_indices = order[held_out:][: config.data.train_samples]
        batch_size = config.train.batch_size
        self.batch_sizes = _batch_sizes(len(self.train_indices), batch_size)
        # One scene that is not finite would leave every validation loss without a value.
        self._dataset.check(self.val_indices)
        shares = (self._read(part) for part in torch.split(self.val_indices, batch_size))
        self.validation = [scenes for scenes in shares if len(scenes)]
        self._generator = torch.Generator().manual_seed(config.train.seed)
        # The generator as it is before the present epoch's order is drawn.
        self._position, self._state = 0, self._generator.get_state()
        self.ahead = _ahead(device)

    def _read(self, indices: torch.Tensor) -> Scenes:
        return self._dataset.batch(indices[self._share(len(indices))]).to(self._device)

    def epoch(self) -> Batches:
        if self._position == len(self.batch_sizes):
            self._position, self._state = 0, self._generator.get_state()
        self._generator.set_state(self._state)
        order = torch.randperm(len(self.train_indices), generator=self._generator)
        parts = torch.split(self.train_indices[order], self.batch_sizes[0])[self._position :]
        with contextlib.closing(self.ahead(self._read(part) for part in parts)) as batches:
            for scenes in batches:
                self._position += 1
                yield scenes

    def state_dict(self) -> dict[str, Any]:
        if self._position == len(self.batch_sizes):
            return {"generator": self._generator.get_state(), "position": 0}
        return {"generator": self._state, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position, self._state = _position(state, self.batch_sizes), state["generator"].cpu()
        self._generator.set_state(self._state)


def open_scenes(
    config: ExperimentConfig, device: torch.device, share: Share = everything
) -> SceneSource:
    """The data that ``config.data`` asks for, or the share of every batch."""
    if config.data.shards is None:
        return SimulatedScenes(config, device, share)
    return ShardScenes(config, device, share)
