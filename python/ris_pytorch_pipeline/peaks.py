# SPDX-License-Identifier: Apache-2.0
"""Peaks of a spectrum off its grid: analytic derivatives, finer local grids, Newton steps.

With f = r - R_n, m = 2 s - q |p|^2 and rho^2 = 1 - q m (see :mod:`riskernels`), the derivatives of
f = m / (1 + rho) in x = (phi, theta, q = 1/r) follow from those of m and of rho^2 by the quotient
rule, and a = exp(j k0 f) / sqrt(N) (over rho with taper) has a_i = a g_i and
a_ij = a (g_ij + g_i g_j) with g = log a. A quadratic form a^H M a then has the gradient
2 Re a_i^H M a and the Hessian 2 Re (a_ij^H M a + a_i^H M a_j).

Newton's method minimises 1/P rather than -log P: near a null of MUSIC, or the narrow peak of MVDR,
1/P is a parabola where log P has a pole.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .configs import SystemConfig
from .geometry import element_positions
from .search_grid import SearchGrid
from .spectrum import Spectrum

_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


class _Jet(NamedTuple):
    """Steering vectors with the derivatives of their logarithms in (phi, theta, 1/r)."""

    wave: Tensor
    """a [..., N] complex128."""
    first: list[Tensor]
    """g_i, three of [..., N]."""
    second: list[Tensor]
    """g_ij for the pairs (i, j) of ``_PAIRS``."""


def _steering_jet(points: Tensor, system: SystemConfig, positions: Tensor) -> _Jet:
    phi, theta, q = (t[..., None] for t in points.to(torch.float64).unbind(-1))
    p = positions.to(torch.float64)
    square = p.square().sum(-1)
    level, height = torch.cos(theta), torch.sin(theta)
    forward = torch.cos(phi) * p[:, 0] + torch.sin(phi) * p[:, 1]
    sideways = torch.cos(phi) * p[:, 1] - torch.sin(phi) * p[:, 0]
    s = level * forward + height * p[:, 2]
    m = 2 * s - q * square
    zero = torch.zeros_like(m)
    m_theta = 2 * (level * p[:, 2] - height * forward)
    m_i = [2 * level * sideways, m_theta, -square.expand_as(m)]
    m_ij = [-2 * level * forward, -2 * height * sideways, zero, -2 * s, zero, zero]
    # h = rho^2 = 1 - q m
    rho = (1 - q * m).clamp_min(1e-30).sqrt()
    h_i = [-q * m_i[0], -q * m_i[1], -m - q * m_i[2]]
    h_ij = [-q * m_ij[0], -q * m_ij[1], -m_i[0], -q * m_ij[3], -m_i[1], -2 * m_i[2]]
    rho_i = [h / (2 * rho) for h in h_i]
    rho_ij = [(h / 2 - rho_i[i] * rho_i[j]) / rho for h, (i, j) in zip(h_ij, _PAIRS, strict=True)]
    under = (1 + rho).reciprocal()
    f = m * under
    f_i = [(m_i[i] - f * rho_i[i]) * under for i in range(3)]
    f_ij = [
        (m_ij[n] - f_i[i] * rho_i[j] - f_i[j] * rho_i[i] - f * rho_ij[n]) * under
        for n, (i, j) in enumerate(_PAIRS)
    ]
    k0 = 2 * math.pi / system.wavelength
    size = torch.full_like(f, 1 / math.sqrt(p.shape[0]))
    if not system.taper:
        shrink_i, shrink_ij = [zero] * 3, [zero] * 6
    else:
        size = size / rho
        shrink_i = [-x / rho for x in rho_i]
        shrink_ij = [
            -rho_ij[n] / rho + shrink_i[i] * shrink_i[j] for n, (i, j) in enumerate(_PAIRS)
        ]
    return _Jet(
        torch.polar(size, k0 * f),
        [torch.complex(x, k0 * y) for x, y in zip(shrink_i, f_i, strict=True)],
        [torch.complex(x, k0 * y) for x, y in zip(shrink_ij, f_ij, strict=True)],
    )


Derivatives = tuple[Tensor, Tensor, Tensor]
"""A value [B, P], its gradient [B, P, 3] and Hessian [B, P, 3, 3]."""


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Re left^H right over the last dimension."""
    return (torch.view_as_real(left) * torch.view_as_real(right)).sum((-2, -1))


def _form(jet: _Jet, factor: Tensor | None, *, complement: bool, orthonormal: bool) -> Derivatives:
    """a^H M a with M = F F^H, or I - F F^H for the ``complement`` (I where there is no F)."""
    a = jet.wave
    moved = [a * g for g in jet.first]
    image, own, others = a, _inner(a, a), None
    if factor is not None:
        conjugate, transposed = factor.conj(), factor.mT
        own, others = a @ conjugate, [x @ conjugate for x in moved]
        inside = own @ transposed
        image = a - inside if complement else inside
        if not complement:
            own = _inner(own, own)
        elif orthonormal:
            own = _inner(image, image)
        else:
            own = _inner(a, image)
    gradient = torch.stack([2 * _inner(x, image) for x in moved], -1)
    weighted = a.conj() * image
    entries = []
    for n, (i, j) in enumerate(_PAIRS):
        curvature = jet.second[n] + jet.first[i] * jet.first[j]
        entry = _inner(curvature, weighted)
        if complement or others is None:
            entry = entry + _inner(moved[i], moved[j])
        if others is not None:
            share = _inner(others[i], others[j])
            entry = entry - share if complement else entry + share
        entries.append(2 * entry)
    rows = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
    hessian = torch.stack([torch.stack([entries[n] for n in row], -1) for row in rows], -2)
    return own, gradient, hessian


