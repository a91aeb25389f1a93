# SPDX-License-Identifier: Apache-2.0
"""The step profile: the same step as the trainer's, cut into phases that add up."""

import copy
import dataclasses
import json
import math
import statistics
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import parameters_to_vector
from training_helpers import CPU, experiment, make_trainer, scenes_of

import riskernels
from ris_pytorch_pipeline import covariance, eager
from ris_pytorch_pipeline import profile as profile_module
from ris_pytorch_pipeline.cli import main
from ris_pytorch_pipeline.configs import ConfigError, CovarianceConfig, save_config
from ris_pytorch_pipeline.inference import Inference
from ris_pytorch_pipeline.loss import LocalizationLoss
from ris_pytorch_pipeline.machine import commit, slug
from ris_pytorch_pipeline.profile import (
    COVARIANCE_PHASES,
    PATHS,
    PHASES,
    Clock,
    DisagreementError,
    ProfileOptions,
    cut_graph,
    profile,
    split_step,
    square_system,
)
from ris_pytorch_pipeline.profile_report import COLOURS, by_size, profile_figure, summary
from ris_pytorch_pipeline.train import Trainer

TINY = ProfileOptions(elements=(16, 36), steps=2, warmup=1)


@pytest.fixture(scope="module")
def report():
    return profile(experiment(), TINY)


def gradients(trainer, step):
    """Parameter gradients that a step hands to the trainer's guard, and the loss."""
    seen = {}
    guard = trainer.guard

    def capture(total):
        seen["loss"] = total.clone()
        named = trainer.net.named_parameters()
        seen.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        return guard(total)

    capture.scaler = guard.scaler
    trainer.guard = capture
    torch.manual_seed(3)  # of the dropout
    step()
    trainer.guard = guard
    return seen


@pytest.mark.parametrize("form", ["dense", "factored"])
@pytest.mark.parametrize("weights", [{}, {"angle": 0.0, "range_log": 0.0, "existence": 0.0}])
def test_a_split_step_is_the_trainers_step(form, weights):
    trainers = [make_trainer(covariance=form) for _ in range(2)]
    for trainer in trainers:
        trainer.net.train()
        loss = dataclasses.replace(trainer.config.loss, **weights)
        trainer.loss = LocalizationLoss(
            trainer.config.system, loss, trainer.config.covariance, form
        )
    batches = scenes_of(trainers[0], 6, 6)
    before = parameters_to_vector(trainers[0].net.parameters()).clone()
    marks = []
    for scenes in batches:
        whole = gradients(trainers[0], lambda s=scenes: trainers[0].train_step([s]))
        split = gradients(
            trainers[1],
            lambda s=scenes: split_step(trainers[1], iter([s]), lambda: marks.append(0)),
        )
        assert whole.keys() == split.keys() and len(whole) > 40
        everything = torch.cat([value.flatten() for value in whole.values()]).norm()
        for name, value in whole.items():
            # The bias in front of the softmax has a gradient of rounding errors alone.
            limit = 1e-5 * value.norm() + 1e-7 * everything
            assert (split[name] - value).norm() <= limit, name
    assert len(marks) == 2 * (len(PHASES) + 1)
    assert trainers[0].real_steps == trainers[1].real_steps == 2
    one, other = (parameters_to_vector(trainer.net.parameters()) for trainer in trainers)
    assert (one - other).norm() <= 1e-2 * (one - before).norm()


def test_the_clock_measures_between_marks(monkeypatch):
    readings = iter([8.0, 8.25, 8.25, 9.0])
    clock_of_the_machine = SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr(profile_module, "time", clock_of_the_machine)
    clock = Clock(CPU)
    for _ in range(4):
        clock.mark()
    assert clock.seconds() == [0.25, 0.0, 0.75]


