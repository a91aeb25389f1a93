# SPDX-License-Identifier: Apache-2.0
"""Scenes on disk: one memory-mapped ``.npy`` per field and shard, and one JSON manifest.

A folder holds ``manifest.json`` and files such as ``00003.codes.npy``. The manifest names the
schema version, the configuration, and for every file its size and SHA-256. Snapshots, channel,
codes and source parameters are stored (39 kB a scene at the default size); covariances are not,
because the sample covariance is computed from the snapshots and the true one from the parameters.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .configs import ConfigError, SimulationConfig, SystemConfig, from_dict
from .npz_import import import_npz
from .shard_writer import (
    MANIFEST,
    SCHEMA,
    FolderWriter,
    ShardError,
    field_layout,
    manifest_digest,
)
from .simulate import Scenes, Simulator

__all__ = ["ShardDataset", "ShardError", "import_npz", "write_shards"]

Progress: TypeAlias = Callable[[int, int], None]

_CHUNK = 256
_LONGEST_NAME = 255
"""Bytes in the name of a file."""
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
            raise ShardError(f"{where}: {problem} key {', '.join(map(repr, sorted(names)))}")


def _check_count(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ShardError(f"{where} is {value!r}, expected a positive integer")
    return value


class ShardDataset:
    """Reads a folder of shards through memory maps.

    Opening checks the manifest (schema version, keys, layout against the configuration) and that
    every file is there with the expected size and ``.npy`` header; a missing or truncated file is
    named. :meth:`verify` reads everything and compares checksums, so that altered files are named.
    Files must lie in the folder itself.

    Attributes: ``folder``, ``manifest``, ``system``, and ``simulation`` (None for imported data).

    Raises:
        ShardError: one line naming the file and what is wrong with it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise ShardError(f"{path}: no such file; expected a folder written by `ris simulate`")
        try:
            manifest = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{path}: not valid JSON ({error})") from None
        if isinstance(manifest, dict) and manifest.get("schema", SCHEMA) != SCHEMA:
            raise ShardError(
                f"{path}: schema version {manifest['schema']!r}, this reader knows {SCHEMA}"
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
        self._maps = [self._open_shard(f"{path}: shards[{i}]", s) for i, s in enumerate(shards)]
        self._ends = np.cumsum([shard["samples"] for shard in shards])
        if _check_count(f"{path}: 'samples'", manifest["samples"]) != self._ends[-1]:
            raise ShardError(
                f"{path}: 'samples' is {manifest['samples']}, its shards hold {self._ends[-1]}"
            )

    def _open_shard(self, where: str, shard: Any) -> dict[str, Tensor]:
        _check_keys(where, shard, _SHARD_KEYS)
        samples = _check_count(f"{where}.samples", shard["samples"])
        _check_keys(f"{where}.files", shard["files"], set(self._layout))
        maps = {}
        for name, entry in shard["files"].items():
            _check_keys(f"{where}.files.{name}", entry, _FILE_KEYS)
            maps[name] = self._open_file(f"{where}.files.{name}", name, samples, entry)
        return maps

    def _open_file(self, where: str, name: str, samples: int, entry: dict[str, Any]) -> Tensor:
        relative = entry["path"]
        if not isinstance(relative, str) or not self._is_inside(relative):
            raise ShardError(
                f"{where}: path {relative!r} is not the name of a file in the folder itself"
            )
        if relative in self._seen:
            raise ShardError(f"{where}: path {relative!r} is used twice")
        self._seen.add(relative)
        path = self.folder / relative
        if not path.is_file():
            raise ShardError(f"{path}: missing, but listed in {MANIFEST}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise ShardError(
                f"{path}: has {size} bytes, {MANIFEST} says {entry['bytes']} (truncated or altered)"
            )
        dtype, shape = self._layout[name]
        shape = (samples, *shape)
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"version {version}")
                header = np.lib.format.read_array_header_1_0(file)
                offset = file.tell()
        except Exception as error:
            # What NumPy raises of a damaged header is not a closed list.
            raise ShardError(f"{path}: its .npy header cannot be read ({error})") from None
        if header != (shape, False, np.dtype(dtype)):
            raise ShardError(
                f"{path}: its .npy header says {header[2]} {header[0]}, expected {dtype} {shape}"
            )
        if size != offset + math.prod(shape) * np.dtype(dtype).itemsize:
            raise ShardError(f"{path}: has {size} bytes, not the size of {dtype} {shape}")
        # torch.from_file maps without keeping a file descriptor, of which a process has few.
        raw = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        return raw[offset:].view(torch.from_numpy(np.empty(0, dtype)).dtype).view(shape)

    def _is_inside(self, relative: str) -> bool:
        if relative in ("", ".", "..") or set(relative) & set("/\\:\0"):
            return False
        try:
            # Half of a surrogate pair is JSON, but not the name of a file; nor is a very long one.
            if len(os.fsencode(relative)) > _LONGEST_NAME:
                return False
        except UnicodeEncodeError:
            return False
        return (self.folder / relative).resolve().parent == self.folder.resolve()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(
        self, indices: Sequence[int] | range | slice | np.ndarray[Any, Any] | Tensor
    ) -> Scenes:
        """Scenes at ``indices``, in their order, copied into memory.

        Raises:
            IndexError: an index lies outside [0, len).
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
            name: torch.empty(len(index), *part.shape[1:], dtype=part.dtype)
            for name, part in self._maps[0].items()
        }
        for number in np.unique(shard):
            rows = np.flatnonzero(shard == number)
            first = self._ends[number] - self.manifest["shards"][number]["samples"]
            local = torch.from_numpy(index[rows] - first)
            target = torch.from_numpy(rows)
            for name, part in self._maps[number].items():
                out[name].index_copy_(0, target, part.index_select(0, local))
        return Scenes(**out)

    def verify(self, progress: Progress | None = None) -> None:
        """Compare every file, and the manifest itself, with its checksum.

        ``progress(done, files)`` is called after every file.

        Raises:
            ShardError: names the first file that differs.
        """
        entries = [e for shard in self.manifest["shards"] for e in shard["files"].values()]
        for done, entry in enumerate(entries, 1):
            path = self.folder / entry["path"]
            digest = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise ShardError(f"{path}: cannot be read ({error.strerror})") from None
            if digest.hexdigest() != entry["sha256"]:
                raise ShardError(f"{path}: SHA-256 differs from {MANIFEST}; the file was altered")
            if progress is not None:
                progress(done, len(entries))
        if manifest_digest(self.manifest) != self.manifest["sha256"]:
            path = self.folder / MANIFEST
            raise ShardError(f"{path}: SHA-256 differs from its own; the file was altered")
