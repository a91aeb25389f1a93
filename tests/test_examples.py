# SPDX-License-Identifier: Apache-2.0
"""The examples run as they stand, and what they print is true."""

from __future__ import annotations

import ast
import importlib.util
import math
import re
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import riskernels
from ris_pytorch_pipeline.checkpoint import save_checkpoint
from ris_pytorch_pipeline.configs import ExperimentConfig, ModelConfig, SystemConfig
from ris_pytorch_pipeline.geometry import steering
from ris_pytorch_pipeline.model import LocalizationNet

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
FIGURES = FOLDER.parent / "docs" / "figures"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs an example as a script in an empty folder; returns its names and what it printed."""

    def call(name: str, *arguments: str) -> tuple[dict[str, Any], str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [name, *arguments])
        with torch.random.fork_rng(devices=[]):
            names = runpy.run_path(str(FOLDER / name), run_name="__main__")
        return names, capsys.readouterr().out

    return call


def numbers(pattern: str, text: str) -> list[float]:
    """The groups of the one match of ``pattern``."""
    (match,) = re.finditer(pattern, text)
    return [float(group) for group in match.groups()]


def test_every_example_is_tested_and_listed() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    listed = re.findall(r"^\| \[`(\w+\.py)`\]", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert tested == set(listed) == {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_one_short_file_with_a_docstring(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) < 60


def test_replace_the_loop(run: Any) -> None:
    names, printed = run("replace_the_loop.py")
    (difference,) = numbers(r"losses differ by (\S+) at most", printed)
    # Both losses are float32, and the loop's solves of N x N are less accurate than the kernel's.
    assert difference < 1e-4
    slow, fast, ratio = numbers(r"step (\S+) ms -> (\S+) ms, (\S+) times faster", printed)
    assert ratio == pytest.approx(slow / fast, rel=0.05)
    assert ratio > 2
    assert len(set(names["after"].tolist())) == len(names["after"])
    torch.manual_seed(0)
    y, h, codes = (torch.randn(2, 3, n, dtype=torch.complex128) for n in (3, 5, 5))
    loop, kernel = names["sample_covariance_loop"], names["sample_covariance_kernel"]
    torch.testing.assert_close(loop(y, h, codes), kernel(y, h, codes))


def kept_energy(names: dict[str, Any], phases: Tensor, azimuth: Tensor) -> float:
    """Share of the energy of sources on the horizon at 5 m that a snapshot keeps, on average."""
    source = steering(
        names["SYSTEM"], azimuth, torch.zeros_like(azimuth), torch.full_like(azimuth, 5.0)
    )
    codes = torch.polar(torch.ones_like(phases), phases).expand(len(source), -1, -1)
    h = names["channel"].expand(len(source), -1, -1)
    estimate = riskernels.tikhonov_snapshots((source[:, None] * codes) @ h.mT, h, codes)
    return float((estimate.abs().square().sum(2) / source.abs().square().sum(1)[:, None]).mean())


def test_learn_codebook(run: Any, tmp_path: Path) -> None:
    names, printed = run("learn_codebook.py")
    first, last, steps = numbers(r"validation NMSE (\S+) -> (\S+) in (\d+) steps", printed)
    curve = names["curve"]
    assert (first, last, steps) == (round(curve[0], 3), round(curve[-1], 3), len(curve) - 1)
    assert last < 0.8 * first
    # Scenes, noise and symbols that neither the steps nor the example's validation saw.
    simulator = names["Simulator"](names["SYSTEM"], names["SimulationConfig"](), seed=7, split=0)
    torch.manual_seed(7)
    unseen = names["draw"](simulator, 256)
    random = 2 * torch.pi * torch.rand(names["phases"].shape)
    nmse, channel = names["mean_nmse"], names["channel"]
    with torch.no_grad():
        assert nmse(names["phases"], channel, *unseen) < 0.8 * nmse(random, channel, *unseen)
    # Random codes keep M / N; learned ones look into the sector that the sources are in.
    phases, inside = names["phases"].detach(), torch.linspace(-0.5, 0.5, 100)
    assert kept_energy(names, random, inside) == pytest.approx(names["M"] / names["N"], rel=0.2)
    assert kept_energy(names, phases, inside) > 1.3 * kept_energy(names, random, inside)
    outside = torch.cat([inside[:50] - 0.5, inside[50:] + 0.5])
    assert kept_energy(names, phases, outside) < kept_energy(names, random, outside)
    plot = tmp_path / "learned_codebook.png"
    if importlib.util.find_spec("matplotlib") is None:
        assert "no plot: matplotlib is not installed" in printed and not plot.exists()
    else:
        image = importlib.import_module("matplotlib.image")
        made, committed = image.imread(plot), image.imread(FIGURES / plot.name)
        assert made.shape == committed.shape
        # Fonts and last digits differ between machines.
        assert abs(made - committed).mean() < 0.02


LINE = re.compile(r"scene (\d): estimate +(.+) m, truth +(.+) m, error (\S+) m")


def pairs(printed: str) -> list[tuple[int, float]]:
    """Scene and error of every line, after checking the error against the printed positions."""
    found = []
    for scene, estimate, truth, error in LINE.findall(printed):
        points = ([float(x) for x in text.split()] for text in (estimate, truth))
        # All figures are rounded to a centimetre.
        assert float(error) == pytest.approx(math.dist(*points), abs=0.02)
        found.append((int(scene), float(error)))
    return found


def test_localize_from_checkpoint_trains_one_where_none_is_given(run: Any) -> None:
    _, printed = run("localize_from_checkpoint.py")
    found = pairs(printed)
    assert {scene for scene, _ in found} == set(range(8))
    sources, matched, median = numbers(
        r"8 scenes, (\d+) sources: (\d+) matched, .* median error (\S+) m", printed
    )
    assert sources == matched == len(found)
    assert median == pytest.approx(statistics.median(error for _, error in found), abs=0.01)
    # Positions drawn at random in this field of view are about 1.5 m apart.
    assert median < 0.5


def test_localize_from_checkpoint_reads_the_one_given(run: Any, tmp_path: Path) -> None:
    config = ExperimentConfig(
        system=SystemConfig(n_h=6, n_v=6, max_sources=1, r_max=2.0),
        model=ModelConfig(channels=4, conv_blocks=1, width=8, heads=1, layers=1),
    )
    net = LocalizationNet(config.system, config.model, config.covariance)
    names, printed = run(
        "localize_from_checkpoint.py", str(save_checkpoint(tmp_path / "saved", config, net))
    )
    assert names["config"] == config and "epoch" not in printed
    assert [scene for scene, _ in pairs(printed)] == list(range(8))
