# SPDX-License-Identifier: Apache-2.0
"""Imports existing ``.npz`` shards into a folder of shards.

Layout of an ``.npz`` shard of n scenes, complex numbers as (real, imaginary) pairs of float32:

    y [n,L,M,2]   H_full [n,M,N,2]   codes [n,L,N,2]   ptr [n,3*K_max]   K [n]   snr [n]
    H [n,L,M,2]   R   R_samp

``ptr`` holds the azimuths of all slots, then the elevations, then the ranges (radians, metres), and
``snr`` decibels. ``H`` is the channel folded with the codes; its shape is checked and it is not
used. ``R`` and ``R_samp`` are not read at all: the channel cannot be had from a covariance, so a
shard without ``H_full`` is refused. Source powers are not in this layout and are taken as equal.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .configs import SystemConfig
from .shard_writer import FolderWriter, ShardError
from .simulate import Scenes

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MOST_DEFLATED = 1032
"""Bytes that one byte of a deflated stream can stand for."""
_REQUIRED = ("y", "H_full", "codes", "ptr", "K", "snr")


def import_npz(
    paths: Iterable[str | Path],
    folder: str | Path,
    *,
    system: SystemConfig,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Import ``.npz`` shards (see the module) into a new ``folder``, one shard each.

    Args:
        paths: the ``.npz`` files, imported in the given order.
        system: the surface, station and field of view they were made for; array sizes must match.
        progress: called as ``progress(done, files)`` after every file.

    Returns the manifest. ``folder`` appears complete or not at all. Sources outside the field of
    view of ``system`` are imported, with one warning per file.

    Raises:
        ShardError: a file is missing, unreadable or pickled, lacks a field, has a wrong shape or
            non-finite values; the message names the file and the field.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise ShardError("import_npz: got no .npz files, expected at least one")
    with FolderWriter(folder, system, overwrite=overwrite) as writer:
        for done, path in enumerate(files, 1):
            scenes = _read(path, system)
            writer.add_shard(len(scenes), [scenes])
            if progress is not None:
                progress(done, len(files))
        return writer.finish(None, {"kind": "npz", "files": [path.name for path in files]})


def _read(path: Path, system: SystemConfig) -> Scenes:
    if not path.is_file():
        raise ShardError(f"{path}: no such file")
    try:
        archive = np.load(path, allow_pickle=False)
    except ValueError:
        # NumPy's own message advises unpickling the file.
        raise ShardError(f"{path}: not a readable .npz shard (no archive of arrays)") from None
    except Exception as error:
        # What zipfile and NumPy raise of damaged bytes is not a closed list.
        raise ShardError(f"{path}: not a readable .npz shard ({error})") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ShardError(f"{path}: a single array, expected an .npz shard")
    with archive:
        for name in _REQUIRED:
            if name not in archive.files:
                note = (
                    " (the channel cannot be derived from R, H or R_samp)"
                    if name == "H_full"
                    else ""
                )
                raise ShardError(f"shard {path}: field {name!r} is missing{note}")
        return _scenes(_Reader(path, archive, system))


class _Reader:
    """Reads and checks the fields of one shard."""

    def __init__(self, path: Path, archive: Any, system: SystemConfig) -> None:
        self.path = path
        self.system = system
        self._archive = archive
        self.samples = int(self._load("K").size)
        if self.samples == 0:
            raise self.error("K", "is empty")

    def error(self, name: str, problem: str) -> ShardError:
        return ShardError(f"shard {self.path}: field {name!r} {problem}")

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype that a field announces, before memory is taken for them."""
        archive = self._archive.zip
        member = name if name in archive.namelist() else f"{name}.npy"
        try:
            info = archive.getinfo(member)
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                reader = _HEADER_READERS.get(version)
                if reader is None:
                    raise ValueError(f"version {version} of .npy")
                shape, _, dtype = reader(file)
                held = info.file_size - file.tell()
        except Exception as error:
            raise self.error(name, f"cannot be read ({error})") from None
        announced = math.prod(shape) * dtype.itemsize
        packed = min(info.compress_size, self.path.stat().st_size)
        if dtype.hasobject:
            raise self.error(name, "cannot be read (pickled objects; allow_pickle is False)")
        if announced != held or held > _MOST_DEFLATED * (packed + 1):
            raise self.error(name, f"announces {dtype} {shape}, which is not what the file holds")
        return shape, dtype

    def _load(self, name: str) -> np.ndarray[Any, Any]:
        self._header(name)
        try:
            array: np.ndarray[Any, Any] = self._archive[name]
        except Exception as error:
            raise self.error(name, f"cannot be read ({error})") from None
        return array

    def real(self, name: str, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Field ``name`` as finite float32 of shape ``[n, *shape]``."""
        expected = (self.samples, *shape)
        found = self.shape(name)
        if found != expected:
            raise self.error(
                name,
                f"has shape {found}, expected {expected} for "
                f"antennas={self.system.antennas}, snapshots={self.system.snapshots}, "
                f"elements={self.system.elements}, max_sources={self.system.max_sources}",
            )
        array = self._load(name)
        if array.dtype.kind not in "fiu":
            raise self.error(name, f"is {array.dtype}, expected float32")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise self.error(name, "holds non-finite values")
        return array

    def complex(self, name: str, *shape: int) -> Tensor:
        pairs = np.ascontiguousarray(self.real(name, *shape, 2))
        return torch.view_as_complex(torch.from_numpy(pairs))

    def has(self, name: str) -> bool:
        return name in self._archive.files

    def shape(self, name: str) -> tuple[int, ...]:
        return self._header(name)[0]


def _scenes(reader: _Reader) -> Scenes:
    system = reader.system
    snapshots, antennas, elements = system.snapshots, system.antennas, system.elements
    slots = system.max_sources
    y = reader.complex("y", snapshots, antennas)
    h = reader.complex("H_full", antennas, elements)
    codes = reader.complex("codes", snapshots, elements)
    folded = (reader.samples, snapshots, antennas, 2)
    if reader.has("H") and reader.shape("H") != folded:
        raise reader.error("H", f"has shape {reader.shape('H')}, expected {folded}")
    count = reader.real("K")
    if not ((count >= 1) & (count <= slots) & (count == np.floor(count))).all():
        raise reader.error("K", f"holds values that are no integers in [1, {slots}]")
    num_sources = torch.from_numpy(count.astype(np.int64))
    mask = torch.arange(slots) < num_sources[:, None]
    blocks = torch.from_numpy(reader.real("ptr", 3 * slots)).view(-1, 3, slots)
    phi, theta, r = (block.contiguous() for block in blocks.unbind(1))
    half = math.pi / 2
    if bool((mask & ((phi.abs() > 2 * half) | (theta.abs() > half) | (r <= 0))).any()):
        raise reader.error(
            "ptr", "holds angles beyond +-pi (azimuth) or +-pi/2 (elevation), or ranges <= 0; "
            "expected radians and metres, azimuths first, then elevations, then ranges",
        )  # fmt: skip
    edge = 1 + 1e-5
    outside = (phi.abs() > system.phi_max * edge) | (theta.abs() > system.theta_max * edge)
    outside = mask & (outside | (r < system.r_min / edge) | (r > system.r_max * edge))
    if bool(outside.any()):
        warnings.warn(
            f"shard {reader.path}: {int(outside.sum())} of {int(mask.sum())} sources lie outside "
            "the field of view of the SystemConfig; widen phi_max, theta_max, r_min or r_max",
            stacklevel=4,
        )
    return Scenes(
        y=y,
        h=h,
        codes=codes,
        phi=phi.masked_fill(~mask, 0.0),
        theta=theta.masked_fill(~mask, 0.0),
        r=r.masked_fill(~mask, system.r_max),
        num_sources=num_sources,
        power=mask / num_sources[:, None].to(torch.float32),
        snr_db=torch.from_numpy(reader.real("snr")),
    )
