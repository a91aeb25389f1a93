# SPDX-License-Identifier: Apache-2.0
"""``ris evaluate``: what it leaves behind, stopped and continued, and what it refuses at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluation_helpers import SYSTEM
from training_helpers import experiment

from bench import table
from ris_pytorch_pipeline import evaluation_report
from ris_pytorch_pipeline.checkpoint import Checkpoint, save_checkpoint
from ris_pytorch_pipeline.cli import main
from ris_pytorch_pipeline.evaluation_command import checkpoint_facts
from ris_pytorch_pipeline.evaluation_report import markdown, read_report
from ris_pytorch_pipeline.model import LocalizationNet
from ris_pytorch_pipeline.recipes import RECIPES

ROOT = Path(__file__).parents[1]
QUICK = ["--counts", "1", "--snrs_db", "20", "--scenes", "2", "--device", "cpu"]
OWN = """
import time
import torch
from ris_pytorch_pipeline.localize import Positions

class Ahead:
    name = "ahead"

    def __init__(self, setting):
        self.slots = setting.system.max_sources

    def __call__(self, scenes, num_sources):
        time.sleep({pause})
        one = torch.ones(len(scenes), self.slots)
        return Positions(0 * one, 0 * one, 3 * one, one, torch.arange(self.slots) < one)
"""


def error_of(capsys: pytest.CaptureFixture[str], args: list[str], status: int = 2) -> str:
    capsys.readouterr()
    assert main(["evaluate", *args]) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ris: error: "), lines
    return lines[0]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an estimator in a module of the user's."""
    (tmp_path / "own_estimator.py").write_text(OWN.format(pause=0))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_estimator", raising=False)
    return "own_estimator:Ahead"


