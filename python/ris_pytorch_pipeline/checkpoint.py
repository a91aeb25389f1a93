# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder of weights, configuration and training state.

``weights.safetensors`` holds the network's weights, ``config.json`` the experiment, ``state.pt``
the rest (tensors and plain values only, so that ``torch.load(weights_only=True)`` reads it) and
``manifest.json`` the SHA-256 of the three. A folder is written beside its destination and renamed
into place, so that a reader finds the old checkpoint or the new one; it is on the disk before the
old one goes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .configs import (
    ConfigError,
    CovarianceConfig,
    ExperimentConfig,
    load_config,
    save_config,
    to_dict,
)
from .durable import draft_of, sync
from .model import LocalizationNet

FORMAT = 1
WEIGHTS, CONFIG, STATE, MANIFEST = "weights.safetensors", "config.json", "state.pt", "manifest.json"


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


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _previous(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.previous")


def save_checkpoint(
    folder: str | Path,
    config: ExperimentConfig,
    net: LocalizationNet,
    state: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint to ``folder``, replacing one that is there, and return its path.

    Args:
        folder: destination; its parent is made if needed.
        config: the experiment; ``config.covariance`` must be the network's.
        net: its weights are saved.
        state: anything a continued training needs: tensors and plain Python values.
    """
    if config.covariance != net.covariance:
        raise ConfigError(
            "save_checkpoint: the network was made with another covariance configuration: "
            + ", ".join(config_differences(config.covariance, net.covariance))
        )
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(folder)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
        save_file(tensors, draft / WEIGHTS)
        save_config(config, draft / CONFIG)
        torch.save(state or {}, draft / STATE)
        digests = {name: _digest(draft / name) for name in (WEIGHTS, CONFIG, STATE)}
        manifest = {"format": FORMAT, "sha256": digests}
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for name in (WEIGHTS, CONFIG, STATE, MANIFEST, "."):
            sync(draft / name)
        previous = _previous(folder)
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        draft.rename(folder)
        sync(folder.parent)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def has_checkpoint(folder: str | Path) -> bool:
    """Whether :func:`load_checkpoint` would find a checkpoint (complete or not) at ``folder``."""
    return Path(folder).is_dir() or _previous(Path(folder)).is_dir()


def remove_checkpoint(folder: str | Path) -> None:
    """Delete the checkpoint at ``folder``, if there is one."""
    for place in (Path(folder), _previous(Path(folder))):
        if (place / MANIFEST).is_file():
            shutil.rmtree(place)


def _verified(folder: Path) -> Path:
    """The folder to read, after checking that every file is there and unaltered."""
    if not folder.is_dir():
        # A process that was stopped between the two renames leaves the old checkpoint here.
        if not _previous(folder).is_dir():
            raise CheckpointError(f"{folder}: no such checkpoint folder")
        folder = _previous(folder)
    for name in (MANIFEST, WEIGHTS, CONFIG, STATE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing; the checkpoint is incomplete")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        version, digests = manifest["format"], manifest["sha256"]
        expected = {name: digests[name] for name in (WEIGHTS, CONFIG, STATE)}
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / MANIFEST}: damaged (not a checkpoint manifest)") from None
    if version != FORMAT:
        raise CheckpointError(
            f"{folder / MANIFEST}: checkpoint format {version}, this version reads {FORMAT}"
        )
    for name, digest in expected.items():
        if _digest(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: damaged (its SHA-256 is not the manifest's)")
    return folder


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
    source = _verified(Path(folder))
    config = load_config(ExperimentConfig, source / CONFIG)
    if expect is not None and expect != config.covariance:
        differences = config_differences(config.covariance, expect)
        if not allow_mismatch:
            raise ConfigError(
                f"{folder}: trained with another covariance configuration (saved -> wanted): "
                f"{', '.join(differences)}; use the saved one, or allow the mismatch explicitly"
            )
        config = dataclasses.replace(config, covariance=expect)
    net = LocalizationNet(config.system, config.model, config.covariance)
    try:
        net.load_state_dict(load_file(source / WEIGHTS))
    except RuntimeError as error:
        raise CheckpointError(
            f"{source / WEIGHTS}: does not fit the saved configuration ({error})"
        ) from None
    state = torch.load(source / STATE, map_location=device, weights_only=True)
    return Checkpoint(config, net.to(device).eval(), state)
