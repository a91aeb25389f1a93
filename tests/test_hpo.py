# SPDX-License-Identifier: Apache-2.0
"""The hyperparameter search: spaces, objective, resuming, interruption, failure."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

import ris_pytorch_pipeline.train as train_module
from ris_pytorch_pipeline import hpo
from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import (
    ConfigError,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    SimulationConfig,
    SystemConfig,
    TrainConfig,
    load_config,
    to_dict,
)
from ris_pytorch_pipeline.data import open_scenes
from ris_pytorch_pipeline.hpo import HpoError, HpoOptions, base_config, load_best, run
from ris_pytorch_pipeline.loss import TERMS, LocalizationLoss
from ris_pytorch_pipeline.search_space import SPACES, Range, apply_parameters, starting_point
from ris_pytorch_pipeline.shards import write_shards
from ris_pytorch_pipeline.slots import MAX_INTERRUPTIONS
from ris_pytorch_pipeline.train import validate

TINY = SystemConfig(n_h=4, n_v=4, antennas=4, snapshots=4, max_sources=2)
STATES = optuna.trial.TrialState


def options(out: Path, **changes: Any) -> HpoOptions:
    """A search that takes about a second per trial."""
    values: dict[str, Any] = {
        "n_trials": 1,
        "epochs_per_trial": 1,
        "space": "narrow",
        "out": str(out),
        "train_samples": 32,
        "val_samples": 16,
        "batch_size": 8,
        "device": "cpu",
        "system": TINY,
        "base": ExperimentConfig(
            model=ModelConfig(channels=4, conv_blocks=1, width=16, heads=2, layers=1)
        ),
    }
    return HpoOptions(**{**values, **changes})


def trials(out: Path, name: str = "ris-narrow") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{out}/study.db").trials


# Search spaces


@pytest.mark.parametrize("name", SPACES)
def test_every_point_of_a_space_is_a_configuration(name: str) -> None:
    space, base = SPACES[name], ExperimentConfig()
    assert len({dimension.path for dimension in space}) == len(space)
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=int(np.random.SeedSequence().entropy % 2**32))
    )
    for _ in range(40):
        trial = study.ask()
        parameters = {dimension.path: dimension.suggest(trial) for dimension in space}
        tree = to_dict(apply_parameters(base, parameters))
        for path, value in parameters.items():
            section, leaf = path.split(".")
            assert tree[section].pop(leaf) == value
        for path in parameters:
            section, leaf = path.split(".")
            tree[section][leaf] = to_dict(base)[section][leaf]
        assert tree == to_dict(base)
        assert all(value > 0 for path, value in parameters.items() if path.startswith("loss."))


@pytest.mark.parametrize("name", SPACES)
def test_defaults_lie_in_the_space_and_outsiders_are_moved_into_it(name: str) -> None:
    space, base = SPACES[name], ExperimentConfig()
    assert apply_parameters(base, starting_point(space, base)) == base
    odd = dataclasses.replace(
        base,
        model=ModelConfig(width=40, heads=1, channels=5),
        loss=LossConfig(angle=0.0),
        train=dataclasses.replace(base.train, lr_head=0.5),
    )
    study = optuna.create_study()
    study.enqueue_trial(starting_point(space, odd))
    trial = study.ask()
    for dimension in space:
        assert dimension.suggest(trial) == starting_point(space, odd)[dimension.path]
    with pytest.raises(ConfigError, match=r"loss\.angel"):
        apply_parameters(base, {"loss.angel": 1.0})


# Runs


def test_a_study_is_run_continued_and_left_alone_when_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results_test"
    assert run(options(out)) == 0
    shown = capsys.readouterr().out
    assert "[GRAD]" in shown and "R_pred rank: 2" in shown
    assert "is new" in shown and "validation loss" in shown
    folder = out / "ris-narrow" / "trial_0000"
    first = json.loads((folder / "trial.json").read_text())
    assert first["state"] == "complete" and (folder / "metrics.jsonl").is_file()

    # The value is that of the kept checkpoint under the base weights.
    config = load_config(ExperimentConfig, folder / "config.json")
    checkpoint = load_checkpoint(first["checkpoint"])
    assert checkpoint.config == config
    loss = LocalizationLoss(config.system, LossConfig(), config.covariance)
    scenes = open_scenes(config, torch.device("cpu")).validation
    value = validate(checkpoint.net, loss, scenes)["total"]
    assert trials(out)[0].value == pytest.approx(value, rel=1e-6)

    assert run(options(out, n_trials=3)) == 0
    shown = capsys.readouterr().out
    assert "has 1 finished trials, resuming" in shown
    done = trials(out)
    assert [t.state for t in done] == [STATES.COMPLETE] * 3
    assert len({tuple(t.params.values()) for t in done}) == 3
    for trial in done:
        config = load_config(
            ExperimentConfig, out / "ris-narrow" / f"trial_{trial.number:04d}" / "config.json"
        )
        assert config == apply_parameters(base_config(options(out)), trial.params)
    best = min(done, key=lambda t: t.value or 0.0)
    report = json.loads((out / "best.json").read_text())
    assert (report["trial"], report["value"]) == (best.number, best.value)
    assert load_best(out / "best.json") == apply_parameters(base_config(options(out)), best.params)

    assert run(options(out, n_trials=2)) == 0
    shown = capsys.readouterr().out
    assert "has 3 finished trials" in shown and "nothing left to run" in shown
    assert f"trial {best.number}" in shown and len(trials(out)) == 3

    with pytest.raises(ConfigError, match="train_samples 32 -> 40"):
        run(options(out, train_samples=40))
    assert run(options(out, train_samples=40, study="other")) == 0
    assert json.loads((out / "best.json").read_text())["study"] == "other"
    assert json.loads((out / "ris-narrow" / "best.json").read_text()) == report


def test_loss_weights_do_not_change_the_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials that end with the same weights have the same value, whatever they trained with."""
    real = train_module.fit
    reported: list[float] = []

    def without_training(
        config: ExperimentConfig, folder: Path, on_epoch: Any, resume: bool
    ) -> Any:
        still = dataclasses.replace(
            config.train, lr_backbone=1e-12, lr_head=1e-12, weight_decay=0.0
        )
        return real(dataclasses.replace(config, train=still), folder, on_epoch=on_epoch, quiet=True)

    monkeypatch.setattr(train_module, "fit", without_training)
    weights = [d.path for d in SPACES["narrow"] if d.path.startswith("loss.")]
    monkeypatch.setitem(SPACES, "narrow", tuple(d for d in SPACES["narrow"] if d.path in weights))
    run(options(tmp_path, n_trials=3))
    done = trials(tmp_path)
    assert len({tuple(t.params.values()) for t in done}) == 3
    # The assignment of slots to sources may follow the trial's weights only in the reports.
    assert [t.value for t in done] == pytest.approx([done[0].value] * 3, rel=1e-5)
    reported = [t.intermediate_values[0] for t in done]
    assert reported == pytest.approx([done[0].value] * 3, rel=0.2)


