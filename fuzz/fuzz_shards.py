# SPDX-License-Identifier: Apache-2.0
"""Folders of shards: refused with ShardError, or read as what the manifest says, from the folder.

A case is the bytes of the manifest, departures from a valid one, or one file of the folder with
bytes written over, cut off or added, where the manifest knows its new size.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.mutations import mutate
from fuzz.target import Choices, FindingError, fuzz

_ROOT = Path(tempfile.mkdtemp(prefix="fuzz-shards-"))
_SCENES = 3


@cache
def _valid() -> dict[str, Any]:
    """A folder of two shards, and its manifest. Around it lies what must not be read."""
    from ris_pytorch_pipeline.configs import SimulationConfig, SystemConfig
    from ris_pytorch_pipeline.shards import write_shards

    system = SystemConfig(n_h=2, n_v=1, antennas=2, snapshots=2, max_sources=2)
    folder = _ROOT / "valid"
    manifest = write_shards(
        folder, system, SimulationConfig(), samples=_SCENES, shard_size=2, seed=0
    )
    shutil.copytree(folder, _ROOT / "folder")
    first = next(iter(manifest["shards"][0]["files"].values()))["path"]
    shutil.copy(folder / first, _ROOT / "outside.npy")
    (_ROOT / "folder" / "link.npy").symlink_to(_ROOT / "outside.npy")
    return manifest


def _damage(content: bytes, choices: Choices) -> bytes:
    """Bytes written over, cut off or added."""
    for _ in range(choices.of((0, 1, 1, 2, 4))):
        at = choices.of((0, 6, 8, 10)) if choices.sometimes(4) else choices.number()
        at %= len(content) + 1
        kind = choices.of(("over", "cut", "insert", "header"))
        if kind == "over":
            content = content[:at] + bytes([choices.byte()]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + bytes([choices.byte()]) * choices.of((1, 64)) + content[at:]
        else:
            old, new = choices.of(
                ((b"(2, ", b"(9999999999999, "), (b"False", b"True "), (b"<", b">"), (b"'", b"("),
                 (b"<c8", b"|O "), (b"}", b""), (b"(", b"((((("), (b" ", b"\n\t\n"), (b"2", b"-2"))
            )  # fmt: skip
            content = content.replace(old, new, 1)
    return content


def _check(folder: Path, dataset: Any) -> None:
    """An accepted folder gives what its manifest says."""
    from ris_pytorch_pipeline.shard_writer import field_layout
    from ris_pytorch_pipeline.shards import ShardError

    for shard in dataset.manifest["shards"]:
        for entry in shard["files"].values():
            if (folder / entry["path"]).resolve().parent != folder.resolve():
                raise FindingError(f"{entry['path']!r} lies outside of the folder")
    scenes = dataset.batch(range(len(dataset)))
    if len(scenes) != sum(shard["samples"] for shard in dataset.manifest["shards"]):
        raise FindingError(f"{len(scenes)} scenes, not the sum of the shards")
    for name, (_, shape) in field_layout(dataset.system).items():
        if tuple(getattr(scenes, name).shape) != (len(scenes), *shape):
            raise FindingError(f"{name} has shape {getattr(scenes, name).shape}, expected {shape}")
    try:
        dataset.verify()
    except ShardError:
        return
    # The digest of the manifest covers everything in it.
    if dataset.manifest != _valid():
        raise FindingError("an altered manifest passes verify()")


def test(data: bytes) -> None:
    """Open, read and verify one folder."""
    from ris_pytorch_pipeline.shards import ShardDataset, ShardError

    manifest = _valid()
    choices = Choices(data)
    folder = _ROOT / "folder"
    kind = choices.of(("mutated", "file", "raw"))
    damaged: Path | None = None
    document: Any = manifest
    if kind == "file":
        shard = choices.of(manifest["shards"])
        name, entry = choices.of(sorted(shard["files"].items()))
        damaged = folder / entry["path"]
        content = _damage(damaged.read_bytes(), choices)
        damaged.write_bytes(content)
        if not choices.sometimes(4):
            document = json.loads(json.dumps(manifest))
            index = manifest["shards"].index(shard)
            document["shards"][index]["files"][name]["bytes"] = len(content)
    elif kind == "mutated":
        document = mutate(manifest, choices)
    raw = choices.rest() if kind == "raw" else json.dumps(document).encode()
    (folder / "manifest.json").write_bytes(raw)
    try:
        dataset = ShardDataset(folder)
    except ShardError as error:
        if not str(error).startswith(str(folder)):
            raise FindingError(f"a refusal that names no file: {error}") from error
    else:
        _check(folder, dataset)
    finally:
        if damaged is not None:
            shutil.copy(_ROOT / "valid" / damaged.name, damaged)


if __name__ == "__main__":
    fuzz(
        "shards",
        test,
        ["ris_pytorch_pipeline.shards", "ris_pytorch_pipeline.shard_writer",
         "ris_pytorch_pipeline.config_io", "numpy.lib.format", "numpy.lib._format_impl"],
    )  # fmt: skip
