# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder of weights, configuration and training state.

``weights.safetensors`` holds the network's weights, ``config.json`` the experiment, ``state.json``
and ``state.safetensors`` the rest (:mod:`.state_io`), and ``manifest.json`` the size and SHA-256 of
the four, and its own. A folder is written beside its destination and renamed into place, so that a
reader finds the old checkpoint or the new one; it is on the disk before the old one goes.

Nothing in a checkpoint can execute code. Every file is read once, compared with its checksum, and
only then looked into; sizes are held to what the network needs before memory is taken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .configs import ConfigError, CovarianceConfig, ExperimentConfig, from_dict, to_dict
from .durable import draft_of, sync, write_synced
from .model import LocalizationNet
from .state_io import pack, read_tensors, tensor_bytes, unpack
from .untrusted import LARGE, SMALL, first_line, parse_json, read_bytes, read_json, shown

FORMAT = 2
"""Format 1 kept its state in a pickle; it is refused."""
WEIGHTS, CONFIG, MANIFEST = "weights.safetensors", "config.json", "manifest.json"
STATE, TENSORS = "state.json", "state.safetensors"
FILES = (WEIGHTS, CONFIG, STATE, TENSORS)
STATE_SHARE = 32
"""Tensors of a state may take this many times the weights (optimizer and averages take four)."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or damaged; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; ``net`` is in evaluation mode."""

    config: ExperimentConfig
    net: LocalizationNet
    state: dict[str, Any]


def config_differences(first: Any, second: Any) -> list[str]:
    """``key: a -> b`` for every leaf in which two configurations of one class differ.

    >>> config_differences(CovarianceConfig(), CovarianceConfig(beta=0.5))
    ['beta: 0.3 -> 0.5']
    """

    def walk(a: Any, b: Any, key: str) -> list[str]:
        if isinstance(a, dict):
            return [line for name in a for line in walk(a[name], b[name], f"{key}.{name}")]
        return [] if a == b else [f"{key[1:]}: {a!r} -> {b!r}"]

    return walk(to_dict(first), to_dict(second), "")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _own_digest(manifest: dict[str, Any]) -> str:
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    return _digest(json.dumps(body, sort_keys=True).encode())


def previous_of(folder: Path) -> Path:
    """Where the checkpoint that was at ``folder`` before the present one is kept."""
    return folder.with_name(f"{folder.name}.previous")


def damaged_of(folder: Path) -> Path:
    """Where :func:`fall_back` puts a checkpoint that cannot be read."""
    return folder.with_name(f"{folder.name}.damaged")