def _quotient(above: Derivatives, below: Derivatives) -> Derivatives:
    n, n_i, n_ij = above
    d, d_i, d_ij = below
    value = n / d
    gradient = (n_i - value[..., None] * d_i) / d[..., None]
    cross = gradient[..., :, None] * d_i[..., None, :]
    hessian = (n_ij - cross - cross.mT - value[..., None, None] * d_ij) / d[..., None, None]
    return value, gradient, hessian


def spectrum_derivatives(
    spectrum: Spectrum, points: Tensor, system: SystemConfig, positions: Tensor | None = None
) -> Derivatives:
    """What falls where P rises, at points [B, P, 3], with gradient and Hessian, in complex128.

    It is scale / P for MVDR and MUSIC, and -(P - shift) / scale for back-projection.
    """
    if positions is None:
        positions = element_positions(system, device=points.device)
    jet = _steering_jet(points, system, positions)
    value = _form(
        jet,
        spectrum.factor,
        complement=spectrum.kind == "complement",
        orthonormal=spectrum.orthonormal,
    )
    if spectrum.taken is not None or system.taper:
        left = _form(jet, spectrum.taken, complement=True, orthonormal=True)
        left = (left[0].clamp_min(1e-30), *left[1:])
        value = _quotient(value, left)
    if spectrum.kind == "power":
        value = (-value[0], -value[1], -value[2])
    return value


def log_level(spectrum: Spectrum, value: Tensor) -> Tensor:
    """log P from the value of :func:`spectrum_derivatives`."""
    scale = spectrum.scale[:, None]
    if spectrum.kind == "power":
        shift = 0.0 if spectrum.shift is None else spectrum.shift[:, None]
        return (shift - value * scale).clamp_min(1e-300).log()
    return (scale / value.clamp_min(1e-300)).log()


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


def refine_on_grids(
    spectrum: Spectrum,
    points: Tensor,
    grid: SearchGrid,
    system: SystemConfig,
    *,
    levels: int = 3,
) -> tuple[Tensor, Tensor]:
    """The best of 3 x 3 x 3 points around each of [B, P, 3], on grids halved ``levels`` times.

    Returns the points and log P there [B, P].
    """
    lower, upper = grid.bounds
    offsets = torch.tensor([-1.0, 0.0, 1.0], dtype=points.dtype, device=points.device)
    around = torch.cartesian_prod(offsets, offsets, offsets)
    step = grid.steps
    for _ in range(levels):
        step = step / 2
        trial = torch.clamp(points[:, :, None] + around * step, lower, upper)
        level = spectrum.log_level(trial.flatten(1, 2), system).unflatten(1, trial.shape[1:3])
        height, best = level.max(-1)
        points = trial.gather(2, best[..., None, None].expand(-1, -1, 1, 3))[:, :, 0]
    return points, height


def refine_peaks(
    spectrum: Spectrum,
    points: Tensor,
    grid: SearchGrid,
    system: SystemConfig,
    *,
    steps: int = 40,
    tolerance: float = 1e-9,
) -> tuple[Tensor, Tensor]:
    """Climb P from ``points`` [B, P, 3]; returns the points reached and log P there [B, P].

    Newton's method in units of grid cells, with the Hessian's eigenvalues replaced by their
    magnitudes so that every step ascends. A step is at most one cell long, is projected onto the
    field of view (a coordinate held by its bound leaves the system) and is taken only if P rises;
    otherwise the trust radius shrinks to a quarter. Ends when no step is above ``tolerance`` cells.
    """
    cell = grid.steps
    lower, upper = (bound / cell for bound in grid.bounds)
    positions = element_positions(system, device=points.device)
    identity = torch.eye(3, dtype=torch.float64, device=points.device)

    x = points / cell
    value, gradient, hessian = spectrum_derivatives(spectrum, points, system, positions)
    radius = torch.ones_like(value)
    for _ in range(steps):
        slope = gradient * cell
        held = ((x <= lower) & (slope > 0)) | ((x >= upper) & (slope < 0))
        slope = slope.masked_fill(held, 0.0)
        curvature = hessian * cell * cell[:, None]
        curvature = torch.where(held[..., None] | held[..., None, :], identity, curvature)
        eigenvalues, axes = torch.linalg.eigh(curvature)
        magnitude = eigenvalues.abs()
        magnitude = magnitude.clamp_min(1e-300).maximum(1e-9 * magnitude.amax(-1, keepdim=True))
        step = -(axes @ ((axes.mT @ slope[..., None]) / magnitude[..., None]))[..., 0]
        step = step * (radius / step.norm(dim=-1).clamp_min(1e-300)).clamp_max(1.0)[..., None]
        trial = torch.clamp(x + step, lower, upper)
        moved = (trial - x).abs().amax(-1)
        if bool((moved < tolerance).all()):
            break
        after = spectrum_derivatives(spectrum, trial * cell, system, positions)
        better = after[0] < value
        x = torch.where(better[..., None], trial, x)
        value = torch.where(better, after[0], value)
        gradient = torch.where(better[..., None], after[1], gradient)
        hessian = torch.where(better[..., None, None], after[2], hessian)
        radius = torch.where(better, (2 * radius).clamp_max(1.0), radius / 4)
    return x * cell, log_level(spectrum, value)
