# SPDX-License-Identifier: Apache-2.0
"""Scenes on disk: one ``.npy`` file per field and shard, and one JSON manifest.

A folder holds ``manifest.json`` and files such as ``00003.codes.npy``. The manifest names the
schema version, the configuration, and for every file its size and SHA-256. Snapshots, channel,
codes and source parameters are stored (39 kB a scene at the default size); covariances are not,
because the sample covariance is computed from the snapshots and the true one from the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .configs import ConfigError, SimulationConfig, SystemConfig, from_dict
from .npz_import import import_npz
from .shard_files import ShardFile
from .shard_writer import (
    MANIFEST,
    SCHEMA,
    FolderWriter,
    ShardError,
    field_layout,
    manifest_digest,
)
from .simulate import Scenes, Simulator
from .untrusted import LARGE, read_json, shown

__all__ = ["ShardDataset", "ShardError", "import_npz", "write_shards"]

Progress: TypeAlias = Callable[[int, int], None]

_CHUNK = 256
_MANIFEST_KEYS = {
    "schema", "system", "simulation", "origin", "samples", "fields", "shards", "sha256",
}  # fmt: skip
_SHARD_KEYS = {"samples", "files"}
_FILE_KEYS = {"path", "bytes", "sha256"}


def write_shards(
    folder: str | Path,
    system: SystemConfig,
    simulation: SimulationConfig,
    *,
    samples: int,
    shard_size: int = 1024,
    seed: int,
    split: str | int = "train",
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Simulate ``samples`` scenes into a new ``folder`` and return its manifest.

    Scenes are drawn by one :class:`Simulator` of ``seed`` and ``split``, so folders of different
    splits share no scene. ``progress(done, samples)`` is called after every batch. The folder
    appears complete or not at all.

    Raises:
        ShardError: a count is not positive, or ``folder`` exists (see :class:`FolderWriter`).
        ConfigError: the simulator refuses the configuration, the seed or the split.
    """
    for name, value in (("samples", samples), ("shard_size", shard_size)):
        if value < 1:
            raise ShardError(f"{folder}: {name} is {value}, expected at least 1")
    simulator = Simulator(system, simulation, device=device, seed=seed, split=split)
    done = 0

    def batches(count: int) -> Iterator[Scenes]:
        nonlocal done
        for start in range(0, count, _CHUNK):
            scenes = simulator.batch(min(_CHUNK, count - start))
            yield scenes
            done += len(scenes)
            if progress is not None:
                progress(done, samples)

    with FolderWriter(folder, system, overwrite=overwrite) as writer:
        for start in range(0, samples, shard_size):
            count = min(shard_size, samples - start)
            writer.add_shard(count, batches(count))
        return writer.finish(simulation, {"kind": "simulated", "seed": seed, "split": split})


def _check_keys(where: str, value: Any, keys: set[str]) -> None:
    if not isinstance(value, dict):
        raise ShardError(f"{where} is a {type(value).__name__}, expected a mapping")
    for problem, names in (("unknown", set(value) - keys), ("missing", keys - set(value))):
        if names:
            listed = ", ".join(map(shown, sorted(names)[:8]))
            raise ShardError(f"{where}: {problem} key {listed}")


