# SPDX-License-Identifier: Apache-2.0
"""Localize the scenes of a shard folder with a checkpoint, and report positions and errors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .checkpoint import Checkpoint, config_differences
from .configs import ConfigError, SystemConfig
from .detection import detection_threshold
from .estimators import check_scenes
from .geometry import to_cartesian
from .localize import Positions, Refinement, SearchConfig, estimate_positions
from .metrics import PositionMatch, match_positions, summarise_matches
from .model import infer
from .refine import refine_positions
from .search_grid import SearchGrid
from .shards import ShardDataset
from .simulate import Scenes, Simulator


@dataclass(frozen=True)
class LocalizedScene:
    """Estimates and truth of one scene; rows are azimuth and elevation in radians, range in m."""

    index: int
    snr_db: float
    estimate: npt.NDArray[np.float64]
    """[K_est, 3], highest peak first."""
    level_db: npt.NDArray[np.float64]
    """Spectrum at each estimate in dB over a white covariance of the same trace, [K_est]."""
    truth: npt.NDArray[np.float64]
    """[K, 3]"""
    match: PositionMatch


def predicted_count(existence: Tensor, least: int) -> Tensor:
    """Number of sources [B] from existence logits [B, K_max]: slots above one half, at least
    ``least`` (every scene has that many)."""
    return (existence > 0).sum(-1).clamp(min=least)


def _cartesian(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return to_cartesian(*torch.as_tensor(rows).reshape(-1, 3).unbind(-1)).numpy()


def _scene_rows(phi: Tensor, theta: Tensor, r: Tensor) -> npt.NDArray[np.float64]:
    return torch.stack([phi, theta, r], dim=-1).double().cpu().numpy()


def localize_scenes(
    checkpoint: Checkpoint,
    scenes: Scenes,
    search: SearchConfig,
    num_sources: Tensor | int | None,
    grid: SearchGrid,
    *,
    threshold: float | None = None,
    refine: Refinement | None = None,
) -> Positions:
    """Positions from R_blend of the checkpoint's network, by the one inference function.

    R_blend enters as the factors (X, rho), with the checkpoint's own covariance section.
    ``num_sources`` is K; when None it is the number of slots that the network says exist, or, with
    a ``threshold`` (see :func:`noise_threshold`), that of the peaks above it. ``refine`` as for
    :func:`.localize.estimate_positions`.
    """
    check_scenes(scenes, checkpoint.config.system)
    with torch.inference_mode():
        inference = infer(checkpoint.net, scenes, checkpoint.config.covariance)
        factors = inference.factors
        if num_sources is None and threshold is None:
            least = checkpoint.config.simulation.min_sources
            num_sources = predicted_count(inference.prediction.existence, least)
    return estimate_positions(
        factors,
        num_sources,
        checkpoint.config.system,
        search,
        grid=grid,
        threshold=threshold,
        refine=refine,
    )


def noise_threshold(
    checkpoint: Checkpoint, search: SearchConfig, *, trials: int | None = None, seed: int = 0
) -> float:
    """The detection threshold of R_blend of this checkpoint at ``search.false_alarm_rate``.

    The null hypothesis: the measurements are noise alone, y_l white circular Gaussian of the power
    that they had, through the channels and codes of the checkpoint's simulation; the network and
    the blend see them as they see any other. See :func:`.detection.detection_threshold`.
    """
    config = checkpoint.config
    device = next(checkpoint.net.parameters()).device
    simulator = Simulator(config.system, config.simulation, seed=seed, split="noise")

    def null(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        scenes = simulator.batch(count)
        noise = torch.randn(scenes.y.shape, dtype=scenes.y.dtype, generator=generator)
        size = scenes.y.abs().square().mean((1, 2), keepdim=True).sqrt()
        scenes = replace(scenes, y=size * noise).to(device)
        with torch.inference_mode():
            x, rho = infer(checkpoint.net, scenes, config.covariance).factors
        return x, rho

    return detection_threshold(config.system, search, null=null, trials=trials, seed=seed)


def measurement_refinement(checkpoint: Checkpoint, scenes: Scenes) -> Refinement:
    """The last step of ``refine``: least squares on y of ``scenes``, from any positions in them.

    Symbols are those of the checkpoint's simulation. Levels stay those of the spectrum, at the peak
    that a position came from. See :func:`.refine.refine_positions`.
    """
    config = checkpoint.config

    def refine(found: Positions) -> Positions:
        moved = refine_positions(scenes, found, config.system, symbols=config.simulation.symbols)
        return replace(moved.positions, level=found.level)

    return refine


def localize_shards(
    checkpoint: Checkpoint,
    dataset: ShardDataset,
    indices: Sequence[int],
    *,
    search: SearchConfig,
    num_sources: int | None = None,
    known_sources: bool = False,
    detect: bool = False,
    refine: bool = False,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> Iterator[LocalizedScene]:
    """Localize scenes of ``dataset`` in the order of ``indices``.

    K is ``num_sources``, or with ``known_sources`` the scene's true number, or with ``detect`` that
    of the peaks above :func:`noise_threshold`, or else the network's. ``refine`` moves the peaks
    of the spectrum to the nearest least squares of the measurements, all of a scene jointly
    (:func:`measurement_refinement`).
    """
    system = checkpoint.config.system
    check_system(checkpoint, dataset.system, dataset.folder)
    outside = [i for i in indices if not 0 <= i < len(dataset)]
    if outside:
        raise ConfigError(
            f"{dataset.folder}: no scene {outside[0]}; it holds scenes 0 to {len(dataset) - 1}"
        )
    grid = SearchGrid.for_system(system, oversampling=search.oversampling, device=device)
    threshold = noise_threshold(checkpoint, search) if detect else None
    for start in range(0, len(indices), batch_size):
        chosen = list(indices[start : start + batch_size])
        scenes = dataset.batch(torch.tensor(chosen)).to(device)
        count = scenes.num_sources if known_sources else num_sources
        last = measurement_refinement(checkpoint, scenes) if refine else None
        found = localize_scenes(
            checkpoint, scenes, search, count, grid, threshold=threshold, refine=last
        )
        estimates = _scene_rows(found.phi, found.theta, found.r)
        truths = _scene_rows(scenes.phi, scenes.theta, scenes.r)
        valid, mask = found.valid.cpu().numpy(), scenes.mask.cpu().numpy()
        level = (found.level * (10 / math.log(10))).cpu().numpy()
        for row, index in enumerate(chosen):
            estimate, truth = estimates[row][valid[row]], truths[row][mask[row]]
            match = match_positions(_cartesian(estimate), _cartesian(truth))
            snr = float(scenes.snr_db[row])
            yield LocalizedScene(index, snr, estimate, level[row][valid[row]], truth, match)


def check_system(checkpoint: Checkpoint, system: SystemConfig, name: str | Path) -> None:
    """Refuse shards of another system than the network was made for."""
    differences = config_differences(system, checkpoint.config.system)
    if differences:
        raise ConfigError(
            f"{name}: made for another system than the checkpoint (shards -> checkpoint): "
            + ", ".join(differences)
        )


HEADER = (
    f"{'':>21} | {'estimate (degrees, metres)':<36} | {'truth (degrees, metres)':<27} |\n"
    f"{'scene':>6} {'SNR dB':>7} {'source':>6} | {'azimuth':>8} {'elevation':>9} {'range m':>8} "
    f"{'level dB':>8} | {'azimuth':>8} {'elevation':>9} {'range m':>8} | {'error m':>8}"
)
"""Heads of the columns of :func:`table_rows`: estimate, truth (angles in degrees) and error."""


def table_rows(scene: LocalizedScene) -> list[str]:
    """One line per estimate, beside its true position, and one per missed source."""
    rows = []
    pair = dict(zip(scene.match.estimate.tolist(), range(len(scene.match.error)), strict=True))
    lead = f"{scene.index:>6} {scene.snr_db:>7.1f}"
    for number, (phi, theta, r) in enumerate(scene.estimate):
        estimate = (
            f"{math.degrees(phi):>8.2f} {math.degrees(theta):>9.2f} {r:>8.3f} "
            f"{scene.level_db[number]:>8.1f}"
        )
        truth, error = f"{'-':>8} {'-':>9} {'-':>8}", f"{'extra':>8}"
        if number in pair:
            at, elevation, distance = scene.truth[scene.match.truth[pair[number]]]
            truth = f"{math.degrees(at):>8.2f} {math.degrees(elevation):>9.2f} {distance:>8.3f}"
            error = f"{scene.match.error[pair[number]]:>8.3f}"
        rows.append(f"{lead} {number + 1:>6} | {estimate} | {truth} | {error}")
    for number in sorted(set(range(len(scene.truth))) - set(scene.match.truth.tolist())):
        at, elevation, distance = scene.truth[number]
        nothing = f"{'-':>8} {'-':>9} {'-':>8} {'-':>8}"
        truth = f"{math.degrees(at):>8.2f} {math.degrees(elevation):>9.2f} {distance:>8.3f}"
        rows.append(f"{lead} {'-':>6} | {nothing} | {truth} | {'missed':>8}")
    return rows


def _json_positions(rows: npt.NDArray[np.float64]) -> list[dict[str, float]]:
    return [
        {
            "azimuth_deg": math.degrees(phi),
            "elevation_deg": math.degrees(theta),
            "range_m": float(r),
            "xyz_m": place.tolist(),
        }
        for (phi, theta, r), place in zip(rows, _cartesian(rows), strict=True)
    ]


def as_json(scenes: Sequence[LocalizedScene]) -> str:
    """All scenes and their summary as JSON; pairs are (estimate, truth) indices from 0."""
    entries: list[dict[str, Any]] = []
    for scene in scenes:
        estimates: list[dict[str, float]] = _json_positions(scene.estimate)
        for entry, level in zip(estimates, scene.level_db, strict=True):
            entry["level_db"] = float(level)
        pairs = zip(scene.match.estimate, scene.match.truth, scene.match.error, strict=True)
        entries.append(
            {
                "index": scene.index,
                "snr_db": scene.snr_db,
                "estimates": estimates,
                "truth": _json_positions(scene.truth),
                "matches": [
                    {"estimate": int(i), "truth": int(k), "error_m": float(e)} for i, k, e in pairs
                ],
                "missed": scene.match.missed,
                "extra": scene.match.extra,
            }
        )
    summary = summarise_matches(scene.match for scene in scenes)
    fields = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in vars(summary).items()
    }
    return json.dumps({"scenes": entries, "summary": fields}, indent=2) + "\n"
