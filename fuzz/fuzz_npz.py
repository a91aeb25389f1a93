# SPDX-License-Identifier: Apache-2.0
"""The importer of .npz shards: refused with ShardError and nothing left behind, or imported whole.

A case is the bytes of the file, a valid file with bytes written over, or an archive of arrays that
depart from the layout: other shapes, dtypes and values, pickled, with a header that lies.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.target import Choices, FindingError, fuzz

_ROOT = Path(tempfile.mkdtemp(prefix="fuzz-npz-"))
_SCENES = 2


@cache
def _system() -> Any:
    from ris_pytorch_pipeline.configs import SystemConfig

    return SystemConfig(n_h=2, n_v=1, antennas=2, snapshots=2, max_sources=2)


@cache
def _fields() -> dict[str, np.ndarray[Any, Any]]:
    system, draw = _system(), np.random.default_rng(0)
    n, m, count, slots = system.elements, system.antennas, system.snapshots, system.max_sources
    shapes = {"y": (count, m, 2), "H_full": (m, n, 2), "codes": (count, n, 2), "H": (count, m, 2)}
    arrays = {
        name: draw.standard_normal((_SCENES, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    place = [[0.1] * slots + [0.05] * slots + [2.0] * slots] * _SCENES
    arrays["ptr"] = np.array(place, np.float32)
    arrays["K"] = np.array([1, 2], np.float32)
    arrays["snr"] = np.array([3, 10], np.float32)
    return arrays


def _mutated(array: np.ndarray[Any, Any], choices: Choices) -> np.ndarray[Any, Any]:
    kind = choices.of(("shape", "dtype", "value", "order", "object"))
    if kind == "shape":
        shape = list(array.shape)
        axis = choices.byte() % (len(shape) + 1)
        size = choices.of((0, 1, 2, 3, 7))
        if choices.sometimes(2):
            shape.insert(axis, size)
        elif axis < len(shape):
            shape[axis] = size
        else:
            shape = shape[:-1]
        return np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)
    if kind == "dtype":
        dtypes = ("f8", "f2", ">f4", "i4", "u1", "?", "c8", "S3", "U2", "M8[s]", "V4", "g")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dtype = choices.of(dtypes)
            try:
                return array.astype(dtype)
            except (TypeError, ValueError):
                return np.zeros(array.shape, dtype)
    if kind == "value" and array.dtype.kind in "fiu":
        changed = array.astype(np.float64)
        value = choices.of((np.nan, np.inf, 0.0, -1.0, 3.0, 0.5, 1e300, 1e-300, 4.0, 100.0))
        if changed.size:
            changed.reshape(-1)[choices.byte() % changed.size] = value
        with np.errstate(over="ignore"):
            return changed if choices.sometimes(2) else changed.astype(np.float32)
    if kind == "order":
        return np.asfortranarray(array)
    return np.full(array.shape, {"a": 1}, object)


def _member(array: np.ndarray[Any, Any], choices: Choices) -> bytes:
    """An .npy file, sometimes with a header that lies or bytes that are missing."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    content = file.getvalue()
    if choices.sometimes(4):
        shape = repr(array.shape).encode()
        lie = choices.of(
            (b"(99999999999,)", b"(2, -1)", b"(4, 4611686018427387904)", b"()", b"(2,",
             b"(" * 90, b"(1e3,)", b"(True,)")
        )  # fmt: skip
        content = content.replace(shape, lie, 1)
    if choices.sometimes(8):
        content = content[: choices.number() % (len(content) + 1)]
    if choices.sometimes(8):
        content += b"\0" * choices.of((1, 1000, 100_000))
    return content


def _archive(choices: Choices) -> bytes:
    file = io.BytesIO()
    method = choices.of((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    changes = choices.of((0, 1, 1, 2, 3))
    arrays = dict(_fields())
    for _ in range(changes):
        name = choices.of(list(arrays))
        what = choices.of(("mutate", "mutate", "remove", "add"))
        if what == "remove":
            del arrays[name]
        elif what == "add":
            arrays[choices.of(("R", "R_samp", "extra", "../escape", ""))] = arrays[name]
        else:
            arrays[name] = _mutated(arrays[name], choices)
        if not arrays:
            break
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            member = _member(array, choices) if changes else _member(array, Choices(b""))
            archive.writestr(f"{name}.npy" if not choices.sometimes(16) else name, member)
    content = file.getvalue()
    for _ in range(choices.of((0, 0, 0, 1, 3))):
        # Anywhere, and near the end, where the directory of the archive is.
        at = choices.number() % len(content)
        if choices.sometimes(2):
            at = len(content) - 1 - choices.byte() % len(content)
        content = content[:at] + bytes([choices.byte()]) + content[at + 1 :]
    return content


def test(data: bytes) -> None:
    """Import one file."""
    from ris_pytorch_pipeline.npz_import import import_npz
    from ris_pytorch_pipeline.shards import ShardDataset, ShardError

    choices = Choices(data)
    path, folder = _ROOT / "shard.npz", _ROOT / "imported"
    kind = choices.of(("archive", "raw"))
    path.write_bytes(_archive(choices) if kind == "archive" else choices.rest())
    try:
        with warnings.catch_warnings():
            # Sources outside of the field of view, and what NumPy and zipfile say of odd files.
            warnings.simplefilter("ignore")
            import_npz([path], folder, system=_system())
    except ShardError as error:
        if str(path) not in str(error):
            raise FindingError(f"a refusal that does not name the file: {error}") from error
        left = sorted(entry.name for entry in _ROOT.iterdir() if entry != path)
        if left:
            raise FindingError(f"refused, but {left} were left behind") from error
        return
    dataset = ShardDataset(folder)
    dataset.verify()
    scenes = dataset.batch(range(len(dataset)))
    for name in ("y", "h", "codes"):
        values = getattr(scenes, name)
        if not np.isfinite(values.numpy()).all():
            raise FindingError(f"{name} was imported with values that are not finite")
    if not ((scenes.num_sources >= 1) & (scenes.num_sources <= _system().max_sources)).all():
        raise FindingError(f"imported with {scenes.num_sources} sources")
    shutil.rmtree(folder)


if __name__ == "__main__":
    fuzz(
        "npz",
        test,
        ["ris_pytorch_pipeline.npz_import", "ris_pytorch_pipeline.shard_writer",
         "numpy.lib.format", "numpy.lib._format_impl", "numpy.lib._npyio_impl", "zipfile"],
    )  # fmt: skip
