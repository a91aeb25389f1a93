# SPDX-License-Identifier: Apache-2.0
"""Positions refined on the measurements: nonlinear least squares with the symbols projected out.

    minimise over eta  f(eta) = sum_l min_s ||y_l - D_l(eta) s||^2,    D_l = H diag(c_l) A(eta)

over the positions eta of all K sources of a scene jointly. With ``symbols="independent"`` every
snapshot has its own s; with ``"static"`` one s serves all snapshots, which are then one stacked
measurement of L M entries. In white noise the minimiser is the maximum-likelihood estimate of the
positions for symbols of which nothing is known.

With r_l = y_l - D_l s_l the residual, P_l the projector onto the complement of D_l and D_p, s_p the
derivative of one column and its symbol, Kaufman's Jacobian of r_l is -P_l D_p s_p, so that

    (J^T J)_pq = Re sum_l conj(s_p) s_q D_p^H P_l D_q,   -(J^T r)_p = Re sum_l conj(s_p) D_p^H r_l.

Both, the symbols and f are read off one Gram matrix of [D_l, dD_l, y_l] per snapshot and its Schur
complement on D_l: nothing of M x M or N x N is formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .configs import SystemConfig
from .covariance import require_channel
from .geometry import element_positions, steering, steering_derivatives
from .localize import Positions
from .simulate import Scenes

Symbols: TypeAlias = Literal["independent", "static"]

RIDGE = 1e-14
"""Added to D^H D, relative to its largest entry, so that coinciding sources share one symbol."""
_BLOCK_BYTES = 48 << 20
_DAMPING = (1e-9, 1e-2, 1e6)
"""Least, first and largest Marquardt damping; beyond the largest a scene has converged."""


class Refinement(NamedTuple):
    """Refined positions, and what they leave of the measurements."""

    positions: Positions
    """``level`` is ``log(mean_l |s_lk|^2)``, the source's estimated power; order as given."""
    residual: Tensor
    """f(eta) = sum_l ||y_l - D_l s_l||^2, [B] float64; NaN where y is not finite."""


@dataclass(frozen=True)
class Measurements:
    """The measurements of B scenes as G independent groups of R rows each, in double precision.

    A group is what shares one symbol vector: a snapshot (G = L, R = M), or with static symbols the
    whole scene (G = 1, R = L M).
    """

    phi: Tensor
    """H diag(c_l), [B, G R, N] complex128."""
    y: Tensor
    """[B, G, R] complex128."""
    system: SystemConfig
    elements: Tensor
    """Element positions, [N, 3]."""

    @classmethod
    def of(cls, scenes: Scenes, system: SystemConfig, symbols: Symbols) -> Measurements:
        """Measurements of ``scenes``."""
        h, codes = scenes.h.to(torch.complex128), scenes.codes.to(torch.complex128)
        phi = (codes[:, :, None] * h[:, None]).flatten(1, 2)
        y = scenes.y.to(torch.complex128)
        if symbols == "static":
            y = y.flatten(1)[:, None]
        return cls(phi, y, system, element_positions(system, device=phi.device))

    def select(self, index: Tensor) -> Measurements:
        """The scenes at ``index``."""
        return Measurements(
            self.phi.index_select(0, index),
            self.y.index_select(0, index),
            self.system,
            self.elements,
        )

    def columns(self, wave: Tensor) -> Tensor:
        """H diag(c_l) a for steering vectors ``[B, P, K, N]``: ``[B, P, G, R, K]``."""
        batch, starts, count, _ = wave.shape
        product = self.phi @ wave.flatten(1, 2).mT
        return product.reshape(batch, *self.y.shape[1:], starts, count).movedim(3, 1)

    def at(self, points: Tensor) -> Tensor:
        """The columns D of sources at ``points`` [B, P, 3]: ``[B, G, R, P]``."""
        phi, theta, inverse_range = points.unbind(-1)
        wave = steering(
            self.system,
            phi,
            theta,
            inverse_range.reciprocal(),
            positions=self.elements,
            dtype=torch.complex128,
        )
        return self.columns(wave[:, None])[:, 0]


