# SPDX-License-Identifier: Apache-2.0
"""Commands of ``ris`` that look at something: checklist, profile, plot, info.

As in :mod:`.commands`, each is a dataclass of its options with a ``run`` that returns the status,
and PyTorch is imported inside ``run``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .commands import AllFields, CommandError, ConfigFile, verify_shards
from .configs import ConfigError, ExperimentConfig, load_config
from .durable import write_atomically


@dataclass(frozen=True)
class Checklist:
    """Check that a network, its covariance path and its data hold together."""

    experiment: AllFields = field(default_factory=ExperimentConfig)
    config_file: ConfigFile = None
    """JSON file of an experiment configuration; options given here override it."""
    checkpoint: str | None = None
    """Folder of the network to check, with its own configuration; a new network when left out."""
    verify: bool = True
    """Compare the shards with their checksums first."""

    def run(self) -> int:
        """Print the checklist; status 1 if a line failed."""
        from .checklist import main as checklist

        verify_shards(self.experiment.data.shards, self.verify)
        return checklist(self.experiment, self.checkpoint)


@dataclass(frozen=True)
class Profile:
    """Measure where the time of a training step goes: network, covariances and loss, data."""

    config_file: ConfigFile = None
    """JSON file of an experiment configuration; --elements replaces its surface, and scenes are
    simulated, whatever its data section says."""
    elements: tuple[int, ...] = (144, 400, 1024)
    """Elements of the square surfaces to measure, N = n_h * n_h."""
    paths: tuple[Literal["reference", "dense", "factored"], ...] = (
        "reference",
        "dense",
        "factored",
    )
    """Ways to compute the same loss: plain PyTorch, N x N matrices, or factors."""
    steps: int = 10
    """Steps that are measured; the medians count."""
    warmup: int = 3
    """Steps before them."""
    batch_size: int | None = None
    """Scenes per step; the configuration's when left out."""
    threads: int | None = None
    """Threads on the CPU; PyTorch's own choice when left out."""
    device: str | None = None
    """auto (CUDA where there is one), cpu, cuda or cuda:N; the configuration's when left out."""
    out: str = "results_profile"
    """Folder for the JSON file and the figure."""
    figure: bool = True
    """Also draw the figure (needs Matplotlib)."""

    def run(self) -> int:
        """Measure, print and write."""
        from rich.console import Console

        from .data import resolve_device
        from .machine import slug
        from .plots import new_figure
        from .profile import COVARIANCE_PHASES, DisagreementError, ProfileOptions, profile
        from .profile_report import by_size, machine_line, profile_figure, size_table, summary

        config = ExperimentConfig()
        if self.config_file is not None:
            config = load_config(ExperimentConfig, self.config_file)
        train = config.train
        if self.batch_size is not None:
            train = replace(train, batch_size=self.batch_size)
        if self.device is not None:
            train = replace(train, device=self.device)
        config = replace(config, train=train)
        options = ProfileOptions(self.elements, self.paths, self.steps, self.warmup, self.threads)
        if self.figure:
            new_figure(1)  # Refuses a missing Matplotlib before the measurement.
        resolve_device(config.train.device, "--device")
        folder = Path(self.out)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out: {folder} is a file, expected a folder")
        folder.mkdir(parents=True, exist_ok=True)
        console = Console()

        def show(report: dict[str, Any], size: list[dict[str, Any]]) -> None:
            # What is measured is on disk, whatever becomes of the larger sizes.
            out = folder / f"profile_{slug(report)}.json"
            write_atomically(out, json.dumps(report, indent=1) + "\n")
            console.print(size_table(size, COVARIANCE_PHASES))

        try:
            report = profile(config, options, on_size=show)
        except DisagreementError as error:
            raise CommandError(str(error)) from error
        print(machine_line(report))
        for size in by_size(report["cases"]).values():
            print(summary(size))
        out = folder / f"profile_{slug(report)}.json"
        print(f"report {out}")
        if self.figure:
            profile_figure(report).savefig(out.with_suffix(".png"))
            print(f"figure {out.with_suffix('.png')}")
        return 0


@dataclass(frozen=True)
class Plot:
    """Draw a training run, a search or a step profile as an image."""

    run_folder: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Folder of a training run: losses, learning rate and loss terms over its steps."""
    study: str | None = None
    """Results folder of a search: objective of its trials and the best so far."""
    profile: str | None = None
    """JSON file of ``ris profile``: where the time of a training step goes."""
    out: str | None = None
    """Image to write (.png, .svg or .pdf); run.png or study.png in the folder, or the image beside
    the JSON file, when left out."""

    def run(self) -> int:
        """Draw and say where."""
        if sum(given is not None for given in (self.run_folder, self.study, self.profile)) != 1:
            raise ConfigError("plot: give one of --run, --study and --profile")
        from .plots import run_figure, study_figure
        from .profile_report import profile_figure, read_report

        if self.profile is not None:
            figure = profile_figure(read_report(self.profile))
            out = Path(self.profile).with_suffix(".png")
        elif self.run_folder is not None:
            figure, out = run_figure(self.run_folder), Path(self.run_folder, "run.png")
        else:
            figure, out = study_figure(str(self.study)), Path(str(self.study), "study.png")
        out = Path(self.out or out)
        figure.savefig(out)
        print(f"figure {out}")
        return 0


@dataclass(frozen=True)
class Info:
    """Say which backends riskernels has loaded, and why or why not the others."""

    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print what ``python -m riskernels.info`` prints."""
        from riskernels import info

        return int(info.main(["--json"] if self.json else []))
