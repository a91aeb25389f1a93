# SPDX-License-Identifier: Apache-2.0
"""``ris plot``: what the figures show of a run and of a search, and one line for every error."""

from __future__ import annotations

import builtins
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from matplotlib.axes import Axes

from ris_pytorch_pipeline.cli import main
from ris_pytorch_pipeline.configs import ConfigError
from ris_pytorch_pipeline.plots import run_figure, study_figure
from ris_pytorch_pipeline.progress import RunLog
from ris_pytorch_pipeline.storage import Storage

EPOCHS, STEPS = 3, 4
TERMS = ("nmse_blend", "angle")
DIRECTIONS = {"train": 1.0, "val": 2.0}
PNG = b"\x89PNG\r\n\x1a\n"


def write_run(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, written as the trainer does; returns its records of epochs."""
    folder.mkdir(parents=True)
    with RunLog(folder, total_steps=EPOCHS * STEPS, quiet=True) as log:
        log.record("checklist", {"ok": True, "lines": []})
        for epoch in range(1, EPOCHS + 1):
            for _ in range(STEPS):
                log.advance("", {"loss": random.random(), "lr": 1e-3 * random.random()}, show=True)
                if log.done_steps == 6:
                    log.record("skipped", {"loss": math.nan, "skipped_steps": 1})
            values = {f"{p}_{t}": random.random() for p in DIRECTIONS for t in (*TERMS, "total")}
            values |= {f"{p}_loss": values[f"{p}_total"] for p in DIRECTIONS}
            if epoch == 2:
                values["val_loss"] = math.inf
            log.record("epoch", {"epoch": epoch, **values})
        log.record("swa", {"val_loss": 0.5, "updates": 2})
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "epoch"]


def curve(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    """The data of the one line with this label, which the legend must show."""
    assert label in [text.get_text() for text in axes.get_legend().get_texts()]
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return list(line.get_xdata()), list(line.get_ydata())


def assert_legends_clear_the_data(figure: Any) -> None:
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend, frame = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert legend.x0 >= frame.x1 and legend.x1 <= figure.bbox.x1


def test_a_run(tmp_path: Path) -> None:
    epochs = write_run(tmp_path / "run")
    figure = run_figure(tmp_path / "run")
    loss, rate, training, validation = figure.axes
    assert len(loss.get_lines()) == 5 and len(rate.get_lines()) == 1
    assert len(curve(loss, "training, step")[0]) == len(curve(rate, "backbone")[0]) == 12
    steps, values = curve(loss, "validation")
    assert steps == [4, 8, 12] and math.isnan(values[1])
    assert values[::2] == [epochs[0]["val_loss"], epochs[2]["val_loss"]]
    assert curve(loss, "training, epoch mean")[1] == [e["train_loss"] for e in epochs]
    assert curve(loss, "validation, SWA weights") == ([12], [0.5])
    assert curve(loss, "skipped step (not finite)")[0] == [6]
    for axes, prefix in ((training, "train"), (validation, "val")):
        assert len(axes.get_lines()) == len(TERMS)
        assert curve(axes, "angle (rad)")[1] == [e[f"{prefix}_angle"] for e in epochs]
        assert curve(axes, "nmse_blend")[1] == [e[f"{prefix}_nmse_blend"] for e in epochs]
    assert validation.get_xlabel() == "training step" and "loss" in loss.get_ylabel()
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert_legends_clear_the_data(figure)
    (top,) = loss.child_axes
    assert top.get_xlabel() == "epoch"
    assert top.get_xlim() == pytest.approx([limit / STEPS for limit in loss.get_xlim()])


def test_a_run_in_its_first_epoch_has_no_terms_and_half_a_line(tmp_path: Path) -> None:
    lines = [json.dumps({"kind": "step", "step": s, "loss": 1 / s, "lr": 1e-3}) for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "st']))
    loss, _ = run_figure(tmp_path).axes
    assert curve(loss, "training, step") == ([1, 2], [1.0, 0.5])


def write_search(folder: Path) -> None:
    """Two studies, one of them with trials in every state."""
    folder.mkdir()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage, states = f"sqlite:///{folder / 'study.db'}", optuna.trial.TrialState
    study = optuna.create_study(study_name="ris-wide", storage=storage)
    study.tell(study.ask(), 3.0)
    pruned = study.ask()
    for epoch, value in enumerate((9.0, 7.0)):
        pruned.report(value, epoch)
    study.tell(pruned, state=states.PRUNED)
    study.tell(study.ask(), 4.0)
    study.tell(study.ask(), state=states.FAIL)
    study.tell(study.ask(), 2.0)
    study.ask()
    one = optuna.create_study(study_name="ris-narrow", storage=storage)
    one.tell(one.ask(), 5.0)


def test_a_search(tmp_path: Path) -> None:
    write_search(tmp_path / "search")
    folder = (tmp_path / "search").rename(tmp_path / "100%20 $x$ really?")
    before = (folder / "study.db").read_bytes()
    figure = study_figure(folder)
    narrow, wide = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["study ris-narrow", "study ris-wide"]
    assert curve(wide, "complete trial") == ([0, 2, 4], [3.0, 4.0, 2.0])
    assert curve(wide, "best so far") == ([0, 2, 4, 5.5], [3.0, 3.0, 2.0, 2.0])
    assert curve(wide, "pruned trial, last value") == ([1], [7.0])
    assert curve(wide, "failed trial (no value)")[0] == [3]
    assert curve(narrow, "complete trial") == ([0], [5.0]) and len(narrow.get_lines()) == 2
    assert wide.get_xlabel() == "trial number" and "objective" in wide.get_ylabel()
    assert_legends_clear_the_data(figure)
    assert (folder / "study.db").read_bytes() == before


def test_the_command_writes_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    write_search(tmp_path / "search")
    assert main(["plot", "--run", str(tmp_path / "run")]) == 0
    assert main(["plot", "--study", str(tmp_path / "search")]) == 0
    assert (
        main(["plot", "--study", str(tmp_path / "search"), "--out", str(tmp_path / "a.png")]) == 0
    )
    images = [tmp_path / "run" / "run.png", tmp_path / "search" / "study.png", tmp_path / "a.png"]
    assert capsys.readouterr().out.splitlines() == [f"figure {image}" for image in images]
    assert all(image.read_bytes().startswith(PNG) for image in images)


def error_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["plot", *args]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("ris: error: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such file"),
        ("", "empty"),
        ('{"kind": "step"', "empty"),
        ("{}}\n", "line 1 is not valid JSON"),
        ('{"kind": "step", "step": 1, "loss": 1}\n[3]\n', "line 2 is not a record"),
        ('{"kind": "step", "step": 1, "loss": null, "lr": 0.1}\n', "no finite loss"),
    ],
)
def test_metrics_that_cannot_be_drawn(
    text: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    line = error_of(capsys, "--run", str(tmp_path))
    assert expected in line and "metrics.jsonl" in line
    assert not list(tmp_path.glob("*.png"))


def test_searches_that_cannot_be_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--study", str(tmp_path))
    assert "study.db: no such file" in error_of(capsys, *args)
    for content in (b"", b"no database " * 100):
        (tmp_path / "study.db").write_bytes(content)
        assert "not a study of Optuna" in error_of(capsys, *args)
        assert (tmp_path / "study.db").read_bytes() == content
    (tmp_path / "study.db").unlink()
    optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}").ask()
    assert "no completed trial" in error_of(capsys, *args)
    (tmp_path / "study.journal").write_bytes(b"no journal\n" * 2)
    assert "study.journal: not a study of Optuna" in error_of(capsys, *args)


def test_a_study_in_a_journal_is_only_read(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="s", storage=Storage(path).open())
    study.tell(study.ask(), 1.0)
    before = path.read_bytes()
    (axes,) = study_figure(tmp_path).axes
    assert axes.get_title() == "study s"
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "one of --run, --study and --profile" in error_of(capsys)
    assert "one of --run, --study and --profile" in error_of(capsys, "--run", "a", "--study", "b")
    write_run(tmp_path / "run")
    line = error_of(capsys, "--run", str(tmp_path / "run"), "--out", str(tmp_path / "a.xyz"))
    assert "'xyz' is not supported" in line
    assert main(["--help"]) == 0 and "plot" in capsys.readouterr().out


def test_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")
        return found(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert 'pip install "riskernels[plots]"' in error_of(capsys, "--run", str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="Matplotlib"):
        run_figure(tmp_path / "run")