def save_checkpoint(
    folder: str | Path,
    config: ExperimentConfig,
    net: LocalizationNet,
    state: dict[str, Any] | None = None,
    *,
    keep_previous: bool = False,
) -> Path:
    """Write a checkpoint to ``folder``, replacing one that is there, and return its path.

    Args:
        folder: destination; its parent is made if needed.
        config: the experiment; ``config.covariance`` must be the network's.
        net: its weights are saved.
        state: anything a continued training needs: tensors and plain Python values.
        keep_previous: keep the checkpoint that is replaced, for :func:`fall_back`.

    Raises:
        TypeError: ``state`` holds something else.
        OSError: names the file that could not be written; what was at ``folder`` is still there.
    """
    if config.covariance != net.covariance:
        raise ConfigError(
            "save_checkpoint: the network was made with another covariance configuration: "
            + ", ".join(config_differences(config.covariance, net.covariance))
        )
    text, tensors = pack(state or {})
    contents = {
        WEIGHTS: tensor_bytes(net.state_dict()),
        CONFIG: (json.dumps(to_dict(config), indent=2) + "\n").encode(),
        STATE: text,
        TENSORS: tensors,
    }
    files = {name: {"bytes": len(d), "sha256": _digest(d)} for name, d in contents.items()}
    manifest: dict[str, Any] = {"format": FORMAT, "files": files}
    manifest["sha256"] = _own_digest(manifest)
    contents[MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, previous = draft_of(folder), previous_of(folder)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        for name, data in contents.items():
            write_synced(draft / name, data)
        sync(draft)
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        draft.rename(folder)
        sync(folder.parent)
        if not keep_previous:
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def has_checkpoint(folder: str | Path) -> bool:
    """Whether :func:`load_checkpoint` would find a checkpoint (complete or not) at ``folder``."""
    return Path(folder).is_dir() or previous_of(Path(folder)).is_dir()


def remove_checkpoint(folder: str | Path) -> None:
    """Delete the checkpoint at ``folder``, if there is one, and what is kept of earlier ones."""
    folder = Path(folder)
    for place in (folder, previous_of(folder), damaged_of(folder)):
        if any((place / name).is_file() for name in (MANIFEST, *FILES)):
            shutil.rmtree(place)


def fall_back(folder: Path) -> Path:
    """Put the previous checkpoint in the place of one that cannot be read.

    The unreadable one is kept beside it; returns where.

    Raises:
        CheckpointError: there is no previous one, or it cannot be read either; nothing is moved.
    """
    previous, damaged = previous_of(folder), damaged_of(folder)
    if not previous.is_dir() or not folder.is_dir():
        raise CheckpointError("no earlier checkpoint is kept")
    try:
        load_checkpoint(previous)
    except ValueError as error:
        raise CheckpointError(f"nor can the one before it be read: {error}") from None
    shutil.rmtree(damaged, ignore_errors=True)
    folder.rename(damaged)
    previous.rename(folder)
    sync(folder.parent)
    return damaged


def _manifest(folder: Path) -> dict[str, Any]:
    """The entries of the manifest, after checking that it is whole and every file is there."""
    for name in (MANIFEST, *FILES):
        # A folder of format 1 has another set of files: its format says more than their absence.
        if not (folder / name).is_file() and (name == MANIFEST or not _is_old(folder)):
            raise CheckpointError(f"{folder / name}: missing; the checkpoint is incomplete")
    path = folder / MANIFEST
    damaged = CheckpointError(f"{path}: damaged (not a checkpoint manifest)")
    try:
        manifest = read_json(path, SMALL, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise damaged
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {shown(manifest['format'])}, this version reads {FORMAT}"
        )
    files = manifest.get("files")
    if set(manifest) != {"format", "files", "sha256"} or not isinstance(files, dict):
        raise damaged
    if manifest["sha256"] != _own_digest(manifest):
        raise CheckpointError(f"{path}: damaged (its SHA-256 is not its own)")
    if set(files) != set(FILES) or not all(
        isinstance(entry, dict) and set(entry) == {"bytes", "sha256"} for entry in files.values()
    ):
        raise damaged
    return files


def _is_old(folder: Path) -> bool:
    return (folder / "state.pt").is_file()


def _read(folder: Path, name: str, entry: dict[str, Any], limit: int) -> bytes:
    """A file of at most ``limit`` bytes, compared with its entry in the manifest."""
    path = folder / name
    data = read_bytes(path, limit, CheckpointError)
    if len(data) != entry["bytes"] or _digest(data) != entry["sha256"]:
        raise CheckpointError(f"{path}: damaged (its SHA-256 is not the manifest's)")
    return data


def _weight_bytes(config: ExperimentConfig, path: Path) -> int:
    """Bytes of the weights of a configuration's network, found without taking memory for it.

    Raises:
        CheckpointError: the network would not fit into this machine's memory.
    """
    try:
        with torch.device("meta"):
            net = LocalizationNet(config.system, config.model, config.covariance)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: its network cannot be made ({first_line(error)})") from None
    sizes = [
        sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        for tensors in (net.parameters(), net.buffers())
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sum(sizes) > memory:
        raise CheckpointError(
            f"{path}: its network takes {sum(sizes):.2g} bytes, this machine has {memory:.2g}"
        )
    return sizes[0]


def load_checkpoint(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    expect: CovarianceConfig | None = None,
    allow_mismatch: bool = False,
) -> Checkpoint:
    """Read a checkpoint written by :func:`save_checkpoint`.

    Args:
        folder: the checkpoint.
        device: where the network and the tensors of the state go.
        expect: the covariance configuration that is going to be used; one that differs from the
            saved one is refused, because the network was trained for that one.
        allow_mismatch: take ``expect`` in place of the saved one instead of refusing it.

    Raises:
        CheckpointError: a file is missing, damaged or of another format.
        ConfigError: ``expect`` differs from the saved configuration.
    """
    folder = source = Path(folder)
    if not folder.is_dir():
        # A process that was stopped between the two renames leaves the old checkpoint here.
        source = previous_of(folder)
        if not source.is_dir():
            raise CheckpointError(f"{folder}: no such checkpoint folder")
    files = _manifest(source)
    text = _read(source, CONFIG, files[CONFIG], SMALL)
    path = source / CONFIG
    config = from_dict(ExperimentConfig, parse_json(text, path, CheckpointError), str(path))
    if expect is not None and expect != config.covariance:
        differences = config_differences(config.covariance, expect)
        if not allow_mismatch:
            raise ConfigError(
                f"{folder}: trained with another covariance configuration (saved -> wanted): "
                f"{', '.join(differences)}; use the saved one, or allow the mismatch explicitly"
            )
        config = dataclasses.replace(config, covariance=expect)
    size = _weight_bytes(config, path)
    data = _read(source, WEIGHTS, files[WEIGHTS], size + LARGE)
    weights = read_tensors(data, str(source / WEIGHTS), CheckpointError)
    net = LocalizationNet(config.system, config.model, config.covariance)
    try:
        for name, tensor in net.state_dict().items():
            if name in weights and weights[name].dtype != tensor.dtype:
                raise RuntimeError(f"{name} is {weights[name].dtype}, expected {tensor.dtype}")
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source / WEIGHTS}: does not fit the saved configuration ({str(error)[:300]})"
        ) from None
    text = _read(source, STATE, files[STATE], LARGE)
    data = _read(source, TENSORS, files[TENSORS], STATE_SHARE * size + LARGE)
    tensors = read_tensors(data, str(source / TENSORS), CheckpointError)
    state = unpack(text, tensors, str(source / STATE), CheckpointError, device)
    return Checkpoint(config, net.to(device).eval(), state)
