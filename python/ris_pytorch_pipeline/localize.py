# SPDX-License-Identifier: Apache-2.0
"""Source positions from a covariance: the coarse-to-fine search of a spectrum, off the grid.

One source at a time is searched. Local maxima of the spectrum on a coarse grid, uniform in azimuth,
elevation and 1/r, are candidates; each moves to the best point of finer local grids and then climbs
by Newton steps confined to the field of view, and the highest that keeps its distance from the
sources found so far is the next source. Its steering vector is taken out of the spectrum before the
next search, so that a source on the flank of a stronger one, with no maximum of its own on the
grid, is found too. Then every source is refined with the others taken out, and at last on the
spectrum itself, where that does not lead it into a neighbour's peak.

With the number of sources unknown, sources are taken as long as their peak exceeds a threshold: the
level that the highest peak of a scene without any source exceeds at the false-alarm rate; see
:func:`.detection.detection_threshold`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .configs import SystemConfig
from .detection import detection_threshold
from .geometry import to_cartesian
from .peak_search import (
    SCENES,
    Found,
    batch_of,
    check_covariance,
    distances,
    make_spectrum,
    most_signals,
    places,
    scenes_of,
    strongest_peak,
)
from .peak_search import SearchConfig as SearchConfig
from .peaks import log_level, refine_peaks, spectrum_derivatives
from .search_grid import SearchGrid
from .spectrum import Covariance, Spectrum, grid_log_spectrum


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


def _log_level_at(spectrum: Spectrum, points: Tensor, system: SystemConfig) -> Tensor:
    return log_level(spectrum, spectrum_derivatives(spectrum, points, system)[0])


def _search(
    spectrum: Spectrum,
    count: Tensor | None,
    threshold: float,
    grid: SearchGrid,
    system: SystemConfig,
    search: SearchConfig,
) -> Positions:
    """Positions of a few scenes; ``count`` [B], or None to stop at the threshold."""
    batch, most, device = len(spectrum), system.max_sources, spectrum.factor.device
    level = grid_log_spectrum(spectrum, grid, system)
    points = torch.zeros(batch, most, 3, dtype=torch.float64, device=device)
    points[..., 2] = 1.0
    mask = torch.zeros(batch, most, dtype=torch.bool, device=device)
    rounds = most if count is None else int(count.max()) if batch else 0
    for j in range(rounds):
        found = Found(points, mask) if j else None
        deflated, surface = spectrum, level
        if found is not None:
            deflated = spectrum.deflated(found.basis(system))
            surface = grid_log_spectrum(deflated, grid, system)
        best, height = strongest_peak(deflated, surface, found, grid, system, search)
        there = height > -math.inf
        there &= (j < count) if count is not None else (height >= threshold)
        if j and count is None:
            there &= mask[:, j - 1]
        points[:, j] = torch.where(there[:, None], best, points[:, j])
        mask[:, j] = there
        if not bool(there.any()):
            break
    # Each with the others taken out: the first was found while they still disturbed it.
    steps = search.newton_steps // 2
    for j in range(rounds if rounds > 1 else 0):
        deflated = spectrum.deflated(Found(points, mask).basis(system, without=j))
        moved = refine_peaks(deflated, points[:, j : j + 1], grid, system, steps=steps)[0]
        points[:, j] = torch.where(mask[:, j, None], moved[:, 0], points[:, j])
    if rounds:
        own, _ = refine_peaks(spectrum, points, grid, system, steps=steps)
        stays = (places(own) - places(points)).norm(dim=-1) < search.separation / 2
        for j in range(most):
            others = mask.clone()
            others[:, j] = False
            apart = distances(own[:, j : j + 1], points, others)[:, 0] >= search.separation
            stays[:, j] &= apart
        points = torch.where(stays[..., None], own, points)
    height = _log_level_at(spectrum, points, system).masked_fill(~mask, -math.inf)
    order = height.argsort(dim=1, descending=True, stable=True)
    phi, theta, inverse_range = points.gather(1, order[..., None].expand(-1, -1, 3)).unbind(-1)
    return Positions(phi, theta, 1 / inverse_range, height.gather(1, order), mask.gather(1, order))


def _joined(parts: list[Positions]) -> Positions:
    return Positions(
        *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Positions))
    )


Refinement = Callable[[Positions], Positions]
"""A last step from positions to positions, on the measurements for instance."""


def estimate_positions(
    covariance: Covariance,
    num_sources: Tensor | int | None,
    system: SystemConfig,
    search: SearchConfig | None = None,
    *,
    grid: SearchGrid | None = None,
    threshold: float | None = None,
    refine: Refinement | None = None,
) -> Positions:
    """Positions of the sources of each covariance.

    Args:
        covariance: R [B, N, N], Hermitian positive semidefinite, or its factors (X, rho), [B, N, r]
            and [B] with R = X X^H + rho I; in that form nothing N x N is made.
        num_sources: K, one for all scenes or one per scene [B], at most ``system.max_sources``; or
            None, and every peak above the threshold is a source.
        threshold: log level of detection where K is not known; when left out,
            :func:`.detection.detection_threshold` of ``system`` and ``search``.
        refine: what is applied to the positions at last, variable projection on the measurements
            for instance.

    K = 0 finds nothing, and an empty batch gives empty positions. A source outside the field of
    view is not searched for; where its power leaks in, it is found at the border. MUSIC without K
    takes ``system.max_sources`` eigenvectors, or as many as a factor has columns.

    The grid is scanned by :func:`riskernels.steering_power`; refinement is in complex128. Scenes
    are searched a few at a time: the memory beside the result does not grow with the batch.

    >>> from .geometry import steering
    >>> system = SystemConfig()
    >>> a = steering(system, *(torch.tensor([v]) for v in (0.3, -0.2, 3.0)))
    >>> found = estimate_positions((a.mT @ a.conj())[None], 1, system)
    >>> [round(float(v[0, 0]), 3) for v in (found.phi, found.theta, found.r)]
    [0.3, -0.2, 3.0]
    """
    check_covariance(covariance, system)
    search = search or SearchConfig()
    batch, _, device = batch_of(covariance)
    count = None
    if num_sources is not None:
        if threshold is not None:
            raise ValueError("threshold: is for an unknown number of sources: num_sources=None")
        count = torch.as_tensor(num_sources, device=device).expand(batch)
        if batch and not bool(((count >= 0) & (count <= system.max_sources)).all()):
            raise ValueError(
                f"num_sources: got {count.tolist()}, expected 0 to max_sources = "
                f"{system.max_sources}"
            )
    elif threshold is None:
        threshold = detection_threshold(system, search)
    if grid is None:
        grid = SearchGrid.for_system(system, oversampling=search.oversampling, device=device)
    parts = []
    with torch.inference_mode(False), torch.no_grad():
        for start in range(0, max(batch, 1), SCENES):
            scenes = slice(start, start + SCENES)
            part = scenes_of(covariance, scenes)
            own = None if count is None else count[scenes].clone()
            signals = most_signals(part, system) if own is None else own
            spectrum = make_spectrum(part, signals, search)
            parts.append(_search(spectrum, own, threshold or 0.0, grid, system, search))
    found = _joined(parts)
    return found if refine is None else refine(found)
