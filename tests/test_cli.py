# SPDX-License-Identifier: Apache-2.0
"""The command ``ris``: what each command leaves behind, and one line for every error."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ris_pytorch_pipeline import inspection
from ris_pytorch_pipeline.cli import main
from ris_pytorch_pipeline.configs import (
    ConfigError,
    CovarianceConfig,
    ExperimentConfig,
    SimulationConfig,
    SystemConfig,
    load_config,
    save_config,
    to_dict,
)
from ris_pytorch_pipeline.shards import ShardDataset
from ris_pytorch_pipeline.simulate import Simulator

SYSTEM = ["--system.n_h", "4", "--system.n-v", "4", "--system.antennas", "4"]
SYSTEM += ["--system.snapshots=4", "--system.max_sources", "2"]
MODEL = ["--model.channels", "4", "--model.conv_blocks", "1", "--model.width", "16"]
MODEL += ["--model.heads", "2", "--model.layers", "1"]
DATA = ["--data.train_samples", "24", "--data.val-samples", "8", "--train.batch_size", "8"]
TRAIN = [*SYSTEM, *MODEL, *DATA, "--train.epochs", "1", "--train.device", "cpu"]
TINY = SystemConfig(n_h=4, n_v=4, antennas=4, snapshots=4, max_sources=2)


def error_of(capsys: pytest.CaptureFixture[str], args: list[str], status: int = 2) -> str:
    """The one line that a failing command leaves on stderr."""
    capsys.readouterr()
    assert main(args) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ris: error: "), lines
    return lines[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and a trained run."""
    folder = tmp_path_factory.mktemp("cli")
    shards = ["simulate", "--out", str(folder / "shards"), "--samples", "40", *SYSTEM]
    assert main([*shards, "--shard_size", "16", "--split", "test"]) == 0
    assert main(["train", "--out", str(folder / "run"), *TRAIN]) == 0
    return folder


def test_simulate_writes_what_was_asked_for(work: Path) -> None:
    dataset = ShardDataset(work / "shards")
    dataset.verify()
    assert (len(dataset), dataset.system) == (40, TINY)
    expected = Simulator(TINY, SimulationConfig(), seed=0, split="test").batch(16)
    assert torch.equal(dataset.batch(range(16)).num_sources, expected.num_sources)


