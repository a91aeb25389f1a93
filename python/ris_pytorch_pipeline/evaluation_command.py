# SPDX-License-Identifier: Apache-2.0
"""The command ``ris evaluate``, in the manner of :mod:`.commands`."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .commands import CommandError
from .configs import ConfigError

if TYPE_CHECKING:
    import torch

    from .checkpoint import Checkpoint
    from .estimators import Estimator, Setting
    from .suite import Suite

AROUND = ("device", "covariance", "log_every", "checkpoint_every", "process_timeout")
"""Options of a training that say where and how it runs, not what it learns."""


def _own_estimator(name: str, setting: Setting) -> Estimator:
    """The estimator that ``MODULE:CLASS`` makes of ``setting``."""
    module_name, _, class_name = name.partition(":")
    # The console script's first place of modules is its own folder, not the one it is run in.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        made: Estimator = getattr(importlib.import_module(module_name), class_name)(setting)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"--estimators {name}: {error}") from error
    if not callable(made) or not isinstance(getattr(made, "name", None), str):
        raise ConfigError(f"--estimators {name}: has no name, or cannot be called")
    return made


def checkpoint_facts(loaded: Checkpoint) -> dict[str, Any]:
    """What a network is: digests of weights and configuration, recipe and validation loss.

    Nothing in it is a path: the folder of a training's shards is left out.
    """
    from .configs import to_dict
    from .recipes import RECIPES

    weights = hashlib.sha256()
    for name, value in loaded.net.state_dict().items():
        weights.update(name.encode())
        weights.update(value.cpu().contiguous().numpy().tobytes())
    config = to_dict(loaded.config)
    shards = config["data"].pop("shards")

    def learned(whole: dict[str, Any]) -> dict[str, Any]:
        """The configuration without what a training's weights do not depend on."""
        train = {name: value for name, value in whole["train"].items() if name not in AROUND}
        data = {name: value for name, value in whole["data"].items() if name != "shards"}
        return {**whole, "train": train, "data": data}

    same = [name for name, made in RECIPES.items() if learned(to_dict(made)) == learned(config)]
    return {
        "recipe": same[0] if same and shards is None else None,
        "val_loss": loaded.state.get("val_loss"),
        "weights_sha256": weights.hexdigest(),
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "config": config,
    }


@dataclass(frozen=True)
class Evaluate:
    """Run estimators on the benchmark suite: errors, GOSPA and bounds, as JSON, CSV and figures."""

    out: str = "results_evaluate"
    """Folder of the results. One that is there already is continued."""
    estimators: tuple[str, ...] = ()
    """Names of the estimators, or MODULE:CLASS for one of your own (from the present folder, say);
    all of them when left out."""
    checkpoint: str | None = None
    """Folder of a trained network, for the learned estimators."""
    scenes: int = 200
    """Scenes of a cell. A larger number extends what is there."""
    counts: tuple[int, ...] = (1, 2, 3, 5)
    """Numbers of sources, some of the suite's."""
    snrs_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
    """Signal-to-noise ratios, some of the suite's."""
    sources: Literal["known", "unknown", "both"] = "both"
    """Whether the estimators are told the number of sources."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    threads: int | None = None
    """Threads on the CPU; PyTorch's own choice when left out."""
    batch_size: int = 40
    """Scenes of one call of an estimator."""
    overwrite: bool = False
    """Delete the records of another evaluation that the folder holds."""
    figures: bool = True
    """Also draw the figures (needs Matplotlib)."""

    def run(self) -> int:
        """Evaluate, print the tables and say where everything is."""
        if self.batch_size < 1 or (self.threads is not None and self.threads < 1):
            raise ConfigError("evaluate: batch_size and threads must be at least 1")
        import torch
        from rich.console import Console

        from .data import resolve_device
        from .evaluate import REPORT, TABLE, evaluate
        from .evaluation_progress import EvaluationProgress
        from .evaluation_report import markdown
        from .evaluation_tasks import EvaluationError
        from .suite import Suite

        suite = Suite(tuple(self.counts), tuple(self.snrs_db), self.scenes)
        device = resolve_device(self.device, "--device")
        folder = Path(self.out)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out: {folder} is a file, expected a folder")
        if self.figures:
            from .plots import new_figure

            new_figure(1)  # Refuses a missing Matplotlib before the work.
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        checkpoint, note = self._checkpoint(device)
        estimators = self._estimators(suite, checkpoint)
        try:
            with EvaluationProgress(Console(highlight=False, soft_wrap=True)) as progress:
                report = evaluate(
                    estimators,
                    suite,
                    folder,
                    sources=self.sources,
                    device=device,
                    batch_size=self.batch_size,
                    checkpoint=checkpoint,
                    note=note,
                    overwrite=self.overwrite,
                    on_progress=progress,
                )
        except EvaluationError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{folder} holds what is done; the same command goes on from there"
            ) from None
        print(markdown(report))
        for name in (REPORT, TABLE):
            print(f"wrote {folder / name}")
        if self.figures:
            self._draw(report, suite, estimators, folder, device)
        return 0

    def _checkpoint(self, device: torch.device) -> tuple[Checkpoint | None, dict[str, Any]]:
        if self.checkpoint is None:
            return None, {"checkpoint": None}
        from .checkpoint import load_checkpoint

        loaded = load_checkpoint(self.checkpoint, device=device)
        return loaded, {"checkpoint": checkpoint_facts(loaded)}

    def _estimators(self, suite: Suite, checkpoint: Checkpoint | None) -> list[Estimator]:
        from .estimators import Setting, estimator_names, make_estimator

        setting = Setting(suite.system, checkpoint=checkpoint)
        names = self.estimators or tuple(
            name
            for name in estimator_names()
            if checkpoint is not None or not name.startswith("learned")
        )
        return [
            _own_estimator(name, setting) if ":" in name else make_estimator(name, setting)
            for name in names
        ]

    def _draw(
        self,
        report: dict[str, Any],
        suite: Suite,
        estimators: Sequence[Estimator],
        folder: Path,
        device: torch.device,
    ) -> None:
        from .evaluation_plots import nearest_scene, report_figures, slices_figure
        from .evaluation_runner import file_of, read_records
        from .evaluation_tasks import EstimatorTask

        figures = report_figures(report)
        for cell in {c.num_sources: c for c in suite.cells if c.num_sources <= 3}.values():
            known = self.sources != "unknown"
            scene = nearest_scene(suite, cell)
            estimates = {
                e.name: read_records(file_of(folder, EstimatorTask(e, known, device), cell))[scene][
                    "xyz"
                ]
                for e in estimators
            }
            figures[f"slices_K{cell.num_sources}"] = slices_figure(suite, estimates, cell, scene)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")
            print(f"figure {folder / name}.png")
