# SPDX-License-Identifier: Apache-2.0
"""The search of a spectrum for its highest peak: options, and the step that finds one source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .configs import ConfigError, SystemConfig
from .geometry import to_cartesian
from .peaks import grid_peaks, refine_on_grids, refine_peaks
from .search_grid import SearchGrid
from .spectrum import Covariance, Spectrum, back_projection, music, mvdr, steering_basis

SCENES = 32
"""Scenes that are searched together: it bounds the memory, not the batch."""
_CLIMBERS = 4
"""Candidates of a search that climb to their peaks."""


@dataclass(frozen=True)
class SearchConfig:
    """The peak search of a spectrum."""

    spectrum: Literal["mvdr", "music", "back-projection"] = "mvdr"
    """Which spectrum is searched."""
    loading: float = 1e-3
    """Diagonal loading of the MVDR spectrum, relative to the mean eigenvalue."""
    oversampling: float = 4.0
    """Grid points per beamwidth of the surface in each angle; the range grid follows it."""
    candidates: int = 32
    """Grid maxima of a scene that are refined, the highest first."""
    newton_steps: int = 40
    """Most Newton steps of a refinement."""
    separation: float = 0.25
    """Peaks closer than this many metres count as one source."""
    false_alarm_rate: float = 0.01
    """Share of scenes without any source in which one is found, where K is not known."""

    def __post_init__(self) -> None:
        names = ("mvdr", "music", "back-projection")
        if self.spectrum not in names:
            raise ConfigError(
                f"SearchConfig: spectrum must be one of {', '.join(names)}, got {self.spectrum!r}"
            )
        for name in ("loading", "oversampling", "separation"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(
                    f"SearchConfig: {name} must be finite and not negative, got {value}"
                )
        if self.oversampling == 0:
            raise ConfigError("SearchConfig: oversampling must be above 0, got 0")
        if self.candidates < 1:
            raise ConfigError(f"SearchConfig: candidates must be at least 1, got {self.candidates}")
        if self.newton_steps < 0:
            raise ConfigError(f"SearchConfig: newton_steps must be >= 0, got {self.newton_steps}")
        if not 0 < self.false_alarm_rate < 1:
            raise ConfigError(
                "SearchConfig: false_alarm_rate must be between 0 and 1, got "
                f"{self.false_alarm_rate}"
            )


def make_spectrum(
    covariance: Covariance, num_sources: Tensor | int, search: SearchConfig
) -> Spectrum:
    """The spectrum that ``search`` names; MUSIC takes ``num_sources`` (or [B]) eigenvectors."""
    if search.spectrum == "mvdr":
        return mvdr(covariance, search.loading)
    if search.spectrum == "music":
        return music(covariance, num_sources)
    return back_projection(covariance)


def most_signals(covariance: Covariance, system: SystemConfig) -> int:
    """The number of eigenvectors of MUSIC where that of the sources is not known."""
    if isinstance(covariance, Tensor):
        return system.max_sources
    return int(min(system.max_sources, *covariance[0].shape[1:]))


def batch_of(covariance: Covariance) -> tuple[int, int, torch.device]:
    first = covariance if isinstance(covariance, Tensor) else covariance[0]
    return first.shape[0], first.shape[1], first.device


def scenes_of(covariance: Covariance, part: slice) -> Covariance:
    # Tensors made under inference_mode cannot enter autograd's bookkeeping: hence the copies.
    if isinstance(covariance, Tensor):
        return covariance[part].clone()
    return covariance[0][part].clone(), covariance[1][part].clone()


def check_covariance(covariance: Covariance, system: SystemConfig) -> None:
    n = system.elements
    if isinstance(covariance, Tensor):
        if covariance.ndim != 3 or covariance.shape[-2:] != (n, n):
            raise ValueError(
                f"covariance: got shape {tuple(covariance.shape)}, expected [B, N, N] with N = {n}"
            )
    elif covariance[0].ndim != 3 or covariance[0].shape[1] != n:
        raise ValueError(
            f"covariance: got a factor of shape {tuple(covariance[0].shape)}, expected [B, N, r] "
            f"with N = {n}"
        )


@dataclass(frozen=True)
class Found:
    """Sources found so far, padded: points [B, J, 3] and which are there [B, J]."""

    points: Tensor
    mask: Tensor

    def basis(self, system: SystemConfig, without: int | None = None) -> Tensor:
        """Span of their steering vectors, one of them left out."""
        mask = self.mask
        if without is not None:
            mask = mask.clone()
            mask[:, without] = False
        return steering_basis(self.points, mask, system)


def places(points: Tensor) -> Tensor:
    phi, theta, inverse_range = points.unbind(-1)
    return to_cartesian(phi, theta, 1 / inverse_range)


def distances(points: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """Least distance in metres of each of [B, P, 3] to the marked ones of [B, J, 3]."""
    gap = torch.cdist(places(points), places(others))
    least: Tensor = gap.masked_fill(~mask[:, None, :], math.inf).amin(-1)
    return least


def strongest_peak(
    spectrum: Spectrum,
    level: Tensor,
    found: Found | None,
    grid: SearchGrid,
    system: SystemConfig,
    search: SearchConfig,
) -> tuple[Tensor, Tensor]:
    """The highest peak of each scene, [B, 3], and log P there [B], from log P on the grid."""
    points, valid = grid_peaks(level, grid, search.candidates)
    points, height = refine_on_grids(spectrum, points, grid, system)
    height = height.masked_fill(~valid, -math.inf)
    if found is not None:
        # Suppressed unless nothing else is left: two sources may be that close.
        near = distances(points, found.points, found.mask) < search.separation
        only = near.all(1, keepdim=True)
        height = height.masked_fill(near & ~only, -math.inf)
    # The finer grids tell the sources from the sidelobes, whose exact maxima nobody needs.
    height, kept = height.topk(min(_CLIMBERS, height.shape[1]), dim=1)
    points = points.gather(1, kept[..., None].expand(-1, -1, 3))
    points, top = refine_peaks(
        spectrum, points, grid, system, steps=search.newton_steps, tolerance=1e-6
    )
    top, best = top.masked_fill(height == -math.inf, -math.inf).max(1)
    return points.gather(1, best[:, None, None].expand(-1, 1, 3))[:, 0], top