def test_the_report_holds_every_case_and_adds_up(report):
    assert [(c["elements"], c["path"]) for c in report["cases"]] == [
        (elements, path) for elements in TINY.elements for path in PATHS
    ]
    for case in report["cases"]:
        assert tuple(case["phases"]) == PHASES == tuple(case["samples"])
        for name, value in case["phases"].items():
            assert len(case["samples"][name]) == TINY.steps and value > 0
            assert value == statistics.median(case["samples"][name])
        steps = list(zip(*case["samples"].values(), strict=True))
        assert case["step"] == statistics.median(map(sum, steps))
        spent = zip(*(case["samples"][name] for name in COVARIANCE_PHASES), strict=True)
        assert case["covariance_and_loss"] == statistics.median(map(sum, spent))
        assert case["share"] == case["covariance_and_loss"] / case["step"]
        assert len(case["losses"]) == TINY.steps + TINY.warmup
    for size in by_size(report["cases"]).values():
        reference = size[0]["covariance_and_loss"]
        for case in size:
            assert case["speedup"] == pytest.approx(reference / case["covariance_and_loss"])
            assert case["losses"] == pytest.approx(size[0]["losses"], rel=1e-3)
    assert report["threads"] == torch.get_num_threads()
    assert report["machine"]["logical_cpus"] >= 1 and report["versions"]["torch"]
    assert json.loads(json.dumps(report)) == report


def test_the_paths_run_what_they_are_named_after(monkeypatch):
    seen = []
    real = profile_module.split_step

    def spy(trainer, batches, mark, back_project):
        seen.append((type(trainer.loss), trainer.loss.form, back_project))
        return real(trainer, batches, mark, back_project)

    monkeypatch.setattr(profile_module, "split_step", spy)
    profile(experiment(), ProfileOptions((9,), steps=1, warmup=0))
    ours = covariance.back_projected_snapshots
    assert seen == [
        (eager.EagerLoss, "dense", eager.back_projected_snapshots),
        (LocalizationLoss, "dense", ours),
        (LocalizationLoss, "factored", ours),
    ]


