# SPDX-License-Identifier: Apache-2.0
"""Damage that nobody chose: flipped bits, truncated files, values that are not finite.

A damaged file is named, or what was read from it is what was written. Values that are not finite
change nothing but the count of skipped steps.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random

import numpy as np
import pytest
import torch
from fault_helpers import flip_a_bit
from training_helpers import experiment, frozen, make_trainer, same, scenes_of

from ris_pytorch_pipeline import cli
from ris_pytorch_pipeline.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ris_pytorch_pipeline.configs import DataConfig, save_config
from ris_pytorch_pipeline.shards import ShardDataset, ShardError, write_shards
from ris_pytorch_pipeline.train import fit

DAMAGES = int(os.environ.get("RISKERNELS_DAMAGES", "60"))
"""Random bit flips and truncations of each kind of file, checkpoints and shards."""


def damages(data, rng):
    """A bit flipped, or everything behind a random place gone."""
    if rng.random() < 0.7:
        return flip_a_bit(data, rng)
    return data[: rng.randrange(len(data))]


def test_damaged_checkpoints_are_named_or_unchanged(tmp_path, seed):
    trainer, rng = make_trainer(), random.Random(seed)
    trainer.train_step(scenes_of(trainer, 8))
    state = trainer.state_dict()
    folder = save_checkpoint(tmp_path / "c", trainer.config, trainer.net, state)
    whole = load_checkpoint(folder)
    assert same(whole.state, state)
    files, found = sorted(folder.iterdir()), 0
    for _ in range(DAMAGES):
        path = rng.choice(files)
        data = path.read_bytes()
        path.write_bytes(damages(data, rng))
        try:
            got = load_checkpoint(folder)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            found += 1
        else:
            # A blank in the manifest became another one.
            assert path.name == "manifest.json" and got.config == whole.config
            assert same(got.state, whole.state)
            assert same(got.net.state_dict(), whole.net.state_dict())
        path.write_bytes(data)
    print(f"checkpoints: {DAMAGES} damages, {found} named, the others harmless")
    assert found > 0.8 * DAMAGES


def test_damaged_shards_are_named_or_unchanged(tmp_path, seed):
    config, rng, folder = experiment(), random.Random(seed), tmp_path / "s"
    write_shards(folder, config.system, config.simulation, samples=9, shard_size=5, seed=3)
    whole = ShardDataset(folder).batch(range(9))
    files, found = sorted(folder.iterdir()), 0
    for _ in range(DAMAGES):
        path = rng.choice(files) if rng.random() < 0.7 else folder / "manifest.json"
        data = path.read_bytes()
        path.write_bytes(damages(data, rng))
        try:
            dataset = ShardDataset(folder)
            dataset.verify()
            got = dataset.batch(range(9))
        except ShardError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error) or path.name == "manifest.json"
            found += 1
        else:
            assert path.name == "manifest.json" and dataset.manifest["samples"] == 9
            assert all(torch.equal(getattr(got, name), t) for name, t in whole.tensors())
        path.write_bytes(data)
    print(f"shards: {DAMAGES} damages, {found} named, the others harmless")
    assert found > 0.5 * DAMAGES


def poisoned_shards(folder, field, value, scene):
    """Shards of 40 scenes of which one holds ``value``."""
    config = experiment()
    write_shards(folder, config.system, config.simulation, samples=40, seed=1)
    path = folder / f"00000.{field}.npy"
    array = np.load(path, mmap_mode="r+", allow_pickle=False)
    array[scene].reshape(-1)[1] = value
    array.flush()
    data = DataConfig(shards=str(folder), train_samples=28, val_samples=12)
    return experiment(data, epochs=2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["y", "h", "codes"])
def test_a_scene_that_is_not_finite_skips_its_steps(tmp_path, capsys, field, value):
    order = torch.randperm(40, generator=torch.Generator().manual_seed(20240607))
    config = poisoned_shards(tmp_path / "s", field, value, int(order[20]))
    result = fit(config, tmp_path / "run", quiet=True)
    assert result.skipped_steps == 2 and math.isfinite(result.best_val_loss)
    assert all(math.isfinite(v) for metrics in result.history for v in metrics.values())
    for tensor in load_checkpoint(tmp_path / "run" / "last").net.state_dict().values():
        assert bool(torch.isfinite(tensor).all())
    save_config(config, tmp_path / "config.json")
    command = ["train", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "x")]
    assert cli.main(command) == 2
    assert f"00000.{field}.npy: SHA-256 differs" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_validation_scene_that_is_not_finite_is_named_at_the_start(tmp_path):
    order = torch.randperm(40, generator=torch.Generator().manual_seed(20240607))
    config = poisoned_shards(tmp_path / "s", "h", math.nan, int(order[3]))
    with pytest.raises(ShardError, match=rf"h\.npy: scene {int(order[3])} of the folder has a val"):
        fit(config, tmp_path / "run", quiet=True)


def in_place(value):
    def poison(tensor):
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return poison


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["activation", "gradient", "input"])
def test_one_value_that_is_not_finite_leaves_no_trace(where, value):
    """In any block of the network, forward or backward."""
    trainer = make_trainer(swa_start=0.0)
    [batch] = scenes_of(trainer, 8)
    assert trainer.train_step([batch])[0].stepped
    # Every second one in turn: any two neighbours are of different kinds.
    modules = [m for m in trainer.net.modules() if not list(m.children())][value == math.inf :: 2]
    skipped = 0
    for module in modules if where != "input" else [None]:
        before, poison = frozen(trainer), in_place(value)
        scenes, hook = batch, None
        if where == "activation":
            hook = module.register_forward_hook(lambda _, __, out, poison=poison: poison(out))
        elif where == "gradient":
            hook = module.register_forward_hook(
                lambda _, __, out, poison=poison: out.register_hook(poison) and None
            )
        else:
            scenes = dataclasses.replace(batch, h=poison(batch.h))
        report, _ = trainer.train_step([scenes])
        if hook is not None:
            hook.remove()
        assert all(bool(torch.isfinite(p).all()) for p in trainer.net.parameters())
        if report.stepped:
            continue  # a bounded function or a layer without parameters before it met the value
        skipped += 1
        assert same(frozen(trainer), before) and trainer.guard.skipped == skipped
        assert all(p.grad is None for p in trainer.net.parameters())
    assert skipped >= (1 if where == "input" else len(modules) // 2)
    assert trainer.train_step([batch])[0].stepped