def finite_scenes(scenes: Scenes) -> Tensor:
    """Which scenes have finite y, h and codes, [B]."""
    parts = (scenes.y, scenes.h, scenes.codes)
    return torch.stack([torch.isfinite(part).flatten(1).all(1) for part in parts]).all(0)


class _Fit(NamedTuple):
    """f and its Gauss-Newton system at points x; the leading axes are scenes and starts [B, P]."""

    cost: Tensor
    """f, [B, P]"""
    slope: Tensor
    """-J^T r, [B, P, 3 K], coordinate-major: azimuths, elevations, inverse ranges."""
    normal: Tensor
    """J^T J, [B, P, 3 K, 3 K]"""
    power: Tensor
    """mean_l |s_lk|^2, [B, P, K]"""

    def where(self, condition: Tensor, other: _Fit) -> _Fit:
        """These where ``condition`` [B, P] holds, ``other`` elsewhere."""
        pairs = zip(self, other, strict=True)
        return _Fit(*(torch.where(_like(condition, a), a, b) for a, b in pairs))


def _like(condition: Tensor, value: Tensor) -> Tensor:
    return condition.reshape(*condition.shape, *(1,) * (value.ndim - condition.ndim))


def evaluate(measurements: Measurements, x: Tensor, mask: Tensor) -> _Fit:
    """Cost and Gauss-Newton system at ``x`` [B, P, K, 3] = (azimuth, elevation, 1/range).

    Columns outside ``mask`` [B, P, K] take no part.
    """
    system, count = measurements.system, x.shape[2]
    phi, theta, inverse_range = x.unbind(-1)
    place = (phi, theta, inverse_range.reciprocal())
    elements, double = measurements.elements, torch.complex128
    wave = steering(system, *place, positions=elements, dtype=double)
    d_phi, d_theta, d_r = steering_derivatives(system, *place, positions=elements, dtype=double)
    d_inverse = d_r * -inverse_range.square().reciprocal()[..., None]
    stacked = torch.cat([v * mask[..., None] for v in (wave, d_phi, d_theta, d_inverse)], dim=2)
    columns = measurements.columns(stacked)
    y = measurements.y[:, None, ..., None].expand(*columns.shape[:-1], 1)
    columns = torch.cat([columns, y], dim=-1)
    gram = columns.mH @ columns

    diagonal = gram[..., :count, :count].diagonal(dim1=-2, dim2=-1).real
    largest = diagonal.amax(-1, keepdim=True)
    # A column that does not exist gets a pivot of its own; one that is zero everywhere, any pivot.
    pivot = RIDGE * largest + largest * ~mask[:, :, None] + torch.finfo(torch.float64).tiny
    factor, _ = torch.linalg.cholesky_ex(gram[..., :count, :count] + torch.diag_embed(pivot))
    reduced = torch.linalg.solve_triangular(factor, gram[..., :count, count:], upper=False)
    symbols = torch.linalg.solve_triangular(factor.mH, reduced[..., -1:], upper=True)[..., 0]
    schur = gram[..., count:, count:] - reduced.mH @ reduced

    weight = symbols.repeat(1, 1, 1, 3)
    scaled = schur[..., :-1, :-1] * weight.conj()[..., None] * weight[..., None, :]
    return _Fit(
        schur[..., -1, -1].real.sum(-1),
        (weight.conj() * schur[..., :-1, -1]).real.sum(2),
        scaled.real.sum(2),
        torch.view_as_real(symbols).square().sum(-1).mean(2),
    )


