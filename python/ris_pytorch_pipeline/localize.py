# SPDX-License-Identifier: Apache-2.0
"""Source positions from a covariance: peaks of the MVDR spectrum, refined off the grid.

Local maxima of the spectrum on a grid are candidates. Each climbs log P(phi, theta, 1/r) by Newton
steps confined to the field of view; candidates that end at the same position are one, and the
highest K are kept. A source on the flank of a stronger peak may have no maximum of its own on the
grid, so the search is repeated with the span of those K steering vectors taken out, and the highest
K of both searches are the answer. The network's part is the covariance and, where the number of
sources is not known, K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .configs import ConfigError, SystemConfig
from .geometry import element_positions, to_cartesian
from .spectrum import (
    SearchGrid,
    grid_log_residual,
    grid_log_spectrum,
    loaded_cholesky,
    log_spectrum,
)


@dataclass(frozen=True)
class SearchConfig:
    """The peak search of the MVDR spectrum."""

    loading: float = 1e-3
    """Diagonal loading of the spectrum's own factorisation, relative to the mean eigenvalue."""
    oversampling: float = 4.0
    """Grid points per beamwidth of the surface in each angle; the range grid follows it."""
    candidates: int = 32
    """Grid maxima of a scene that are refined, the highest first."""
    newton_steps: int = 40
    """Most Newton steps of the refinement, a quarter of them before sidelobes are dropped."""
    separation: float = 0.25
    """Peaks closer than this many metres count as one source."""

    def __post_init__(self) -> None:
        for name in ("loading", "oversampling", "separation"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (name == "oversampling" and value == 0):
                raise ConfigError(f"SearchConfig: {name} must be finite and positive, got {value}")
        if self.candidates < 1:
            raise ConfigError(f"SearchConfig: candidates must be at least 1, got {self.candidates}")
        if self.newton_steps < 0:
            raise ConfigError(f"SearchConfig: newton_steps must be >= 0, got {self.newton_steps}")


@dataclass(frozen=True)
class Positions:
    """Estimated sources of a batch of scenes, highest peak first; entries beyond ``valid`` mean
    nothing."""

    phi: Tensor
    """Azimuth [B, K_max] in radians."""
    theta: Tensor
    """Elevation [B, K_max] in radians."""
    r: Tensor
    """Range [B, K_max] in metres."""
    level: Tensor
    """Natural logarithm of the spectrum at the peak, [B, K_max]."""
    valid: Tensor
    """Which entries are sources, [B, K_max]; fewer than K where the spectrum has fewer peaks."""

    @property
    def cartesian(self) -> Tensor:
        """Positions [B, K_max, 3] in metres."""
        return to_cartesian(self.phi, self.theta, self.r)


def grid_peaks(level: Tensor, grid: SearchGrid, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest local maxima of ``level`` [B, n_phi, n_theta, n_r].

    A point counts when none of its up to six neighbours along the axes is higher, the border of the
    grid included. Diagonal neighbours are left out: azimuth, elevation and range of a near-field
    peak are coupled, and a stronger peak's oblique ridge would hide a narrow peak beside it.
    Returns points [B, P, 3] and which of them are maxima [B, P], with P = min(count, grid points).
    """
    volume = level[:, None]
    highest = volume
    for axis in range(3):
        kernel = [3 if i == axis else 1 for i in range(3)]
        padding = [k // 2 for k in kernel]
        highest = highest.maximum(F.max_pool3d(volume, kernel, stride=1, padding=padding))
    highest = highest[:, 0]
    masked = level.masked_fill(level < highest, -math.inf).flatten(1)
    best, flat = masked.topk(min(count, masked.shape[1]), dim=1)
    return grid.points(flat), best > -math.inf


def _derivatives(
    factor: Tensor, points: Tensor, system: SystemConfig, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """log P [B, P] at ``points`` with its gradient [B, P, 3] and Hessian [B, P, 3, 3]."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        value = log_spectrum(factor, points, system, positions=positions)
        (gradient,) = torch.autograd.grad(value.sum(), points, create_graph=True)
        rows = [
            torch.autograd.grad(gradient[..., axis].sum(), points, retain_graph=axis < 2)[0]
            for axis in range(3)
        ]
    return value.detach(), gradient.detach(), torch.stack(rows, dim=-2)


def refine_peaks(
    factor: Tensor, points: Tensor, grid: SearchGrid, system: SystemConfig, *, steps: int = 40
) -> tuple[Tensor, Tensor]:
    """Climb log P from ``points`` [B, P, 3]; returns the points reached and log P there [B, P].

    Newton's method in units of grid cells, with the Hessian's eigenvalues replaced by their
    magnitudes so that every step ascends. A step is at most one cell long, is projected onto the
    field of view (a coordinate held by its bound leaves the system) and is taken only if log P
    rises; otherwise the trust radius shrinks to a quarter.
    """
    cell = grid.steps
    lower, upper = (bound / cell for bound in grid.bounds)
    positions = element_positions(system, device=factor.device)
    identity = torch.eye(3, dtype=torch.float64, device=factor.device)

    x = points / cell
    value, gradient, hessian = _derivatives(factor, points, system, positions)
    radius = torch.ones_like(value)
    for _ in range(steps):
        slope = gradient * cell
        held = ((x <= lower) & (slope < 0)) | ((x >= upper) & (slope > 0))
        slope = slope.masked_fill(held, 0.0)
        curvature = -hessian * cell * cell[:, None]
        curvature = torch.where(held[..., None] | held[..., None, :], identity, curvature)
        eigenvalues, axes = torch.linalg.eigh(curvature)
        magnitude = eigenvalues.abs()
        magnitude = magnitude.clamp_min(1e-12).maximum(1e-9 * magnitude.amax(-1, keepdim=True))
        step = (axes @ ((axes.mT @ slope[..., None]) / magnitude[..., None]))[..., 0]
        step = step * (radius / step.norm(dim=-1).clamp_min(1e-300)).clamp_max(1.0)[..., None]
        trial = torch.clamp(x + step, lower, upper)
        moved = (trial - x).abs().amax(-1)
        if bool((moved < 1e-9).all()):
            break
        trial_value, trial_gradient, trial_hessian = _derivatives(
            factor, trial * cell, system, positions
        )
        better = trial_value > value
        x = torch.where(better[..., None], trial, x)
        value = torch.where(better, trial_value, value)
        gradient = torch.where(better[..., None], trial_gradient, gradient)
        hessian = torch.where(better[..., None, None], trial_hessian, hessian)
        radius = torch.where(better, (2 * radius).clamp_max(1.0), radius / 4)
    return x * cell, value


def select_peaks(
    points: Tensor, level: Tensor, num_sources: Tensor, max_sources: int, separation: float
) -> Positions:
    """The highest ``num_sources`` [B] peaks that lie at least ``separation`` metres apart.

    ``points`` [B, P, 3]; ``level`` [B, P], minus infinity where there is no peak. Greedy: the
    highest peak is kept and suppresses its neighbourhood, then the highest of what remains.
    """
    phi, theta, inverse_range = points.unbind(-1)
    place = to_cartesian(phi, theta, 1 / inverse_range)
    remaining = level
    picks, levels = [], []
    for _ in range(max_sources):
        best, pick = remaining.max(dim=1)
        centre = place.gather(1, pick[:, None, None].expand(-1, 1, 3))
        near = (place - centre).norm(dim=-1) < separation
        # The pick itself goes even where the separation is zero.
        near.scatter_(1, pick[:, None], True)
        remaining = remaining.masked_fill(near, -math.inf)
        picks.append(pick)
        levels.append(best)
    index, height = torch.stack(picks, 1), torch.stack(levels, 1)
    slot = torch.arange(max_sources, device=level.device)
    return Positions(
        phi.gather(1, index),
        theta.gather(1, index),
        1 / inverse_range.gather(1, index),
        height,
        (slot < num_sources[:, None]) & (height > -math.inf),
    )


def estimate_positions(
    covariance: Tensor,
    num_sources: Tensor | int,
    system: SystemConfig,
    search: SearchConfig | None = None,
    *,
    grid: SearchGrid | None = None,
) -> Positions:
    """Positions of the sources of each covariance [B, N, N].

    ``num_sources`` is K, one for all scenes or one per scene [B], at most ``system.max_sources``.
    The grid is scanned in single precision and its peaks are refined in double precision.

    >>> from .geometry import steering
    >>> system = SystemConfig()
    >>> a = steering(system, *(torch.tensor([v]) for v in (0.3, -0.2, 3.0)))
    >>> found = estimate_positions((a.mT @ a.conj())[None], 1, system)
    >>> [round(float(v[0, 0]), 3) for v in (found.phi, found.theta, found.r)]
    [0.3, -0.2, 3.0]
    """
    if covariance.ndim != 3 or covariance.shape[-2:] != (system.elements, system.elements):
        raise ValueError(
            f"covariance: got shape {tuple(covariance.shape)}, expected [B, N, N] with "
            f"N = {system.elements}"
        )
    search = search or SearchConfig()
    count = torch.as_tensor(num_sources, device=covariance.device).expand(covariance.shape[0])
    if count.numel() and not bool(((count >= 0) & (count <= system.max_sources)).all()):
        raise ValueError(
            f"num_sources: got {count.tolist()}, expected 0 to max_sources = {system.max_sources}"
        )
    # Tensors made under inference_mode cannot enter autograd, which the refinement needs.
    with torch.inference_mode(False), torch.no_grad():
        factor = loaded_cholesky(covariance.clone(), search.loading)
        if grid is None:
            grid = SearchGrid.for_system(
                system, oversampling=search.oversampling, device=covariance.device
            )
        level = grid_log_spectrum(factor.to(torch.complex64), grid, system)

        def climb(surface: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
            points, valid = grid_peaks(surface, grid, candidates)
            screening = search.newton_steps // 4
            points, height = refine_peaks(factor, points, grid, system, steps=screening)
            # A few steps tell the sources from the sidelobes, whose exact maxima nobody needs.
            height, kept = height.masked_fill(~valid, -math.inf).topk(
                min(height.shape[1], 2 * system.max_sources), dim=1
            )
            points = points.gather(1, kept[..., None].expand(-1, -1, 3))
            points, top = refine_peaks(
                factor, points, grid, system, steps=search.newton_steps - screening
            )
            return points, top.masked_fill(height == -math.inf, -math.inf)

        def select(points: Tensor, height: Tensor) -> Positions:
            return select_peaks(points, height, count, system.max_sources, search.separation)

        points, height = climb(level, search.candidates)
        first = select(points, height)
        found = torch.stack([first.phi, first.theta, 1 / first.r], dim=-1)
        hidden = level + grid_log_residual(found, first.valid, grid, system)
        more_points, more_height = climb(hidden, max(1, search.candidates // 4))
        return select(torch.cat([points, more_points], 1), torch.cat([height, more_height], 1))
