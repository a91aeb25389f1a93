# SPDX-License-Identifier: Apache-2.0
"""The commands of ``ris`` that make something: simulate, import-shards, train, hpo, localize.

Each is a dataclass of its options with a ``run`` that returns the status. PyTorch and Optuna are
imported inside ``run``, so that the parser does without them. Commands that look at something are
in :mod:`.inspection`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .configs import ConfigError, ExperimentConfig, SimulationConfig, SystemConfig, load_config
from .hpo import HpoOptions

ConfigFile = Annotated[str | None, tyro.conf.arg(name="config")]
AllFields = Annotated[ExperimentConfig, tyro.conf.arg(name="")]


class CommandError(RuntimeError):
    """Work that was started and failed; one line, exit status 1."""


def _count_progress(noun: str) -> Callable[[int, int], None]:
    """Progress of ``done`` of ``total``: one line rewritten on a terminal, ten lines otherwise."""
    terminal = sys.stdout.isatty()
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // total
        if terminal:
            print(f"\r{done}/{total} {noun}", end="\n" if done == total else "", flush=True)
        elif tenth > shown:
            shown = tenth
            print(f"{done}/{total} {noun}", flush=True)

    return show


@dataclass(frozen=True)
class Simulate:
    """Draw random scenes and write them as shards."""

    out: str
    """Folder to write; it appears complete or not at all."""
    config_file: ConfigFile = None
    """JSON file of an experiment configuration, for the system and simulation options."""
    samples: int = 4096
    """Number of scenes."""
    shard_size: int = 1024
    """Scenes per shard."""
    seed: int = 0
    """Seed of the random streams."""
    split: str = "train"
    """Name of the random stream; folders of different splits share no scene."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace a folder of shards that is there already."""
    system: SystemConfig = field(default_factory=SystemConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    def run(self) -> int:
        """Write the shards."""
        from .data import resolve_device
        from .shards import write_shards

        write_shards(
            self.out,
            self.system,
            self.simulation,
            samples=self.samples,
            shard_size=self.shard_size,
            seed=self.seed,
            split=self.split,
            device=resolve_device(self.device, "--device"),
            overwrite=self.overwrite,
            progress=_count_progress("scenes"),
        )
        _say_shards(self.out)
        return 0


@dataclass(frozen=True)
class ImportShards:
    """Import .npz shards (y, H, H_full, codes, ptr, K, snr) into a folder of shards."""

    files: tyro.conf.Positional[tuple[str, ...]]
    """The .npz files, imported in this order."""
    out: str
    """Folder to write; it appears complete or not at all."""
    overwrite: bool = False
    """Replace a folder of shards that is there already."""
    system: SystemConfig = field(default_factory=SystemConfig)

    def run(self) -> int:
        """Import the files."""
        from .shards import import_npz

        import_npz(
            self.files,
            self.out,
            system=self.system,
            overwrite=self.overwrite,
            progress=_count_progress("files"),
        )
        _say_shards(self.out)
        return 0


def verify_shards(folder: str | None, wanted: bool) -> None:
    """Refuse shards that differ from their checksums, before any work starts."""
    if folder is not None and wanted:
        from .shards import ShardDataset

        ShardDataset(folder).verify()


def _say_shards(folder: str) -> None:
    from .shards import ShardDataset

    size = sum(path.stat().st_size for path in Path(folder).iterdir())
    count = len(ShardDataset(folder))
    print(f"{count} scenes in {folder}, {size / count / 1000:.1f} kB a scene")


@dataclass(frozen=True)
class Train:
    """Train a localization network."""

    experiment: AllFields = field(default_factory=ExperimentConfig)
    config_file: ConfigFile = None
    """JSON file of an experiment configuration; options given here override it."""
    from_hpo: str | None = None
    """best.json of a search, in place of --config."""
    recipe: str | None = None
    """Name of a configuration that comes with the package (default), in place of --config."""
    out: str = "results_train"
    """Folder of the run."""
    resume: Literal["no", "auto"] = "no"
    """auto: continue the run in the folder where it was last saved, or begin if there is none."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    verify: bool = True
    """Compare the shards with their checksums before training."""

    def run(self) -> int:
        """Train; status 1 if the checklist failed or the training could not go on."""
        from .checkpoint import has_checkpoint
        from .distributed import LostProcessError, is_leader
        from .hpo import checklist_passed
        from .interrupts import Interrupted
        from .train import TrainingError, fit

        verify_shards(self.experiment.data.shards, self.verify)
        held = has_checkpoint(Path(self.out) / "last")
        resume = self.resume == "auto"
        if resume and self.overwrite:
            raise ConfigError("train: give --resume auto or --overwrite, not both")
        if resume and not held and is_leader():
            print(f"{self.out} holds no saved run: training starts at the beginning")
        if held and not (resume or self.overwrite):
            raise ConfigError(
                f"{self.out} holds a run: --resume auto, --overwrite, or another --out"
            )
        try:
            result = fit(self.experiment, self.out, resume=resume)
        except (TrainingError, LostProcessError) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            if not has_checkpoint(Path(self.out) / "last"):
                raise
            raise CommandError(
                f"{error}; the last checkpoint is whole: once there is room to write, the same "
                "command with --resume auto goes on"
            ) from error
        except Interrupted as stop:
            if not is_leader():
                return stop.status
            stop.args = (f"{stop}; the same command with --resume auto goes on",)
            raise
        if not is_leader():
            return 0
        print(
            f"training loss {result.first_train_loss:.4f} -> {result.last_train_loss:.4f}, "
            f"validation loss {result.best_val_loss:.4f}, {result.skipped_steps} skipped steps"
        )
        print(f"checkpoint {result.checkpoint}")
        if not math.isfinite(result.best_val_loss):
            raise CommandError("no validation loss was finite: check the data and learning rates")
        if not checklist_passed(Path(self.out)):
            raise CommandError("the checklist failed: see the lines with ok=False above")
        return 0


@dataclass(frozen=True)
class Hpo:
    """Search for hyperparameters with Optuna; the same command run again continues."""

    options: Annotated[HpoOptions, tyro.conf.arg(name="")] = field(default_factory=HpoOptions)
    config_file: ConfigFile = None
    """JSON file of an experiment configuration, for everything that is not searched."""
    verify: bool = True
    """Compare the shards with their checksums before the search."""

    def run(self) -> int:
        """Run or continue the search."""
        from .distributed import require_one_process
        from .hpo import run

        require_one_process("hpo")
        verify_shards(self.options.shards, self.verify)
        return run(self.options)


@dataclass(frozen=True)
class Localize:
    """Print the source positions that a checkpoint finds in the scenes of a shard folder."""

    checkpoint: str
    """Folder of the checkpoint (results_train/best, for instance)."""
    shards: str
    """Folder of shards."""
    index: tuple[int, ...] = ()
    """Scenes to localize; the first --limit ones when left out."""
    limit: int = 8
    """How many scenes to localize where --index is not given."""
    json: str | None = None
    """Also write the result to this JSON file ('-': print JSON in place of the table)."""
    num_sources: int | None = None
    """Number of sources of every scene; the network's own estimate when left out."""
    known_sources: bool = False
    """Take each scene's number of sources from the shards."""
    false_alarm_rate: float | None = None
    """Take as sources the peaks above the threshold that noise alone exceeds at this rate."""
    refine: bool = False
    """Move the peaks of the spectrum to the best fit of the measurements nearby."""
    spectrum: Literal["mvdr", "music", "back-projection"] = "mvdr"
    """Which spectrum of the covariance is searched."""
    config_file: ConfigFile = None
    """Experiment configuration with the covariance section that the checkpoint must have."""
    allow_mismatch: bool = False
    """Use the covariance section of --config even if the checkpoint was trained with another."""
    batch_size: int = 32
    """Scenes localized at once."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    loading: float = 1e-3
    """Diagonal loading of the spectrum, relative to the mean eigenvalue."""
    oversampling: float = 4.0
    """Grid points per beamwidth in each angle; the range grid follows it."""
    candidates: int = 32
    """Grid maxima of a scene that are refined."""
    separation: float = 0.25
    """Peaks closer than this many metres count as one source."""
    verify: bool = True
    """Compare the shards with their checksums first."""

    def run(self) -> int:
        """Localize and print."""
        if self.limit < 1 or self.batch_size < 1:
            raise ConfigError("localize: limit and batch_size must be at least 1")
        if self.known_sources and self.num_sources is not None:
            raise ConfigError("localize: give --num_sources or --known_sources, not both")
        known = self.known_sources or self.num_sources is not None
        if known and self.false_alarm_rate is not None:
            raise ConfigError("localize: --false_alarm_rate is for an unknown number of sources")
        if self.allow_mismatch and self.config_file is None:
            raise ConfigError("localize: --allow_mismatch needs the --config to use")
        if self.json not in (None, "-") and not Path(self.json or "").absolute().parent.is_dir():
            raise ConfigError(f"localize: --json {self.json}: its folder does not exist")
        from .checkpoint import load_checkpoint
        from .data import resolve_device
        from .localize import SearchConfig
        from .metrics import summarise_matches
        from .position_report import HEADER, LocalizedScene, as_json, localize_shards, table_rows
        from .shards import ShardDataset

        expect = None
        if self.config_file is not None:
            expect = load_config(ExperimentConfig, self.config_file).covariance
        device = resolve_device(self.device, "--device")
        checkpoint = load_checkpoint(
            self.checkpoint, device=device, expect=expect, allow_mismatch=self.allow_mismatch
        )
        dataset = ShardDataset(self.shards)
        if self.verify:
            dataset.verify()
        table = self.json != "-"
        search = SearchConfig(
            spectrum=self.spectrum,
            loading=self.loading,
            oversampling=self.oversampling,
            candidates=self.candidates,
            separation=self.separation,
        )
        if self.false_alarm_rate is not None:
            search = replace(search, false_alarm_rate=self.false_alarm_rate)
        found: list[LocalizedScene] = []
        for scene in localize_shards(
            checkpoint,
            dataset,
            self.index or range(min(self.limit, len(dataset))),
            search=search,
            num_sources=self.num_sources,
            known_sources=self.known_sources,
            detect=self.false_alarm_rate is not None,
            refine=self.refine,
            batch_size=self.batch_size,
            device=device,
        ):
            if table and not found:
                print(HEADER)
            found.append(scene)
            if table:
                print("\n".join(table_rows(scene)), flush=True)
        if table:
            print(summarise_matches(scene.match for scene in found))
        if self.json == "-":
            print(as_json(found), end="")
        elif self.json is not None:
            Path(self.json).write_text(as_json(found))
        return 0
