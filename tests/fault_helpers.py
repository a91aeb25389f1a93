# SPDX-License-Identifier: Apache-2.0
"""Disks that are full, and damage to files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

BALLAST = "ballast"


class SmallDisk:
    """A folder whose disk can be filled and freed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """From now on nothing more can be written."""
        with (self.folder / BALLAST).open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
        assert (self.folder / BALLAST).stat().st_size > 0

    def free(self) -> None:
        """Undo :meth:`fill`."""
        (self.folder / BALLAST).unlink()


class LimitedFiles(SmallDisk):
    """No disk of its own is needed: the system refuses what makes a file of this process larger
    than 64 bytes, as a quota does."""

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[bool]:
    """A disk of ``size`` mounted at ``folder``, or False where this process may not mount."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def unprivileged(*folders: Path) -> Iterator[None]:
    """Permissions count, also for root; ``folders`` belong to who works in the block."""
    nobody = 65534
    if os.geteuid() != 0:
        yield
        return
    for folder in folders:
        os.chown(folder, nobody, nobody)
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(0)


def flip_a_bit(data: bytes, rng: random.Random) -> bytes:
    altered = bytearray(data)
    altered[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(altered)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sign_checkpoint(folder: Path) -> None:
    """Give a checkpoint's manifest the checksums of its files as they are: a stranger can."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": sha256(data)}
    del manifest["sha256"]
    manifest["sha256"] = sha256(json.dumps(manifest, sort_keys=True).encode())
    path.write_text(json.dumps(manifest))


def sign_shards(folder: Path) -> None:
    """The same for a folder of shards."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for shard in manifest["shards"]:
        for entry in shard["files"].values():
            data = (folder / entry["path"]).read_bytes()
            entry |= {"bytes": len(data), "sha256": sha256(data)}
    del manifest["sha256"]
    manifest["sha256"] = sha256(json.dumps(manifest, sort_keys=True).encode())
    path.write_text(json.dumps(manifest))