def _check_count(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ShardError(f"{where} is {shown(value)}, expected a positive integer")
    return value


class ShardDataset:
    """Reads a folder of shards, each scene when it is asked for.

    Opening checks the manifest (schema version, keys, layout against the configuration) and that
    every file is there with the expected size and ``.npy`` header; a missing or truncated file is
    named. :meth:`verify` reads everything and compares checksums, so that altered files are named.
    Files must lie in the folder itself, and none may be a link. One that is truncated, altered or
    removed later is named by the read that meets it.

    Attributes: ``folder``, ``manifest``, ``system``, and ``simulation`` (None for imported data).

    Raises:
        ShardError: one line naming the file and what is wrong with it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise ShardError(f"{path}: no such file; expected a folder written by `ris simulate`")
        manifest = read_json(path, LARGE, ShardError)
        if isinstance(manifest, dict) and not _is_schema(manifest.get("schema", SCHEMA)):
            raise ShardError(
                f"{path}: schema version {shown(manifest['schema'])}, this reader knows {SCHEMA}"
            )
        _check_keys(str(path), manifest, _MANIFEST_KEYS)
        self.manifest: dict[str, Any] = manifest
        self.simulation: SimulationConfig | None = None
        try:
            self.system = from_dict(SystemConfig, manifest["system"], "system")
            if manifest["simulation"] is not None:
                self.simulation = from_dict(SimulationConfig, manifest["simulation"], "simulation")
        except ConfigError as error:
            raise ShardError(f"{path}: {error}") from None
        self._layout = field_layout(self.system)
        fields = {k: {"dtype": d, "shape": list(s)} for k, (d, s) in self._layout.items()}
        if manifest["fields"] != fields:
            raise ShardError(f"{path}: 'fields' do not match the system; expected {fields}")
        shards = manifest["shards"]
        if not isinstance(shards, list) or not shards:
            raise ShardError(f"{path}: 'shards' is not a list of at least one shard")
        self._seen: set[str] = set()
        self._files = [self._open_shard(f"{path}: shards[{i}]", s) for i, s in enumerate(shards)]
        self._ends = np.cumsum([shard["samples"] for shard in shards])
        if _check_count(f"{path}: 'samples'", manifest["samples"]) != self._ends[-1]:
            raise ShardError(
                f"{path}: 'samples' is {manifest['samples']}, its shards hold {self._ends[-1]}"
            )

    def _open_shard(self, where: str, shard: Any) -> dict[str, ShardFile]:
        _check_keys(where, shard, _SHARD_KEYS)
        samples = _check_count(f"{where}.samples", shard["samples"])
        _check_keys(f"{where}.files", shard["files"], set(self._layout))
        files = {}
        for name, entry in shard["files"].items():
            _check_keys(f"{where}.files.{name}", entry, _FILE_KEYS)
            files[name] = self._open_file(f"{where}.files.{name}", name, samples, entry)
        return files

    def _open_file(self, where: str, name: str, samples: int, entry: dict[str, Any]) -> ShardFile:
        relative = entry["path"]
        if not isinstance(relative, str) or not self._is_inside(relative):
            raise ShardError(
                f"{where}: path {shown(relative)} is not the name of a file in the folder itself"
            )
        if relative in self._seen:
            raise ShardError(f"{where}: path {shown(relative)} is used twice")
        self._seen.add(relative)
        dtype, shape = self._layout[name]
        return ShardFile(self.folder / relative, dtype, samples, shape, entry["bytes"])

    def _is_inside(self, relative: str) -> bool:
        if relative in ("", ".", "..") or not relative.isprintable() or len(relative) > 255:
            return False
        return not set(relative) & set("/\\:") and not (self.folder / relative).is_symlink()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(
        self, indices: Sequence[int] | range | slice | np.ndarray[Any, Any] | Tensor
    ) -> Scenes:
        """Scenes at ``indices``, in their order, copied into memory.

        Raises:
            IndexError: an index lies outside [0, len).
            ShardError: a file was altered since it was opened, or a scene's number of sources is
                not one that the system can have.
        """
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self)))
        index = indices.numpy(force=True) if isinstance(indices, Tensor) else np.asarray(indices)
        if index.size and index.dtype.kind not in "iu":
            raise IndexError(f"{self.folder}: indices are {index.dtype}, expected integers")
        index = index.reshape(-1).astype(np.int64)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"{self.folder}: indices must lie in [0, {len(self)})")
        shard = np.searchsorted(self._ends, index, side="right")
        out = {
            name: np.empty((len(index), *file.shape), file.dtype)
            for name, file in self._files[0].items()
        }
        for number in np.unique(shard):
            rows = np.flatnonzero(shard == number)
            local = index[rows] - self._first(number)
            for name, file in self._files[number].items():
                out[name][rows] = file.rows(local)
        scenes = Scenes(**{name: torch.from_numpy(array) for name, array in out.items()})
        self._refuse(index, _wrong_count(scenes, self.system), "num_sources")
        return scenes

    def _first(self, number: int) -> int:
        return int(self._ends[number]) - int(self.manifest["shards"][number]["samples"])

    def _refuse(self, index: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any], name: str) -> None:
        """Name the first scene for which ``wrong`` holds, and its file."""
        if wrong.any():
            scene = int(index[wrong.argmax()])
            file = self._files[int(np.searchsorted(self._ends, scene, side="right"))][name]
            raise ShardError(
                f"{file.path}: scene {scene} of the folder has a value of {name} that cannot be "
                "(not finite, or out of its range)"
            )

    def check(self, indices: range | Tensor) -> None:
        """Refuse scenes with values that no scene can have.

        Raises:
            ShardError: names the file and the scene of a value that is not finite, a number of
                sources outside [1, max_sources], a range or power that is not positive.
        """
        for start in range(0, len(indices), _CHUNK):
            part = indices[start : start + _CHUNK]
            index, scenes = np.asarray(part), self.batch(part)
            for name, tensor in scenes.tensors():
                wrong = ~torch.isfinite(tensor).reshape(len(scenes), -1).all(1)
                if name in ("r", "power"):
                    wrong |= (scenes.mask & (tensor <= 0)).any(1)
                self._refuse(index, wrong.numpy(), name)

    def verify(self, progress: Progress | None = None) -> None:
        """Compare every file, and the manifest itself, with its checksum, and check all values.

        ``progress(done, files)`` is called after every file.

        Raises:
            ShardError: names the first file that differs, or has values that cannot be.
        """
        shards = self.manifest["shards"]
        total, done = len(shards) * len(self._layout), 0
        for number, shard in enumerate(shards):
            for name, entry in shard["files"].items():
                file = self._files[number][name]
                if file.digest() != entry["sha256"]:
                    raise ShardError(
                        f"{file.path}: SHA-256 differs from {MANIFEST}; the file was altered"
                    )
                done += 1
                if progress is not None:
                    progress(done, total)
            self.check(range(self._first(number), int(self._ends[number])))
        if manifest_digest(self.manifest) != self.manifest["sha256"]:
            path = self.folder / MANIFEST
            raise ShardError(f"{path}: SHA-256 differs from its own; the file was altered")


def _is_schema(version: object) -> bool:
    return type(version) is int and version == SCHEMA


def _wrong_count(scenes: Scenes, system: SystemConfig) -> np.ndarray[Any, Any]:
    """Where a scene's number of sources is not one that ``system`` can have."""
    count = scenes.num_sources
    return ((count < 1) | (count > system.max_sources)).numpy()
