# SPDX-License-Identifier: Apache-2.0
"""A checkpoint and shards that fit each other, changed by a stranger, and what a command says.

A stranger signs what he writes: the checksums in the manifests are those of the files as they are.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from training_helpers import make_trainer, scenes_of

from ris_pytorch_pipeline import cli
from ris_pytorch_pipeline.checkpoint import save_checkpoint
from ris_pytorch_pipeline.shards import write_shards

DEEP = b'{"a":' * 100_000


class Payload:
    """Unpickling it would make the folder ``executed``."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def pickled(kind):
    stream = io.BytesIO()
    if kind == "torch":
        torch.save({"a": Payload()}, stream)
    elif kind == "numpy":
        np.save(stream, np.array([Payload()], dtype=object), allow_pickle=True)
    else:
        pickle.dump(Payload(), stream)
    return stream.getvalue()


@cache
def originals():
    """The files of the checkpoint ``ckpt`` and the shards ``s``, by relative path."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        trainer = make_trainer()
        trainer.train_step(scenes_of(trainer, 8))
        config = trainer.config
        save_checkpoint(base / "ckpt", config, trainer.net, trainer.state_dict())
        write_shards(base / "s", config.system, config.simulation, samples=9, shard_size=5, seed=3)
        return {path.relative_to(base): path.read_bytes() for path in base.rglob("*.*")}


def put(files, folder):
    """Write ``files`` into ``folder``, which is returned."""
    for path, data in files.items():
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        (folder / path).write_bytes(data)
    return folder


def localize():
    """The command that reads both, in the present folder."""
    scenes = ["--checkpoint", "ckpt", "--shards", "s", "--limit", "1"]
    return cli.main(["localize", *scenes, "--device", "cpu"])


def refusal(capsys, command, *, names=""):
    """The one line of a command that refuses its input, soon and without much memory."""
    capsys.readouterr()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    status = command()
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("ris: error: ") and error.count("\n") == 1, error
    assert error[:-1].isprintable()
    assert len(error) < 1500 and names in error, error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert time.monotonic() - started < 60
    assert not Path("executed").exists()
    return error


def edit(path, **changes):
    """Set values of a JSON file; the levels of their place are separated by ``__``."""
    content = json.loads(path.read_text())
    for place, value in changes.items():
        inner, *names = content, *place.split("__")
        for name in names[:-1]:
            inner = inner[int(name) if name.isdigit() else name]
        inner[names[-1]] = value
    path.write_text(json.dumps(content))