def test_train_uses_every_kind_of_configuration(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load_config(ExperimentConfig, work / "run" / "config.json")
    assert (saved.system, saved.data.train_samples, saved.train.batch_size) == (TINY, 24, 8)
    file = str(work / "run" / "config.json")
    shards = ["--data.shards", str(work / "shards"), "--covariance.beta", "0.5"]
    assert main(["train", "--config", file, "--out", str(tmp_path / "a"), *shards]) == 0
    shown = capsys.readouterr().out
    assert "training loss" in shown and str(tmp_path / "a" / "best") in shown
    config = load_config(ExperimentConfig, tmp_path / "a" / "config.json")
    assert config.covariance == CovarianceConfig(beta=0.5) and config.system == TINY
    assert config.data.shards == str(work / "shards")

    assert "--resume auto" in error_of(
        capsys, ["train", "--config", file, "--out", str(tmp_path / "a")]
    )
    again = ["train", "--config", str(tmp_path / "a" / "config.json"), "--out", str(tmp_path / "a")]
    assert main([*again, "--resume", "auto", "--train.epochs", "2"]) == 0
    records = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    epochs = [r["epoch"] for r in map(json.loads, records) if r["kind"] == "epoch"]
    assert epochs == [1, 2]
    assert main([*again, "--overwrite"]) == 0


def test_search_then_train_from_its_best(work: Path, tmp_path: Path) -> None:
    file, out = str(work / "run" / "config.json"), str(tmp_path / "results_cli")
    search = ["hpo", "--n_trials", "1", "--epochs-per-trial", "1", "--config", file, "--out", out]
    search += ["--space", "narrow", "--train_samples", "16", "--val-samples", "8"]
    assert main([*search, "--batch_size", "8", "--device", "cpu"]) == 0
    best = json.loads((tmp_path / "results_cli" / "best.json").read_text())
    train = ["train", "--from_hpo", f"{out}/best.json", "--out", str(tmp_path / "final")]
    assert main([*train, "--train.epochs", "2"]) == 0
    config = load_config(ExperimentConfig, tmp_path / "final" / "config.json")
    assert config.loss.angle == best["config"]["loss"]["angle"]
    assert (config.train.epochs, config.model.width) == (2, 16)


def test_localize_prints_a_table_and_json(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["localize", "--checkpoint", str(work / "run" / "best")]
    command += ["--shards", str(work / "shards"), "--device", "cpu", "--refine"]
    capsys.readouterr()
    file = tmp_path / "positions.json"
    assert main([*command, "--limit", "3", "--json", str(file), "--known_sources"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "estimate" in shown[0] and "truth" in shown[0]
    assert shown[1].split()[:2] == ["scene", "SNR"] and shown[-1].startswith("3 scenes")
    assert {line.split()[0] for line in shown[2:-1]} == {"0", "1", "2"}
    assert [s["index"] for s in json.loads(file.read_text())["scenes"]] == [0, 1, 2]
    assert main([*command, "--index", "7", "5", "--json", "-", "--num-sources", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [s["index"] for s in report["scenes"]] == [7, 5]
    assert all(len(s["estimates"]) <= 2 for s in report["scenes"])


def test_localize_refuses_another_covariance_unless_told(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(ExperimentConfig(covariance=CovarianceConfig(beta=0.9)), tmp_path / "c.json")
    command = ["localize", "--checkpoint", str(work / "run" / "best"), "--limit", "1"]
    command += ["--shards", str(work / "shards")]
    line = error_of(capsys, [*command, "--config", str(tmp_path / "c.json")])
    assert "beta: 0.3 -> 0.9" in line
    assert main([*command, "--config", str(tmp_path / "c.json"), "--allow_mismatch"]) == 0
    assert "needs the --config" in error_of(capsys, [*command, "--allow_mismatch"])
    assert "not both" in error_of(capsys, [*command, "--known_sources", "--num_sources", "1"])
    assert "no scene 40" in error_of(capsys, [*command, "--index", "40"])


def test_checklist_checks_a_checkpoint_or_a_fresh_network(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["checklist", "--checkpoint", str(work / "run" / "best")]) == 0
    shown = capsys.readouterr().out
    assert "[DEBUG] R_pred rank: 2" in shown and "[DEBUG] R_blend rank: 6" in shown
    assert main(["checklist", *TRAIN, "--covariance.center"]) == 0
    assert "[DEBUG] R_blend rank: 5" in capsys.readouterr().out
    monkeypatch.setattr("ris_pytorch_pipeline.hpo.checklist_passed", lambda folder: False)
    line = error_of(capsys, ["train", "--out", str(work / "unsound"), *TRAIN], status=1)
    assert "checklist failed" in line


def test_existing_shards_are_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def pairs(x: torch.Tensor) -> np.ndarray:
        return torch.view_as_real(x).numpy()

    scenes = Simulator(TINY, SimulationConfig(), seed=5, split="old").batch(6)
    fields = {
        "y": pairs(scenes.y),
        "H": pairs(torch.einsum("bmn,bln->blm", scenes.h, scenes.codes)),
        "H_full": pairs(scenes.h),
        "codes": pairs(scenes.codes),
        "ptr": torch.cat((scenes.phi, scenes.theta, scenes.r), -1).numpy(),
        "K": scenes.num_sources.numpy(),
        "snr": scenes.snr_db.numpy(),
    }
    np.savez(tmp_path / "old.npz", **fields)
    target = ["--out", str(tmp_path / "new"), *SYSTEM]
    assert main(["import-shards", str(tmp_path / "old.npz"), *target]) == 0
    assert torch.equal(ShardDataset(tmp_path / "new").batch(range(6)).y, scenes.y)
    del fields["H_full"]
    np.savez(tmp_path / "without.npz", **fields)
    command = ["import-shards", str(tmp_path / "without.npz"), *target, "--overwrite"]
    line = error_of(capsys, command)
    assert "H_full" in line and "without.npz" in line


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "Expected one of"),
        (["simulat"], "simulat"),
        (["simulate"], "--out"),
        (["simulate", "--out", "{}/x", "--samples", "0"], "samples is 0"),
        (["simulate", "--out", "{}/x", "--seed", "-1"], "seed is -1"),
        (["train", "--system.n_hh", "4"], "--system.n_hh"),
        (["train", "--system.n_h", "four"], "--system.n_h"),
        (["train", "--system.n_h", "0"], "n_h is 0, expected at least 1"),
        (["train", "--covariance.alpha", "0"], "alpha is 0.0, expected more than 0"),
        (["train", "--train.epochs", "0"], "epochs is 0, expected at least 1"),
        (["train", "--train.seed", "1e23"], "--train.seed"),
        (["train", "--train.seed", "1" + 23 * "0"], "seed is 100000000000000000000000"),
        (["train", "--train.lr_head", "nan"], "lr_head is nan, expected a finite number"),
        (["train", "--config", "{}/none.json"], "none.json: no such configuration"),
        (["train", "--config", "{}/unknown.json"], "unknown key 'bta'"),
        (["train", "--config", "{}/wrong.json"], "covariance.beta: got 'high', expected float"),
        (["train", "--config", "{}/broken.json"], "not valid JSON"),
        (["train", "--from_hpo", "{}/none.json"], "none.json: no such file"),
        (["train", "--from_hpo", "{}/unknown.json"], "not a best.json"),
        (["train", "--from_hpo", "a", "--config", "b"], "give one of"),
        (["train", "--recipe", "default", "--config", "b"], "give one of"),
        (["train", "--recipe", "none"], "expected one of default"),
        (["train", "--data.shards", "{}/none", "--out", "{}/o"], "none/manifest.json"),
        (["train", "--train.device", "tpu9", "--out", "{}/o"], "'tpu9'"),
        (["hpo", "--n_trials", "0"], "n_trials is 0, expected at least 1"),
        (["hpo", "--space", "huge"], "huge"),
        (["hpo", "--train_samples", "0", "--out", "{}/o"], "train_samples is 0"),
        (["hpo", "--batch_size", "0", "--out", "{}/o"], "batch_size is 0, expected at least 1"),
        (["hpo", "--device", "cuda:99", "--out", "{}/o"], "--device: 'cuda:99' is not there"),
        (["simulate", "--device", "cuda:99", "--out", "{}/o"], "--device: 'cuda:99' is not there"),
        (["simulate", "--device", "gpu", "--out", "{}/o"], "--device: got 'gpu'"),
        (["train", "--train.device", "cuda:99", "--out", "{}/o"], "train.device: 'cuda:99'"),
        (["hpo", "--shards", "{}/none", "--out", "{}/o"], "none/manifest.json"),
        (["hpo", "--storage", "nonsense", "--out", "{}/o"], "expected a file named"),
        (["localize", "--checkpoint", "{}/none", "--shards", "{}"], "none: no such checkpoint"),
        (
            ["localize", "--checkpoint", "c", "--shards", "s", "--json", "{}/none/p.json"],
            "none/p.json: its folder does not exist",
        ),
        (["import-shards", "{}/none.npz", "--out", "{}/o"], "none.npz: no such file"),
        (["checklist", "--checkpoint", "{}/none"], "none: no such checkpoint"),
    ],
)
def test_an_error_is_one_line(
    args: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unknown.json").write_text('{"covariance": {"bta": 0.5}}')
    (tmp_path / "wrong.json").write_text('{"covariance": {"beta": "high"}}')
    (tmp_path / "broken.json").write_text('{"covariance": ')
    line = error_of(capsys, [arg.replace("{}", str(tmp_path)) for arg in args])
    assert expected in line
    assert not (tmp_path / "o" / "study.db").exists()


def test_a_number_that_is_not_finite_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, count = tmp_path / "config.json", 0
    for section, part in to_dict(ExperimentConfig()).items():
        for name, default in part.items():
            if not isinstance(default, float) and name != "target_trace":
                continue
            count += 1
            for text in ("NaN", "Infinity", "-Infinity"):
                file.write_text(f'{{"{section}": {{"{name}": {text}}}}}')
                with pytest.raises(ConfigError, match=rf"\b{name} is -?(nan|inf), expected"):
                    load_config(ExperimentConfig, file)
    assert count > 30
    file.write_text(f'{{"train": {{"lr_head": 1{400 * "0"}}}}}')
    assert "train.lr_head" in error_of(capsys, ["train", "--config", str(file)])
    file.write_text('{"train": {"seed": 1e23}}')
    assert "train.seed: got 1e+23" in error_of(capsys, ["train", "--config", str(file)])


def test_altered_shards_are_refused_before_any_work(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "s"
    main(["simulate", "--out", str(shards), "--samples", "8", *SYSTEM])
    victim = next(shards.glob("*.y.npy"))
    content = bytearray(victim.read_bytes())
    content[-4] ^= 1  # the least significant bit of the last number
    victim.write_bytes(content)
    out = tmp_path / "o"
    train = ["train", "--data.shards", str(shards), "--out", str(out), *TRAIN]
    hpo = ["hpo", "--shards", str(shards), "--out", str(out), "--val_samples", "2"]
    localize = ["localize", "--checkpoint", str(work / "run" / "best"), "--shards", str(shards)]
    for command in (train, hpo, localize):
        line = error_of(capsys, command)
        assert victim.name in line and "altered" in line
        assert not out.exists()
    assert main([*localize, "--limit", "1", "--no_verify"]) == 0


def test_training_without_a_finite_validation_loss_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ris_pytorch_pipeline.trainer.validate", lambda *args: {"total": math.nan})
    line = error_of(capsys, ["train", "--out", str(tmp_path / "run"), *TRAIN], status=1)
    assert "no validation loss was finite" in line


def test_an_error_is_the_same_line_in_an_ascii_locale(tmp_path: Path) -> None:
    def shown(**environment: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "ris_pytorch_pipeline", "train", "--train.epochs", "many"],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        assert result.returncode == 2 and not result.stdout
        return result.stderr

    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = shown(PYTHONUTF8="1")
    assert line.count("\n") == 1 and "--train.epochs" in line and "many" in line
    assert shown(PYTHONIOENCODING="ascii", **ascii_only) == line


def test_a_damaged_shard_is_named(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["simulate", "--out", str(tmp_path / "s"), "--samples", "8", *SYSTEM])
    victim = next((tmp_path / "s").glob("*.codes.npy"))
    command = ["localize", "--checkpoint", str(work / "run" / "best")]
    command += ["--shards", str(tmp_path / "s")]
    victim.write_bytes(victim.read_bytes()[:-4])
    assert "codes.npy" in error_of(capsys, command)
    victim.unlink()
    assert "codes.npy: missing" in error_of(capsys, command)


def test_interrupt_and_unforeseen_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: object) -> int:
        raise KeyboardInterrupt

    def fail(self: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inspection.Info, "run", stop)
    assert main(["info"]) == 130
    monkeypatch.setattr(inspection.Info, "run", fail)
    assert "No space left" in error_of(capsys, ["info"])
    monkeypatch.setenv("RIS_TRACEBACK", "1")
    with pytest.raises(OSError, match="No space"):
        main(["info"])


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from ris_pytorch_pipeline.cli import main\n"
        "assert main(['--help']) == 0 and main(['hpo', '--help']) == 0\n"
        "heavy = {'torch', 'optuna', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names = "simulate import-shards train hpo localize checklist profile plot info"
    for name in names.split():
        assert name in result.stdout


@pytest.mark.parametrize("module", ["ris_pytorch_pipeline", "ris_pytorch_pipeline.hpo"])
def test_modules_run_as_commands(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "usage: ris" in result.stdout and not result.stderr