def test_bad_trials_are_pruned_by_the_reported_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = train_module.fit, []

    def ever_worse(config: ExperimentConfig, folder: Path, on_epoch: Any, resume: bool) -> Any:
        calls.append(folder)
        scale = 1.0 if len(calls) < 5 else 100.0

        def scaled(epoch: int, metrics: dict[str, float]) -> None:
            on_epoch(epoch, {name: scale * value for name, value in metrics.items()})

        return real(config, folder, on_epoch=scaled, quiet=True)

    monkeypatch.setattr(train_module, "fit", ever_worse)
    assert run(options(tmp_path, n_trials=5, epochs_per_trial=2, train_samples=8)) == 0
    assert [t.state for t in trials(tmp_path)] == [STATES.COMPLETE] * 4 + [STATES.PRUNED]
    assert json.loads((calls[4] / "trial.json").read_text())["state"] == "pruned"
    capsys.readouterr()
    assert run(options(tmp_path, n_trials=5, epochs_per_trial=2, train_samples=8)) == 0
    assert "has 5 finished trials" in capsys.readouterr().out


def test_failing_trials_are_reported_and_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no memory left\ndetails")

    monkeypatch.setattr(train_module, "fit", broken)
    with pytest.raises(HpoError, match=r"every trial.*RuntimeError: no memory left\)$"):
        run(options(tmp_path, n_trials=2))
    assert [t.state for t in trials(tmp_path)] == [STATES.FAIL] * 2
    trace = (tmp_path / "ris-narrow" / "trial_0001" / "error.txt").read_text()
    assert "Traceback" in trace and "details" in trace
    monkeypatch.undo()
    assert run(options(tmp_path, n_trials=1)) == 0


