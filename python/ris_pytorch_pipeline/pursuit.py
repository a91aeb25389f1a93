# SPDX-License-Identifier: Apache-2.0
"""Orthogonal matching pursuit on the measurements, with Gauss-Newton after every pick.

One source at a time: what the sources found so far leave of the snapshots, r_l, is projected back
to the surface and its power is scanned over a grid uniform in azimuth, elevation and 1/range::

    P(g) = sum_l |a(g)^H x_l|^2,  x_l = Phi_l^H (Phi_l Phi_l^H + alpha I)^-1 r_l,

    Phi_l = H diag(c_l).

The highest local maxima are candidates. Each is judged by what it would take off the residual, the
others' columns Q_l projected out::

    gain(g) = sum_l |d_l^H r_l|^2 / (||d_l||^2 - ||Q_l^H d_l||^2),    d_l = Phi_l a(g).

The best few are refined jointly with all earlier sources, and the lowest residual wins. The scan
weighs the directions of H alike: in the plain correlation ``|d_l^H r_l|^2`` the strongest direction
outshines the rest, and lone sources are missed. The gain, which decides, is the exact one.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

import riskernels

from .configs import ConfigError, SystemConfig
from .covariance import require_channel
from .localize import Positions
from .peaks import grid_peaks
from .refine import (
    Measurements,
    Refinement,
    Symbols,
    descend,
    evaluate,
    field_of_view,
    finite_scenes,
    refine_positions,
    scene_blocks,
)
from .search_grid import SearchGrid
from .simulate import Scenes
from .stopping_rule import detection_threshold


@dataclass(frozen=True)
class PursuitConfig:
    """The greedy search."""

    oversampling: float = 2.5
    """Grid points per beamwidth of the surface in each angle; the range grid follows it."""
    loading: float = 1.0
    """alpha of the scan, in units of tr(Phi^H Phi) / N."""
    candidates: int = 32
    """Grid maxima whose gain is computed, the highest first."""
    starts: int = 2
    """Candidates that are refined, those of the largest gain."""
    start_steps: int = 4
    """Gauss-Newton steps of each of them."""
    sweeps: int = 1
    """Rounds in which every source in turn is taken out and searched again beside the others."""
    final_steps: int = 40
    """Most steps of the last refinement of all sources."""
    false_alarm: float = 0.01
    """Chance that a scene gets one source too many where K is not known."""

    def __post_init__(self) -> None:
        for name in ("oversampling", "loading"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"PursuitConfig: {name} is {value}, expected a number above 0")
        for name in ("candidates", "starts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"PursuitConfig: {name} is {getattr(self, name)}, expected >= 1")
        for name in ("start_steps", "sweeps", "final_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"PursuitConfig: {name} is {getattr(self, name)}, expected >= 0")
        if not 0 < self.false_alarm < 1:
            raise ConfigError(
                f"PursuitConfig: false_alarm is {self.false_alarm}, expected above 0 and below 1"
            )


def scan(factor: Tensor, grid: SearchGrid, system: SystemConfig, elements: Tensor) -> Tensor:
    """``sum_j |a(g)^H x_j|^2`` on a grid, [B, n_phi, n_theta, n_r] for ``factor`` [B, N, k]."""
    count = math.prod(grid.shape)
    phi, theta, inverse_range = grid.points(torch.arange(count, device=factor.device)).unbind(-1)
    power: Tensor = riskernels.steering_power(
        factor, phi, theta, 1 / inverse_range, elements, system.wavelength, taper=system.taper
    )
    return power.reshape(-1, *grid.shape)


def _residual(measurements: Measurements, x: Tensor) -> tuple[Tensor, Tensor]:
    """r [B, G, R] beyond the sources at ``x`` [B, k, 3], and their orthonormal columns Q."""
    columns = measurements.at(x)
    basis = torch.linalg.qr(columns)[0]
    y = measurements.y[..., None]
    return (y - basis @ (basis.mH @ y))[..., 0], basis


def _gain(measurements: Measurements, residual: Tensor, basis: Tensor, points: Tensor) -> Tensor:
    """What a source at each of ``points`` [B, P, 3] takes off the residual, [B, P]."""
    columns = measurements.at(points)
    energy = torch.view_as_real(columns).square().sum((2, 4))
    inside = torch.view_as_real(basis.mH @ columns).square().sum((2, 4))
    match = torch.view_as_real(columns.mH @ residual[..., None]).square().sum((3, 4))
    # A column inside the span of the others has nothing of its own to give.
    rest = (energy - inside).maximum(1e-6 * energy).clamp_min(torch.finfo(energy.dtype).tiny)
    return (match / rest).sum(1)


@dataclass(frozen=True)
class _Block:
    """Scenes that are searched together, and what does not change from pick to pick."""

    scenes: Scenes
    measurements: Measurements
    grid: SearchGrid
    config: PursuitConfig
    symbols: Symbols
    proposals: Tensor | None = None
    """Places [B, P, 3] that are looked at in place of the grid's."""

    def select(self, index: Tensor) -> _Block:
        if len(index) == len(self.scenes):
            return self
        return dataclasses.replace(
            self,
            scenes=self.scenes.index_select(index),
            measurements=self.measurements.select(index),
            proposals=None if self.proposals is None else self.proposals[index],
        )

    def propose(self, x: Tensor) -> Tensor:
        """The most promising places [B, S, 3] of one more source beside those at x [B, k, 3]."""
        residual, basis = _residual(self.measurements, x)
        points = self.proposals
        if points is None:
            points, peak = self._peaks(residual)
        else:
            peak = torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)
        gain = _gain(self.measurements, residual, basis, points).masked_fill(~peak, -1.0)
        best = gain.topk(min(self.config.starts, gain.shape[1]), dim=1).indices
        return points.gather(1, best[..., None].expand(-1, -1, 3))

    def _peaks(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The highest maxima of the scan, [B, P, 3], and which of them are maxima."""
        measurements, config, scenes = self.measurements, self.config, self.scenes
        snapshots = riskernels.tikhonov_snapshots(
            residual.reshape(scenes.y.shape).to(torch.complex64),
            scenes.h,
            scenes.codes,
            config.loading,
            relative=True,
        )
        if self.symbols == "static":
            snapshots = snapshots.sum(1, keepdim=True)
        level = scan(snapshots.mT, self.grid, measurements.system, measurements.elements)
        return grid_peaks(level, self.grid, config.candidates)

    def extend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One more source: positions [B, k + 1, 3] of all, and what they leave, [B]."""
        proposals = self.propose(x)
        starts = proposals.shape[1]
        several = torch.cat([x[:, None].expand(-1, starts, -1, -1), proposals[:, :, None]], dim=2)
        mask = torch.ones(several.shape[:-1], dtype=torch.bool, device=x.device)
        steps = self.config.start_steps
        several, fit = descend(self.measurements, several, mask, steps=steps, tolerance=1e-6)
        cost, best = fit.cost.min(dim=1)
        return several[torch.arange(len(x), device=x.device), best], cost


def _search(block: _Block, wanted: Tensor | None, places: Tensor, mask: Tensor) -> None:
    """Fill ``places`` [B, K_max, 3] and ``mask`` [B, K_max] in place, one source after another."""
    slots, system = places.shape[1], block.measurements.system
    energy = torch.view_as_real(block.measurements.y).square().sum((1, 2, 3))
    active = torch.nonzero(finite_scenes(block.scenes)).flatten()
    cost = energy[active]
    for found in range(slots):
        if wanted is not None:
            going = wanted[active] > found
            active, cost = active[going], cost[going]
        share = 0.0
        if wanted is None:
            share = detection_threshold(system, found, block.config.false_alarm, block.symbols)
        if not len(active) or share >= 1:
            return
        x, left = block.select(active).extend(places[active, :found])
        if wanted is None:
            real = cost - left > share * cost
            active, x, left = active[real], x[real], left[real]
        places[active, : found + 1] = x
        mask[active, found] = True
        cost = left


def _reconsider(block: _Block, places: Tensor, mask: Tensor) -> None:
    """Search every source again beside all others, in place; what does not lower f is not taken.

    A source that was picked early was picked in the presence of all that were not found yet.
    """
    counts = mask.sum(1)
    for count in range(2, places.shape[1] + 1):
        chosen = torch.nonzero(counts == count).flatten()
        if not len(chosen):
            continue
        part, x = block.select(chosen), places[chosen, :count]
        everything = mask[chosen, None, :count]
        cost = evaluate(part.measurements, x[:, None], everything).cost[:, 0]
        for _ in range(count * block.config.sweeps):
            oldest, others = x[:, :1], x[:, 1:]
            fresh, left = part.extend(others)
            better = left < cost
            cost = torch.where(better, left, cost)
            x = torch.where(better[:, None, None], fresh, torch.cat([others, oldest], dim=1))
        places[chosen, :count] = x


def pursue(
    scenes: Scenes,
    num_sources: Tensor | None,
    system: SystemConfig,
    config: PursuitConfig | None = None,
    *,
    symbols: Symbols = "independent",
    proposals: Tensor | None = None,
) -> Refinement:
    """Sources of B scenes from y, h and codes alone, and what they leave of y.

    ``proposals`` [B, P, 3], azimuth, elevation and 1/range, P at least 1, are the places that
    sources are picked from in place of the maxima on a grid.

    ``num_sources`` [B] is K, 0 to ``system.max_sources``; None adds sources while the last one
    takes more off the residual than noise would give, see
    :func:`~.stopping_rule.detection_threshold`. Sources come strongest first, as refined by
    :func:`~ris_pytorch_pipeline.refine.refine_positions`; a scene that is not finite has none.
    """
    require_channel(scenes)
    config = config or PursuitConfig()
    batch, slots = len(scenes), system.max_sources
    if num_sources is not None and batch:
        low, high = int(num_sources.min()), int(num_sources.max())
        if num_sources.shape != (batch,) or low < 0 or high > slots:
            raise ValueError(
                f"num_sources: got {low} to {high} in shape {list(num_sources.shape)}, expected "
                f"0 to max_sources = {slots} in [{batch}]"
            )
    if proposals is not None and (
        proposals.ndim != 3 or not proposals.shape[1] or proposals.shape[::2] != (batch, 3)
    ):
        raise ValueError(
            f"proposals: got shape {list(proposals.shape)}, expected [{batch}, P, 3] with P >= 1"
        )
    with torch.inference_mode(False), torch.no_grad():
        device = scenes.y.device
        grid = SearchGrid.for_system(system, oversampling=config.oversampling, device=device)
        lower, *_ = field_of_view(system, device)
        places = lower.expand(batch, slots, 3).clone()
        mask = torch.zeros(batch, slots, dtype=torch.bool, device=device)
        for part in scene_blocks(scenes, config.starts * (4 * slots + 1)):
            measurements = Measurements.of(scenes[part], system, symbols)
            given = None if proposals is None else proposals[part].double()
            block = _Block(scenes[part], measurements, grid, config, symbols, given)
            wanted = None if num_sources is None else num_sources[part]
            _search(block, wanted, places[part], mask[part])
            if config.sweeps:
                _reconsider(block, places[part], mask[part])
        return _finish(scenes, places, mask, system, config, symbols)


def reconsider(
    scenes: Scenes,
    positions: Positions,
    system: SystemConfig,
    config: PursuitConfig | None = None,
    *,
    symbols: Symbols = "independent",
) -> Refinement:
    """Positions after ``config.sweeps`` rounds in which every source is searched again.

    As in :func:`pursue`, from positions of any origin, [B, K]; the residual never rises. Scenes
    that are not finite come back without sources.
    """
    require_channel(scenes)
    config = config or PursuitConfig()
    with torch.inference_mode(False), torch.no_grad():
        found = strongest_first(positions)
        grid = SearchGrid.for_system(
            system, oversampling=config.oversampling, device=scenes.y.device
        )
        places = torch.stack([found.phi, found.theta, found.r.reciprocal()], -1).double()
        mask = found.valid & finite_scenes(scenes)[:, None]
        places = torch.where(mask[..., None], places, field_of_view(system, places.device)[0])
        for part in scene_blocks(scenes, config.starts * (4 * places.shape[1] + 1)):
            measurements = Measurements.of(scenes[part], system, symbols)
            block = _Block(scenes[part], measurements, grid, config, symbols)
            _reconsider(block, places[part], mask[part])
        return _finish(scenes, places, mask, system, config, symbols)


def _finish(
    scenes: Scenes,
    places: Tensor,
    mask: Tensor,
    system: SystemConfig,
    config: PursuitConfig,
    symbols: Symbols,
) -> Refinement:
    """The last refinement of ``places`` [B, K, 3], strongest first."""
    phi, theta, inverse_range = places.unbind(-1)
    points = (phi, theta, 1 / inverse_range, mask)
    found = refine_positions(scenes, points, system, steps=config.final_steps, symbols=symbols)
    return Refinement(strongest_first(found.positions), found.residual)


def strongest_first(positions: Positions) -> Positions:
    """The same sources in order of level; what is not valid comes last."""
    key = positions.level.masked_fill(~positions.valid, -math.inf)
    order = key.argsort(dim=1, descending=True, stable=True)
    fields = (positions.phi, positions.theta, positions.r, positions.level, positions.valid)
    return Positions(*(value.gather(1, order) for value in fields))
