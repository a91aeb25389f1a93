# SPDX-License-Identifier: Apache-2.0
"""The training state of a checkpoint from a stranger: refused where it is not one of the run."""

from __future__ import annotations

import pytest
import torch
from fault_helpers import sign_checkpoint
from hostile_helpers import edit, put, refusal
from training_helpers import experiment, make_trainer, scenes_of

from ris_pytorch_pipeline import cli
from ris_pytorch_pipeline.configs import save_config
from ris_pytorch_pipeline.train import Trainer, fit


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resume(place, **changes):
    """Continue a run whose saved state was changed by a stranger."""
    folder = place / "run" / "last"
    edit(folder / "state.json", **changes)
    sign_checkpoint(folder)
    return cli.main(["train", "--config", "c.json", "--out", "run", "--resume", "auto"])


@pytest.mark.parametrize(
    "changes",
    [
        {"map__counters__map__epoch": -1},
        {"map__counters__map__epoch": "1"},
        {"map__counters__map__epoch_steps": 10**6},
        {"map__counters": {"map": {"save": 1}}},
        {"map__data__map__position": -3},
        {"map__data__map__position": 10**9},
        {"map__data__map__host": {"tensor": 0}},
        {"map__data": []},
        {"map__random__map__cpu": {"tensor": 0}},
        {"map__scheduler__map__step": 1},
        {"map__scheduler__map__base_lrs": [1e9]},
        {"map__optimizer__map__state__items__0__1__map__exp_avg": {"tensor": 0}},
        {"map__optimizer__map__state__items__0__1__map__step": {"tensor": 1}},
        {"map__optimizer__map__param_groups": []},
        {"map__optimizer__map__param_groups__0__map__lr": {"float": "nan"}},
        {"map__optimizer__map__param_groups__0__map__betas": {"tuple": [9, 9]}},
        {"map__optimizer__map__param_groups__0__map__fused": False},
        {"map__ema__map__weights__map__slot_rank": {"tensor": 0}},
        {"map__ema": {"tensor": 10**9}},
        {"map__ema": {"tensor": -1}},
        {"map__ema": {"pickle": "x"}},
        {"map__ema": {"float": "1"}},
        {"map__ema": {"items": 3}},
        {"map__ema": {"items": [[]]}},
        {"map": []},
    ],
)
def test_hostile_states(place, capsys, changes, run_to_continue):
    put(run_to_continue, place)
    refusal(capsys, lambda: resume(place, **changes), names="run/last")


@pytest.fixture(scope="module")
def run_to_continue(tmp_path_factory):
    """A run of which one epoch is left, without its earlier checkpoint."""
    base = tmp_path_factory.mktemp("run")
    config = experiment(checkpoint_every=3)

    class StopError(Exception):
        pass

    def stop(epoch, _):
        raise StopError

    with pytest.raises(StopError):
        fit(config, base / "run", on_epoch=stop, quiet=True)
    save_config(config, base / "c.json")
    paths = [base / "c.json", *(base / "run" / "last").iterdir()]
    return {path.relative_to(base): path.read_bytes() for path in paths}


def test_a_state_that_is_whole_continues(place, run_to_continue):
    put(run_to_continue, place)
    assert resume(place) == 0


def test_moments_of_another_shape_never_reach_the_kernel():
    """The fused kernel reads as many entries as the parameter has."""
    trainer, other = make_trainer(), Trainer(experiment(), torch.device("cpu"))
    trainer.train_step(scenes_of(trainer, 8))
    state = trainer.state_dict()
    entry = state["optimizer"]["state"][0]
    for wrong in (entry["exp_avg"][:1], entry["exp_avg"].flatten(), 3.0):
        bad = {**state["optimizer"], "state": {**state["optimizer"]["state"]}}
        bad["state"][0] = {**entry, "exp_avg": wrong}
        with pytest.raises(ValueError, match="the optimizer's exp_avg"):
            other._take({**state, "optimizer": bad}, {})