def test_a_failed_checklist_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo, "checklist_passed", lambda folder: False)
    with pytest.raises(HpoError, match=r"checklist failed in trial\(s\) \[0\]"):
        run(options(tmp_path))


def test_an_interrupted_trial_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    run(options(tmp_path))
    monkeypatch.setattr(train_module, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(options(tmp_path, n_trials=2))
    monkeypatch.undo()
    assert run(options(tmp_path, n_trials=2)) == 0
    assert "has 1 finished trials, resuming" in capsys.readouterr().out
    _, stopped, again = trials(tmp_path)
    assert (stopped.state, again.state) == (STATES.FAIL, STATES.COMPLETE)
    assert stopped.params == again.params


def test_the_base_trial_survives_an_interruption_before_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class KilledError(BaseException):
        """As for SIGKILL, nobody tells the study."""

    def killed(*args: Any) -> None:
        raise KilledError

    for count in range(1, MAX_INTERRUPTIONS + 2):
        with monkeypatch.context() as patch:
            patch.setattr(Range, "suggest", killed)
            with pytest.raises(KilledError):
                run(options(tmp_path / "given_up"))
        shown = capsys.readouterr().out
        assert ("are tried again" in shown) == (1 < count <= MAX_INTERRUPTIONS)
        assert ("other parameters" in shown) == (count > MAX_INTERRUPTIONS)
        if count == 1:
            shutil.copytree(tmp_path / "given_up", tmp_path / "continued")
    chosen = options(tmp_path / "continued")
    assert run(chosen) == 0
    stopped, again = trials(tmp_path / "continued")
    assert (stopped.state, again.state) == (STATES.FAIL, STATES.COMPLETE)
    assert again.params == starting_point(SPACES["narrow"], base_config(chosen))


def test_options_are_checked(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{"n_trials": 0}, {"epochs_per_trial": 0}, {"space": "huge"}]
    bad += [{"workers": 0}, {"grace_period": 1.0}, {"grace_period": float("nan")}]
    for changes in bad:
        with pytest.raises(ConfigError):
            options(tmp_path, **changes)


def test_shards_bring_their_own_system(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", TINY, SimulationConfig(), samples=48, seed=0)
    chosen = options(tmp_path / "out", shards=str(tmp_path / "shards"), system=SystemConfig())
    assert base_config(chosen).system == TINY
    assert run(chosen) == 0
    config = load_best(tmp_path / "out" / "best.json")
    assert config.system == TINY and config.data.shards == str(tmp_path / "shards")
    other = dataclasses.replace(TINY, antennas=7)
    with pytest.raises(ConfigError, match="another system"):
        base_config(dataclasses.replace(chosen, system=other))


def test_warm_up_fits_into_a_short_trial(tmp_path: Path) -> None:
    assert base_config(options(tmp_path, train_samples=80)).train.warmup_steps == 2
    default = base_config(options(tmp_path, train_samples=8000)).train.warmup_steps
    assert default == TrainConfig().warmup_steps


def test_best_json_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    with pytest.raises(ConfigError, match="no such file"):
        load_best(path)
    config = to_dict(ExperimentConfig())
    for content, message in (
        ("{", "not valid JSON"),
        (json.dumps({"format": 99, "config": config}), "format 1"),
        (json.dumps({"format": 1, "config": {**config, "speed": 3}}), "'speed'"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            load_best(path)


def test_every_loss_term_counts_in_the_objective() -> None:
    assert all(getattr(LossConfig(), name) > 0 for name in TERMS)