def test_one_command_leaves_report_table_and_figures(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", "--out", str(out), "--estimators", own, "omp", *QUICK]) == 0
    printed = capsys.readouterr().out
    report = read_report(out / "evaluation.json")
    assert markdown(report) in printed
    assert "K = 1, 20 dB: done, 100 % of all" in printed
    (cell,) = report["cells"]
    assert [e["estimator"] for e in cell["estimators"]] == ["ahead", "ahead", "omp", "omp"]
    assert cell["scenes"] == 2 and report["complete"] and report["checkpoint"] is None
    names = {path.name for path in out.iterdir()}
    figures = {"position_error", "range_error", "gospa_known", "gospa_unknown", "slices_K1"}
    assert {f"{name}.png" for name in figures} < names
    # Nothing is left to do: the same again is the same report.
    assert main(["evaluate", "--out", str(out), "--estimators", own, "omp", *QUICK]) == 0
    assert read_report(out / "evaluation.json")["cells"] == report["cells"]


def test_an_estimator_of_the_present_folder_is_found(tmp_path: Path) -> None:
    """A console script's first place of modules is the folder of the script."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "ris"
    script.write_text("import sys\nfrom ris_pytorch_pipeline.cli import main\nsys.exit(main())\n")
    (tmp_path / "mine.py").write_text(OWN.format(pause=0))
    command = [sys.executable, str(script), "evaluate", "--estimators", "mine:Ahead", *QUICK]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--out", "out", "--no-figures"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (cell,) = read_report(tmp_path / "out" / "evaluation.json")["cells"]
    assert {entry["estimator"] for entry in cell["estimators"]} == {"ahead"}


def test_the_report_says_what_a_checkpoint_is() -> None:
    config = RECIPES["default"]
    torch.manual_seed(0)
    net = LocalizationNet(config.system, config.model, config.covariance)
    here = replace(
        config,
        train=replace(config.train, device="cpu", log_every=7),
    )
    facts = checkpoint_facts(Checkpoint(here, net, {"val_loss": 0.5}))
    assert facts["recipe"] == "default" and facts["val_loss"] == 0.5
    other = replace(here, data=replace(here.data, shards="/some/folder"))
    shards = checkpoint_facts(Checkpoint(other, net, {}))
    assert shards["recipe"] is None and shards["val_loss"] is None
    assert "/some/folder" not in json.dumps(shards)
    assert shards["weights_sha256"] == facts["weights_sha256"]
    with torch.no_grad():
        next(net.parameters()).add_(1)
    changed = checkpoint_facts(Checkpoint(replace(here, train=config.train), net, {}))
    assert changed["weights_sha256"] != facts["weights_sha256"]
    assert changed["config_sha256"] != facts["config_sha256"]
    longer = replace(here, train=replace(config.train, epochs=3))
    assert checkpoint_facts(Checkpoint(longer, net, {}))["recipe"] is None


def test_ctrl_c_leaves_what_is_done(own: str, tmp_path: Path) -> None:
    (tmp_path / "own_estimator.py").write_text(OWN.format(pause=0.3))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ris_pytorch_pipeline", "evaluate", "--out", str(out)]
    command += ["--estimators", own, "--device", "cpu", "--scenes", "1", "--no-figures"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background, tests included, with this signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("K = 1, -5 dB: done")
        process.send_signal(signal.SIGINT)
        message = process.stderr.read().strip()
        assert process.wait(60) == 130
    assert message == f"ris: interrupted: {out} holds what is done; " + (
        "the same command goes on from there"
    )
    report = read_report(out / "evaluation.json")
    assert not report["complete"] and 1 <= len(report["cells"]) < 24


def test_mistakes_are_refused_before_any_work(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    base = ["--out", str(out), *QUICK]
    for args, message in (
        ([*base, "--estimators", "nobody"], "got 'nobody', expected one of"),
        ([*base, "--estimators", "learned"], "learned: no checkpoint"),
        ([*base, "--estimators", "own_estimator:Nothing"], "has no attribute 'Nothing'"),
        ([*base, "--estimators", "no_such_module:X"], "No module named 'no_such_module'"),
        ([*base, "--estimators", own, own], "estimator 'ahead': expected a name of its own"),
        ([*base, "--counts", "0"], "counts is [0], expected some of [1, 2, 3, 5]"),
        ([*base, "--snrs_db", "7"], "snrs_db is [7.0]"),
        ([*base, "--scenes", "0"], "scenes is 0, expected at least 1"),
        ([*base, "--batch_size", "0"], "batch_size and threads must be at least 1"),
        ([*base, "--threads", "0"], "batch_size and threads must be at least 1"),
        ([*base, "--device", "tpu"], "expected auto, cpu, cuda or cuda:N"),
        ([*QUICK, "--out", str(tmp_path / "file")], "is a file, expected a folder"),
        ([*base, "--checkpoint", str(tmp_path / "none")], "no such checkpoint folder"),
        ([*base, "--sources", "some"], "sources"),
    ):
        assert message in error_of(capsys, args)
    assert not out.exists()


def test_a_checkpoint_of_another_geometry_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment()
    net = LocalizationNet(config.system, config.model, config.covariance)
    save_checkpoint(tmp_path / "net", config, net)
    args = ["--out", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "net"), *QUICK]
    message = error_of(capsys, [*args, "--estimators", "omp"])
    assert "the checkpoint was made for another system than the suite's" in message
    assert f"n_h: 12 -> {config.system.n_h}" in message
    assert "another system" in error_of(capsys, args)
    assert not (tmp_path / "out").exists() and config.system != SYSTEM


def test_an_estimator_that_fails_is_one_line_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = OWN.format(pause=0).replace("3 * one", "one / 0")
    (tmp_path / "own_estimator.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_estimator", raising=False)
    args = ["--out", str(tmp_path / "out"), "--estimators", "own_estimator:Ahead", *QUICK]
    message = error_of(capsys, args, status=1)
    assert "estimator ahead: returned a position that is not finite" in message


COMMITTED = sorted(ROOT.glob("bench/results/evaluation_*.json"))


@pytest.mark.parametrize("page", ["README.md", "docs/evaluation.md"])
def test_tables_are_those_of_the_committed_report(page: str) -> None:
    """``python -m bench.table --update PAGE`` draws them again."""
    path = ROOT / page
    text = path.read_text()
    assert re.search(r"<!-- table of \S*evaluation_\S+\.json(?: --op \S+)*: begin -->", text)
    assert table.redraw(text, path.parent) == text


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_reports_are_complete_and_of_this_suite(path: Path) -> None:
    report = read_report(path)
    assert report["complete"] and len(report["cells"]) == 24
    assert report["modified"] is False and report["suite"]["version"] == 1
    assert evaluation_report.report_text(report) == path.read_text()
    for cell in report["cells"]:
        assert cell["scenes"] == report["suite"]["scenes"]
        for entry in cell["estimators"]:
            parts = [entry[f"gospa_{part}"] for part in ("localisation", "missed", "false")]
            assert entry["gospa"] ** 2 == pytest.approx(sum(parts), rel=1e-4, abs=1e-9)
            assert entry["sources"] == cell["scenes"] * cell["num_sources"]
    assert COMMITTED and json.loads(path.read_text()) == report