def field_of_view(system: SystemConfig, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Least and greatest (azimuth, elevation, 1/range) and the resolution, [3] each.

    The resolution is lambda / aperture in the angles. In 1/range it is 4 lambda / rho^2, rho being
    the distance from the centre to a corner: the wavefront's phase there changes by 4 pi.
    """
    half_h, half_v = (n * system.spacing / 2 for n in (system.n_h, system.n_v))
    low = (-system.phi_max, -system.theta_max, 1 / system.r_max)
    high = (system.phi_max, system.theta_max, 1 / system.r_min)
    angles = (system.wavelength / (2 * half_h), system.wavelength / (2 * half_v))
    cell = (*angles, 4 * system.wavelength / (half_h**2 + half_v**2))
    lower, upper, width = torch.tensor((low, high, cell), dtype=torch.float64, device=device)
    return lower, upper, width


def _step(
    fit: _Fit, x: Tensor, mask: Tensor, damping: Tensor, bounds: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Damped step from ``x`` inside the field of view, and the decrease of f that it predicts."""
    lower, upper, cell = bounds
    shape = x.mT.shape
    slope = fit.slope.reshape(shape).mT
    held = ((x <= lower) & (slope < 0)) | ((x >= upper) & (slope > 0)) | ~mask[..., None]
    held = held.mT.flatten(2)
    slope = fit.slope.masked_fill(held, 0.0)
    diagonal = fit.normal.diagonal(dim1=-2, dim2=-1)
    floor = (1e-10 * diagonal.amax(-1, keepdim=True)).clamp_min(torch.finfo(x.dtype).tiny)
    free = ~(held[..., None] | held[..., None, :])
    raised = torch.where(held, 1.0, damping[..., None] * diagonal.maximum(floor) + 1e-3 * floor)
    factor, _ = torch.linalg.cholesky_ex(fit.normal * free + torch.diag_embed(raised))
    step = torch.cholesky_solve(slope[..., None], factor)[..., 0]
    step = step.reshape(shape).mT
    # Beyond half a cell the linear model says nothing.
    longest = (step / cell).abs().amax((-2, -1), keepdim=True)
    step = step * (0.5 / longest.clamp_min(0.5))
    trial = torch.clamp(x + step, lower, upper)
    return trial, (fit.slope * (trial - x).mT.flatten(2)).sum(-1)


def descend(
    measurements: Measurements,
    x: Tensor,
    mask: Tensor,
    *,
    steps: int,
    tolerance: float = 1e-9,
) -> tuple[Tensor, _Fit]:
    """At most ``steps`` damped Gauss-Newton steps from every start ``x`` [B, P, K, 3].

    A step that does not lower f is not taken, and its damping rises. A scene is done when every
    start of it expects to lower f by less than ``tolerance`` of its value; only the others are
    computed any further.
    """
    least, first, most = _DAMPING
    bounds = field_of_view(measurements.system, x.device)
    x = torch.clamp(x, *bounds[:2])
    fit = evaluate(measurements, x, mask)
    answer, answer_fit = x.clone(), _Fit(*(value.clone() for value in fit))
    energy = torch.view_as_real(measurements.y).square().sum((1, 2, 3))[:, None]
    damping = torch.full_like(fit.cost, first)
    index = torch.arange(len(x), device=x.device)
    for step in range(steps):
        trial, predicted = _step(fit, x, mask, damping, bounds)
        # Neither NaN nor a damping that has grown out of use keeps a scene going.
        going = (predicted > tolerance * fit.cost + 1e-14 * energy) & (damping < most)
        alive = going.any(1)
        living = int(alive.sum())
        if step and 2 * living <= len(alive):
            answer[index] = x
            for value, part in zip(answer_fit, fit, strict=True):
                value[index] = part
            if not living:
                break
            kept = torch.nonzero(alive).flatten()
            measurements = measurements.select(kept)
            index, x, mask, damping, energy = (v[kept] for v in (index, x, mask, damping, energy))
            trial, predicted, fit = trial[kept], predicted[kept], _Fit(*(v[kept] for v in fit))
        trial_fit = evaluate(measurements, trial, mask)
        decrease = fit.cost - trial_fit.cost
        better = decrease > 0
        x = torch.where(better[..., None, None], trial, x)
        fit = trial_fit.where(better, fit)
        lowered = torch.where(decrease > 0.5 * predicted, damping / 8, damping)
        damping = torch.where(better, lowered, damping * 6).clamp_min(least)
    answer[index] = x
    for value, part in zip(answer_fit, fit, strict=True):
        value[index] = part
    return answer, answer_fit


def scene_blocks(scenes: Scenes, columns: int) -> Iterator[slice]:
    """Slices of the batch whose measurements, and ``columns`` products with them, stay small."""
    snapshots, elements = scenes.codes.shape[1:]
    rows = snapshots * scenes.y.shape[-1]
    size = max(1, _BLOCK_BYTES // max(1, 16 * rows * (elements + 2 * columns)))
    for start in range(0, len(scenes), size):
        yield slice(start, start + size)


def refine_positions(
    scenes: Scenes,
    points: Positions | tuple[Tensor, Tensor, Tensor, Tensor],
    system: SystemConfig,
    *,
    steps: int = 30,
    symbols: Symbols = "independent",
) -> Refinement:
    """Least-squares positions near ``points``, for B scenes that may differ in K.

    Levenberg-Marquardt on f in (azimuth, elevation, 1/range), in which a wavefront bends linearly,
    for all sources of a scene jointly. f never rises. Positions stay in the field of view of
    ``system``; a start outside it is first moved to its border, so that a source beyond it ends at
    the border. Sources that coincide share a symbol and stay finite.

    Args:
        scenes: y, h and codes are used, nothing else.
        points: starts, or (phi, theta, r, mask), each [B, K]. Slots that are not valid, or not
            finite, take no part. K L may not exceed the measurements of a scene, K <= M (static
            symbols: K <= L M).
        steps: the most steps; 0 evaluates the starts.
        symbols: ``independent`` in every snapshot, or ``static`` over all of them.

    Returns:
        The positions, float64, and f there; none and NaN where y, h or codes are not finite.

    Cost: a step takes 8 L M N 4K floating-point operations a scene in double precision; blocks of
    scenes keep the memory at about 50 MB. No gradients.

    Raises:
        ValueError: shapes do not fit, K is too large, or ``symbols`` is unknown.

    >>> from .configs import SimulationConfig
    >>> from .simulate import Simulator
    >>> system = SystemConfig(max_sources=2)
    >>> quiet = SimulationConfig(snr_db_min=120.0, snr_db_max=120.0, min_separation=3.0)
    >>> scenes = Simulator(system, quiet, seed=1, split="doc").batch(3)
    >>> start = (scenes.phi + 0.01, scenes.theta - 0.01, 1.02 * scenes.r, scenes.mask)
    >>> found = refine_positions(scenes, start, system).positions
    >>> bool(((found.r - scenes.r).abs() < 1e-3)[scenes.mask].all())
    True
    """
    require_channel(scenes)
    if symbols not in ("independent", "static"):
        raise ValueError(f"symbols: got {symbols!r}, expected 'independent' or 'static'")
    if steps < 0:
        raise ValueError(f"steps: got {steps}, expected at least 0")
    if isinstance(points, Positions):
        points = (points.phi, points.theta, points.r, points.valid)
    phi, theta, r, valid = points
    batch, snapshots, antennas = scenes.y.shape
    count = phi.shape[-1]
    if not phi.shape == theta.shape == r.shape == valid.shape == (batch, count):
        shapes = [list(v.shape) for v in points]
        raise ValueError(f"points: got shapes {shapes}, expected four of [{batch}, K]")
    most = antennas * (snapshots if symbols == "static" else 1)
    if count > most:
        raise ValueError(
            f"points: got {count} sources, but {most} measurements share their symbols; expected "
            "no more sources than that"
        )
    with torch.inference_mode(False), torch.no_grad():
        x = torch.stack([phi, theta, r.to(torch.float64).reciprocal()], -1).to(torch.float64)
        valid = valid & (torch.isfinite(x) & (x[..., 2:] > 0)).all(-1)
        if count == 0:
            # The algebra wants a slot; nothing is in it.
            x, valid = x.new_zeros(batch, 1, 3), valid.new_zeros(batch, 1)
        x = torch.where(valid[..., None], x, field_of_view(system, x.device)[0])
        cost = x.new_full((batch,), math.nan)
        power = x.new_zeros(x.shape[:2])
        for part in scene_blocks(scenes, 4 * count + 1):
            measurements = Measurements.of(scenes[part], system, symbols)
            found, fit = descend(measurements, x[part, None], valid[part, None], steps=steps)
            x[part], cost[part], power[part] = found[:, 0], fit.cost[:, 0], fit.power[:, 0]
        valid = valid & torch.isfinite(cost)[:, None]
        fields = (x[..., 0], x[..., 1], x[..., 2].reciprocal(), power.log(), valid)
        return Refinement(Positions(*(value[:, :count] for value in fields)), cost)