@pytest.mark.parametrize(
    "config",
    [
        CovarianceConfig(),
        CovarianceConfig(relative=True, center=True, alpha=1e-2),
        CovarianceConfig(loading=0.1, shrinkage=0.2, target_trace=3.0, beta=0.6),
    ],
)
def test_the_eager_path_has_the_values_and_gradients_of_the_operators(config):
    whole = dataclasses.replace(experiment(), covariance=config)
    trainer = Trainer(whole, CPU)
    (scenes,) = scenes_of(trainer, 5)
    trainer.net.eval()
    plain_loss = eager.EagerLoss(whole.system, whole.loss, config)
    found = []
    for loss, source in ((trainer.loss, covariance), (plain_loss, eager)):
        snapshots = source.back_projected_snapshots(scenes, config)
        leaves = cut_graph(trainer.net(scenes, snapshots))
        terms = loss(Inference(leaves, scenes, config), scenes)
        found.append((terms, torch.autograd.grad(terms["total"], leaves.factor)[0]))
    (ours, gradient), (plain, other) = found
    assert ours.keys() == plain.keys()
    for name, value in ours.items():
        torch.testing.assert_close(plain[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert (gradient - other).norm() <= 1e-3 * gradient.norm()


def test_a_written_report_is_drawn_again(report, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "profile_x.json"
    file.write_text(json.dumps(report))
    assert main(["plot", "--profile", str(file)]) == 0
    assert file.with_suffix(".png").stat().st_size and "profile_x.png" in capsys.readouterr().out
    file.write_text('{"schema": 1}')
    assert main(["plot", "--profile", str(file)]) == 2
    assert "no report of `ris profile`" in capsys.readouterr().err
    assert main(["plot", "--profile", str(tmp_path / "none.json")]) == 2
    assert main(["plot", "--profile", str(file), "--run", str(tmp_path)]) == 2


def test_paths_that_disagree_give_no_report(monkeypatch):
    real = riskernels.factored_nmse
    monkeypatch.setattr(riskernels, "factored_nmse", lambda *a, **k: 1.01 * real(*a, **k))
    with pytest.raises(DisagreementError, match="N = 9: the losses"):
        profile(experiment(), ProfileOptions((9,), steps=1, warmup=0))
    monkeypatch.setattr(riskernels, "factored_nmse", lambda *a, **k: math.nan * real(*a, **k))
    with pytest.raises(DisagreementError):
        profile(experiment(), ProfileOptions((9,), steps=1, warmup=0))


def test_threads_are_put_back():
    before = torch.get_num_threads()
    found = profile(
        experiment(), ProfileOptions((9,), ("factored",), steps=1, warmup=0, threads=before + 1)
    )
    assert found["threads"] == before + 1 and torch.get_num_threads() == before
    assert "speedup" not in found["cases"][0]
    assert "reference" not in summary(found["cases"])


def test_the_configuration_but_for_the_surface_is_kept():
    base = experiment(accumulate=3)
    sized = square_system(base, 25, 7)
    assert (sized.system.n_h, sized.system.n_v) == (5, 5)
    assert sized.data.train_samples == 7 * base.train.batch_size and sized.data.shards is None
    assert dataclasses.replace(sized.system, n_h=4, n_v=3) == base.system
    assert (sized.model, sized.loss, sized.covariance) == (base.model, base.loss, base.covariance)
    assert len(Trainer(sized, CPU).groups) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"elements": ()}, "at least one"),
        ({"paths": ()}, "at least one"),
        ({"elements": (9, 9)}, "twice"),
        ({"elements": (9, 12)}, "12 elements are no square surface"),
        ({"elements": (-4,)}, "-4 elements"),
        ({"elements": (1,)}, "max_sources"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_any_work(options, message, monkeypatch):
    def refuse(*args):
        raise AssertionError("worked")

    monkeypatch.setattr(profile_module, "Trainer", refuse)
    with pytest.raises(ConfigError, match=message):
        profile(experiment(), ProfileOptions(**options))


def test_the_figure_stacks_every_phase_of_every_path(report):
    pytest.importorskip("matplotlib")
    figure = profile_figure(report)
    panels = [axes for axes in figure.axes if axes.patches]
    assert len(panels) == 2 and set(COLOURS) == set(PHASES)
    for axes, cases in zip(panels, by_size(report["cases"]).values(), strict=True):
        assert len(axes.patches) == len(PHASES) * len(PATHS)
        assert axes.get_title(loc="left") == f"N = {cases[0]['elements']}"
        ends = [patch.get_x() + patch.get_width() for patch in axes.patches[-len(PATHS) :]]
        assert ends == pytest.approx([1000 * sum(case["phases"].values()) for case in cases])
        shown = [text.get_text() for text in axes.texts]
        assert all(f"{100 * c['share']:.1f} %" in t for c, t in zip(cases, shown, strict=True))


def test_the_command_prints_and_writes(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    config, out = tmp_path / "config.json", tmp_path / "profile"
    save_config(experiment(), config)
    command = ["profile", "--config", str(config), "--elements", "16", "--steps", "2"]
    command += ["--warmup", "0", "--batch_size", "3", "--threads", "1", "--out", str(out)]
    assert main([*command, "--paths", "reference", "factored"]) == 0
    shown = capsys.readouterr().out
    (file,) = out.glob("profile_*.json")
    written = json.loads(file.read_text())
    assert file.stem == f"profile_{slug(written)}" and file.with_suffix(".png").stat().st_size
    assert [c["path"] for c in written["cases"]] == ["reference", "factored"]
    assert written["settings"]["batch_size"] == 3 and written["threads"] == 1
    for name in PHASES:
        assert f"{name} " in shown
    speedup = written["cases"][1]["speedup"]
    assert f"{speedup:.1f}x faster than the reference" in shown and str(file) in shown


class WithoutMatplotlib:
    """An importer that finds no Matplotlib."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")


def test_the_command_refuses_in_one_line(tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "p")
    for arguments, status, message in (
        (["--elements", "10"], 2, "no square"),
        (["--device", "cuda:99"], 2, "cuda:99"),
        (["--batch_size", "0"], 2, "batch_size"),
        (["--threads", "0"], 2, "threads is 0"),
    ):
        assert main(["profile", "--no_figure", "--out", out, *arguments]) == status
        line = capsys.readouterr().err.strip()
        assert line.count("\n") == 0 and message in line, line
    assert not (tmp_path / "p").exists()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutMatplotlib(), *sys.meta_path])
    assert main(["profile", "--out", out]) == 2
    assert 'pip install "riskernels[plots]"' in capsys.readouterr().err


def test_provenance(report):
    found = commit()
    assert (found["commit"], found["modified"]) == (report["commit"], report["modified"])
    cpu = copy.deepcopy(report)
    cpu["threads"], cpu["versions"]["simd_level"] = 1, "avx2"
    assert slug(cpu) == "cpu_avx2_1thread"
    cpu["machine"]["gpu"] = {"name": "NVIDIA H200"}
    assert slug(cpu) == "gpu_h200"
