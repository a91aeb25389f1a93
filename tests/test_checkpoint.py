# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what they hold, and what is refused by name."""

import pytest
from training_helpers import make_trainer, same

from ris_pytorch_pipeline.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ris_pytorch_pipeline.configs import (
    ConfigError,
    CovarianceConfig,
)


def test_checkpoint_round_trip_and_refusals(tmp_path):
    trainer = make_trainer()
    config, net = trainer.config, trainer.net
    folder = save_checkpoint(tmp_path / "a" / "net", config, net, trainer.state_dict())
    assert sorted(p.name for p in folder.parent.iterdir()) == ["net"]
    loaded = load_checkpoint(folder)
    assert same(loaded.net.state_dict(), net.state_dict()) and not loaded.net.training
    wanted = CovarianceConfig(beta=0.7, alpha=0.01)
    with pytest.raises(ConfigError, match=r"alpha: 0\.001 -> 0\.01, beta: 0\.3 -> 0\.7"):
        load_checkpoint(folder, expect=wanted)
    told = load_checkpoint(folder, expect=wanted, allow_mismatch=True)
    assert told.config.covariance == told.net.covariance == wanted
    with pytest.raises(ConfigError, match="save_checkpoint"):
        save_checkpoint(tmp_path / "b", told.config, net)
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    ["weights.safetensors", "config.json", "state.json", "state.safetensors", "manifest.json"],
)
def test_missing_and_damaged_files_are_named(tmp_path, name):
    trainer = make_trainer()
    folder = save_checkpoint(tmp_path / "net", trainer.config, trainer.net)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        load_checkpoint(folder)
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        load_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        load_checkpoint(folder)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path):
    trainer = make_trainer()
    folder = save_checkpoint(tmp_path / "net", trainer.config, trainer.net, {"epoch": 1})
    with pytest.raises(TypeError, match=r"state\['epoch'\] is a function: .* plain values only"):
        save_checkpoint(folder, trainer.config, trainer.net, {"epoch": lambda: None})
    assert load_checkpoint(folder).state == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    # Stopped between the two renames of a save: the old checkpoint is still found.
    folder.rename(tmp_path / "net.previous")
    assert load_checkpoint(folder).state == {"epoch": 1}
