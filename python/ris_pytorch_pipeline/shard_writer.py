# SPDX-License-Identifier: Apache-2.0
"""The files of a folder of shards: layout of the fields, and an all-or-nothing writer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np

from .configs import SimulationConfig, SystemConfig, to_dict
from .durable import naming, sync, write_atomically
from .simulate import Scenes

SCHEMA = 1
MANIFEST = "manifest.json"


class ShardError(ValueError):
    """Shards that cannot be read or written; the message names the file and says why."""


def field_layout(system: SystemConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """NumPy dtype and shape per scene of every stored field."""
    snapshots, antennas, elements = system.snapshots, system.antennas, system.elements
    slots = (system.max_sources,)
    return {
        "y": ("<c8", (snapshots, antennas)),
        "h": ("<c8", (antennas, elements)),
        "codes": ("<c8", (snapshots, elements)),
        "phi": ("<f4", slots),
        "theta": ("<f4", slots),
        "r": ("<f4", slots),
        "num_sources": ("<i8", ()),
        "power": ("<f4", slots),
        "snr_db": ("<f4", ()),
    }


def manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own ``sha256`` entry."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class _HashedFile:
    """A file written once from start to end, hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("xb")
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes) -> int:
        with naming(self._path):
            self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file once its data are on the disk."""
        with naming(self._path), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def entry(self) -> dict[str, Any]:
        """What the manifest says about this file."""
        return {"path": self._path.name, "bytes": self._bytes, "sha256": self._digest.hexdigest()}


class FolderWriter:
    """Writes a folder of shards beside its final place and moves it there when complete.

    Use as a context manager: :meth:`add_shard` once per shard, then :meth:`finish`. Leaving without
    :meth:`finish`, by an exception or otherwise, removes what was written and leaves ``folder`` as
    it was.

    Raises:
        ShardError: ``folder`` exists and ``overwrite`` is false, or it exists and is no folder of
            shards (which ``overwrite`` does not delete).
    """

    def __init__(self, folder: str | Path, system: SystemConfig, *, overwrite: bool) -> None:
        self.folder = Path(folder).absolute()
        self.system = system
        if os.path.lexists(self.folder):
            if not overwrite:
                raise ShardError(f"{folder}: exists already; choose another folder or overwrite it")
            if not (self.folder / MANIFEST).is_file():
                raise ShardError(f"{folder}: exists and has no {MANIFEST}; refusing to replace it")
        self._shards: list[dict[str, Any]] = []
        self._staging = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}.partial")

    def __enter__(self) -> FolderWriter:
        try:
            self._staging.mkdir(parents=True)
        except OSError as error:
            raise ShardError(f"{self.folder}: cannot be created ({error.strerror})") from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)

    def add_shard(self, samples: int, batches: Iterable[Scenes]) -> None:
        """Write one shard of ``samples`` scenes, given in batches in order."""
        layout = field_layout(self.system)
        number = len(self._shards)
        files: dict[str, _HashedFile] = {}
        count = 0
        with contextlib.ExitStack() as stack:
            for name, (dtype, shape) in layout.items():
                files[name] = _HashedFile(self._staging / f"{number:05d}.{name}.npy")
                stack.callback(files[name].close)
                header = {"descr": dtype, "fortran_order": False, "shape": (samples, *shape)}
                np.lib.format.write_array_header_1_0(cast(BinaryIO, files[name]), header)
            for scenes in batches:
                count += len(scenes)
                for name, tensor in scenes.tensors():
                    dtype, shape = layout[name]
                    array = tensor.cpu().resolve_conj().numpy()
                    if array.dtype != np.dtype(dtype) or array.shape[1:] != shape:
                        raise ShardError(
                            f"{self.folder}: field {name!r} is {array.dtype} {array.shape}, "
                            f"expected {dtype} {(len(scenes), *shape)}"
                        )
                    files[name].write(array.astype(dtype, copy=False).tobytes())
        if count != samples:
            raise ShardError(
                f"{self.folder}: shard {number} got {count} scenes, expected {samples}"
            )
        closed = {name: file.entry() for name, file in files.items()}
        self._shards.append({"samples": samples, "files": closed})

    def finish(self, simulation: SimulationConfig | None, origin: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, move the folder into place and return the manifest."""
        layout = field_layout(self.system)
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "system": to_dict(self.system),
            "simulation": None if simulation is None else to_dict(simulation),
            "origin": origin,
            "samples": sum(shard["samples"] for shard in self._shards),
            "fields": {k: {"dtype": d, "shape": list(s)} for k, (d, s) in layout.items()},
            "shards": self._shards,
        }
        manifest["sha256"] = manifest_digest(manifest)
        write_atomically(self._staging / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        if os.path.lexists(self.folder):
            retired = self._staging.with_suffix(".retired")
            os.replace(self.folder, retired)
            try:
                os.replace(self._staging, self.folder)
            except OSError:
                os.replace(retired, self.folder)
                raise
            shutil.rmtree(retired)
        else:
            os.replace(self._staging, self.folder)
        sync(self.folder.parent)
        return manifest
