# SPDX-License-Identifier: Apache-2.0
"""Faults of the disk and of the files while a training runs: an error that names the file, and a
run that goes on from its last checkpoint as if nothing had happened."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import warnings
from pathlib import Path

import pytest
from fault_helpers import LimitedFiles, SmallDisk, tmpfs, unprivileged
from training_helpers import assert_same_run, experiment, read_metrics, same, with_nan

from ris_pytorch_pipeline import cli
from ris_pytorch_pipeline.checkpoint import CheckpointError, load_checkpoint
from ris_pytorch_pipeline.configs import DataConfig, SystemConfig, save_config
from ris_pytorch_pipeline.durable import write_atomically
from ris_pytorch_pipeline.shards import ShardDataset, ShardError, write_shards
from ris_pytorch_pipeline.train import fit
from ris_pytorch_pipeline.trainer import Trainer

# TensorBoard writes from a thread of its own, which meets the full disk too.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def options(**train):
    return experiment(
        DataConfig(train_samples=28, val_samples=12), **{"checkpoint_every": 1, **train}
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of eight steps without a fault."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    fit(options(), folder, quiet=True)
    return folder


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request, tmp_path):
    """A disk of its own, where this process may mount one, and a limit of the system."""
    if request.param == "limit":
        made = LimitedFiles(tmp_path)
        try:
            yield made
        finally:
            made.free()
        return
    with tmpfs(tmp_path, "6m") as mounted:
        if mounted:
            yield SmallDisk(tmp_path)
        else:
            warnings.warn("no tmpfs can be mounted here: the limit alone is tested", stacklevel=1)
            made = LimitedFiles(tmp_path)
            yield made
            made.free()


def at_step(monkeypatch, step, action):
    """Call ``action`` before the step of that number, once."""
    count, real = [], Trainer.train_step

    def counted(trainer, batches):
        count.append(1)
        if len(count) == step:
            action()
        return real(trainer, batches)

    monkeypatch.setattr(Trainer, "train_step", counted)


@pytest.mark.parametrize("step", [1, 4])
def test_a_full_disk_while_a_run_is_saved(disk, straight, monkeypatch, step):
    run = disk.folder / "run"
    at_step(monkeypatch, step, disk.fill)
    with pytest.raises(OSError, match=r"No space left on device: '.*run|File too large: '.*run"):
        fit(options(), run, quiet=True)
    disk.free()
    assert not list(run.glob("*.writing-*"))
    if step > 1:
        load_checkpoint(run / "last")
    fit(options(), run, resume=True, quiet=True)
    assert_same_run(straight, run)


def test_a_full_disk_while_metrics_are_recorded(straight, tmp_path, monkeypatch):
    disk, run = LimitedFiles(tmp_path), tmp_path / "run"
    at_step(monkeypatch, 6, disk.fill)
    try:
        with pytest.raises(OSError, match=r"File too large: '.*metrics\.jsonl'"):
            fit(options(checkpoint_every=4), run, quiet=True)
    finally:
        disk.free()
    fit(options(checkpoint_every=4), run, resume=True, quiet=True)
    records = [[r for r in read_metrics(f) if r["kind"] == "step"] for f in (straight, run)]
    assert records[0] == records[1]


def test_a_full_disk_keeps_the_old_configuration_and_best(disk):
    config, best = disk.folder / "config.json", disk.folder / "best.json"
    save_config(SystemConfig(), config)
    write_atomically(best, '{"value": 1}')
    before = [path.read_bytes() for path in (config, best)]
    disk.fill()
    for write in (
        lambda: save_config(SystemConfig(n_h=9), config),
        lambda: write_atomically(best, json.dumps({"value": 0.5, "padding": "x" * 9999})),
    ):
        with pytest.raises(OSError, match=r"(No space left|too large).*: '.*\.json\.writing-"):
            write()
    disk.free()
    assert [path.read_bytes() for path in (config, best)] == before
    assert sorted(p.name for p in disk.folder.iterdir()) == ["best.json", "config.json"]


def test_a_full_disk_while_shards_are_written(disk):
    system = SystemConfig(n_h=4, n_v=3, antennas=4, snapshots=3, max_sources=2)
    simulation = options().simulation
    write_shards(disk.folder / "old", system, simulation, samples=5, seed=1)
    before = sorted(p.name for p in disk.folder.iterdir())
    for name in ("new", "old"):
        with pytest.raises(OSError, match=r"(No space left|too large).*: '.*\.npy'"):
            write_shards(
                disk.folder / name, system, simulation, samples=600, seed=1, overwrite=True,
                progress=lambda done, _: disk.fill() if done == 256 else None,
            )  # fmt: skip
        disk.free()
        assert sorted(p.name for p in disk.folder.iterdir()) == before
    ShardDataset(disk.folder / "old").verify()


def test_the_command_says_how_to_go_on(tmp_path, straight, monkeypatch, capsys):
    disk, run = LimitedFiles(tmp_path), tmp_path / "run"
    save_config(options(), tmp_path / "config.json")
    command = ["train", "--config", str(tmp_path / "config.json"), "--out", str(run)]
    at_step(monkeypatch, 3, disk.fill)
    try:
        assert cli.main(command) == 1
    finally:
        disk.free()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "File too large" in error and "--resume auto goes on" in error
    assert cli.main([*command, "--resume", "auto"]) == 0
    assert_same_run(straight, run)


def test_a_folder_made_read_only(straight, monkeypatch):
    with tempfile.TemporaryDirectory() as base:
        run = Path(base) / "run"
        with unprivileged(Path(base)):
            at_step(monkeypatch, 3, lambda: run.chmod(0o555))
            with pytest.raises(PermissionError, match=r"Permission denied: '.*last\.writing-"):
                fit(options(), run, quiet=True)
            run.chmod(0o755)
            fit(options(), run, resume=True, quiet=True)
        assert_same_run(straight, run)


def remove(path):
    path.rename(path.with_suffix(".away"))
    return lambda: path.with_suffix(".away").rename(path)


def truncate(path):
    data = path.read_bytes()
    os.truncate(path, len(data) // 2)
    return lambda: path.write_bytes(data)


def replace(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return lambda: path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "name"),
    [(remove, "00000.h.npy"), (truncate, "00001.h.npy"), (replace, "00001.snr_db.npy")],
)
def test_a_shard_damaged_mid_epoch(tmp_path, monkeypatch, damage, name):
    """Named by the read that meets it, never a SIGBUS; put right, the run continues exactly."""
    config = options()
    shards = tmp_path / "s"
    write_shards(shards, config.system, config.simulation, samples=40, shard_size=20, seed=1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=str(shards)))
    fit(config, tmp_path / "straight", quiet=True)
    undo = []
    at_step(monkeypatch, 3, lambda: undo.append(damage(shards / name)))
    with pytest.raises(ShardError, match=rf"{name}: (cannot be read|altered while|truncated)"):
        fit(config, tmp_path / "run", quiet=True)
    undo[0]()
    ShardDataset(shards).verify()
    fit(config, tmp_path / "run", resume=True, quiet=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


class StoppedError(Exception):
    pass


def stop():
    raise StoppedError


def stopped_run(folder, monkeypatch, step=6):
    with monkeypatch.context() as patch, contextlib.suppress(StoppedError):
        at_step(patch, step, stop)
        fit(options(), folder, quiet=True)


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_a_damaged_last_falls_back_to_the_one_before_it(tmp_path, straight, monkeypatch, name):
    run = tmp_path / "run"
    stopped_run(run, monkeypatch)
    path = run / "last" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(
        UserWarning, match=rf"last/{name}: damaged.*kept as .*last\.damaged.* contin"
    ):
        fit(options(), run, resume=True, quiet=True)
    assert_same_run(straight, run)
    assert (run / "last.damaged" / name).is_file()
    fit(options(), run, quiet=True)
    assert not (run / "last.damaged").exists()


def test_both_checkpoints_damaged(tmp_path, monkeypatch):
    """`best` stays what it was, for inference; the run cannot go on and says why."""
    run = tmp_path / "run"
    stopped_run(run, monkeypatch)
    for name, file in (("last", "state.json"), ("last.previous", "config.json")):
        (run / name / file).write_text("{}")
    before = {p: p.read_bytes() for p in run.rglob("*.json")}
    expected = r"last/state\.json: damaged.*last\.previous/config\.json: damaged.*begin anew"
    with pytest.raises(CheckpointError, match=expected):
        fit(options(), run, resume=True, quiet=True)
    assert {p: p.read_bytes() for p in run.rglob("*.json")} == before
    load_checkpoint(run / "best")
    (run / "last.previous").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="no earlier checkpoint is kept"):
        fit(options(), run, resume=True, quiet=True)


def test_a_damaged_best_is_replaced(tmp_path, monkeypatch):
    run = tmp_path / "run"
    stopped_run(run, monkeypatch)
    truncate(run / "best" / "weights.safetensors")
    with pytest.warns(UserWarning, match=r"best/weights\.safetensors: damaged.*replace it"):
        result = fit(options(), run, resume=True, quiet=True)
    assert result.checkpoint == run / "best"
    assert load_checkpoint(run / "best").state["val_loss"] == result.best_val_loss
    assert result.best_val_loss <= result.history[-1]["val_loss"]


def test_a_skipped_step_is_recorded_once(tmp_path, monkeypatch):
    """Also by a run that was stopped after it, and continued from before it."""
    real = Trainer.train_step

    def poisoned(trainer, batches):
        bad = trainer.steps == 2
        return real(trainer, [with_nan(scenes) for scenes in batches] if bad else batches)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    config = options(checkpoint_every=2)
    fit(config, tmp_path / "straight", quiet=True)
    with monkeypatch.context() as patch, contextlib.suppress(StoppedError):
        at_step(patch, 4, stop)
        fit(config, tmp_path / "run", quiet=True)
    fit(config, tmp_path / "run", resume=True, quiet=True)
    for folder in (tmp_path / "straight", tmp_path / "run"):
        assert [r["step"] for r in read_metrics(folder) if r["kind"] == "skipped"] == [3]
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_damaged_metrics_are_reported_and_the_run_goes_on(tmp_path, straight, monkeypatch):
    run = tmp_path / "run"
    stopped_run(run, monkeypatch)
    path = run / "metrics.jsonl"
    lines_whole = path.read_bytes().split(b"\n")
    lines = [*lines_whole]
    lines[1] = b"\xff" + lines[1][1:]
    path.write_bytes(b"\n".join(lines))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 2 is damaged and left out"):
        fit(options(), run, resume=True, quiet=True)
    kept, all_of = (
        [r for r in read_metrics(f) if r["kind"] != "checklist"] for f in (run, straight)
    )
    assert kept == [r for r in all_of if r != json.loads(lines_whole[1])]
    one, other = (load_checkpoint(f / "last") for f in (straight, run))
    assert same(one.state, other.state)
