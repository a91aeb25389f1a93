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

import contextlib
import lzma
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .configs import SystemConfig
from .npy_header import NPY_HEADER, npy_header
from .shard_writer import FolderWriter, ShardError
from .simulate import Scenes
from .untrusted import first_line, open_regular, shown

_REQUIRED = ("y", "H_full", "codes", "ptr", "K", "snr")
_EXPANSION = 100
"""Noise does not compress; arrays that are this many times their archive hold no measurements."""
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    OverflowError,
    RuntimeError,
)
"""What reading a damaged archive can raise; RuntimeError where a member is encrypted or compressed
in an unknown way."""


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
    with open_regular(path, ShardError) as (handle, status), open(handle, "rb", closefd=False) as f:
        if f.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            raise ShardError(f"{path}: a single array, expected an .npz shard")
        try:
            archive = zipfile.ZipFile(f)
        except (ValueError, *_ZIP_ERRORS) as error:
            raise ShardError(f"{path}: not a readable .npz shard ({first_line(error)})") from None
        with archive:
            return _scenes(_Reader(path, archive, status.st_size, system))


class _Member(NamedTuple):
    """What the header of an array in the archive says."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int


class _Reader:
    """Reads and checks the fields of one shard.

    Every header is looked at before anything is taken for its array: its shape must be the
    expected one, its size the one that the archive states, and all arrays together no larger than
    :data:`_EXPANSION` times the file.
    """

    def __init__(
        self, path: Path, archive: zipfile.ZipFile, size: int, system: SystemConfig
    ) -> None:
        self.path = path
        self.system = system
        self._archive, self._left = archive, _EXPANSION * size
        names = archive.namelist()
        for name in _REQUIRED:
            if f"{name}.npy" not in names:
                note = (
                    " (the channel cannot be derived from R, H or R_samp)"
                    if name == "H_full"
                    else ""
                )
                raise ShardError(f"shard {path}: field {name!r} is missing{note}")
            if names.count(f"{name}.npy") > 1:
                raise self.error(name, "is in the archive twice")
        shape = self._member("K").shape
        if len(shape) != 1:
            raise self.error("K", f"has shape {shown(shape)}, expected one number a scene")
        [self.samples] = shape
        if self.samples == 0:
            raise self.error("K", "is empty")

    def error(self, name: str, problem: str) -> ShardError:
        return ShardError(f"shard {self.path}: field {name!r} {problem}")

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self._archive.open(f"{name}.npy") as stream:
                yield stream
        except ShardError:
            raise
        except (ValueError, *_ZIP_ERRORS) as error:
            raise self.error(name, f"cannot be read ({first_line(error)})") from None

    def _member(self, name: str) -> _Member:
        with self._open(name) as stream:
            member = _Member(*npy_header(stream.read(NPY_HEADER)))
        if member.dtype.hasobject:
            raise self.error(name, "cannot be read (a pickle: allow_pickle is never set)")
        stated = self._archive.getinfo(f"{name}.npy").file_size
        if stated != member.offset + math.prod(member.shape) * member.dtype.itemsize:
            raise self.error(
                name, f"has {stated} bytes, not those of {member.dtype!s:.60} {shown(member.shape)}"
            )
        return member

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        member = self._member(name)
        if member.shape != shape:
            raise self.error(
                name,
                f"has shape {shown(member.shape)}, expected {shape} for "
                f"antennas={self.system.antennas}, snapshots={self.system.snapshots}, "
                f"elements={self.system.elements}, max_sources={self.system.max_sources}",
            )
        if member.dtype.kind not in "fiu":
            raise self.error(name, f"is {member.dtype!s:.60}, expected float32")
        size = math.prod(shape) * member.dtype.itemsize
        self._left -= size
        if self._left < 0:
            raise self.error(
                name,
                f"takes {size} bytes: the arrays are more than {_EXPANSION} times the file; "
                "save it without compression",
            )
        with self._open(name) as stream:
            stream.read(member.offset)
            # One byte more, so that the end is met and with it the checksum.
            data = stream.read(size + 1)
        if len(data) != size:
            raise self.error(name, f"cannot be read ({len(data)} bytes in place of {size})")
        array = np.frombuffer(data, member.dtype)
        return array.reshape(shape[::-1]).T if member.fortran else array.reshape(shape)

    def real(self, name: str, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Field ``name`` as finite float32 of shape ``[n, *shape]``."""
        array = self._array(name, (self.samples, *shape))
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(array).all():
            raise self.error(name, "holds non-finite values")
        return array

    def complex(self, name: str, *shape: int) -> Tensor:
        return torch.view_as_complex(torch.from_numpy(self.real(name, *shape, 2).copy()))

    def has(self, name: str) -> bool:
        return f"{name}.npy" in self._archive.namelist()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._member(name).shape


def _scenes(reader: _Reader) -> Scenes:
    system = reader.system
    snapshots, antennas, elements = system.snapshots, system.antennas, system.elements
    slots = system.max_sources
    y = reader.complex("y", snapshots, antennas)
    h = reader.complex("H_full", antennas, elements)
    codes = reader.complex("codes", snapshots, elements)
    folded = (reader.samples, snapshots, antennas, 2)
    if reader.has("H") and reader.shape("H") != folded:
        raise reader.error("H", f"has shape {shown(reader.shape('H'))}, expected {folded}")
    count = reader.real("K")
    if not ((count >= 1) & (count <= slots) & (count == np.floor(count))).all():
        raise reader.error("K", f"holds values that are no integers in [1, {slots}]")
    num_sources = torch.from_numpy(count.astype(np.int64))
    mask = torch.arange(slots) < num_sources[:, None]
    blocks = torch.from_numpy(reader.real("ptr", 3 * slots).copy()).view(-1, 3, slots)
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
        snr_db=torch.from_numpy(reader.real("snr").copy()),
    )
