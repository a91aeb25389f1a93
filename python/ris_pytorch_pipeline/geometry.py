# SPDX-License-Identifier: Apache-2.0
"""Coordinates, element positions and the one steering vector of the pipeline.

Metres and radians throughout. The surface lies in the y-z plane, centred at the origin, and faces
along +x. A source at azimuth phi, elevation theta and range r sits at r u(phi, theta) with

    u = (cos(theta) cos(phi), cos(theta) sin(phi), sin(theta)).

Everything that needs a steering vector (simulation, losses, spectra, bounds) calls
:func:`steering`, so that no two parts of the pipeline can disagree about a sign or an ordering.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .configs import SystemConfig

_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def element_positions(
    system: SystemConfig,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Positions p_n of the N elements of the centred planar array, ``[N, 3]`` in metres.

    Row-major 'xy' order: element n = v * n_h + h has

        p_n = (0, (h - (n_h - 1) / 2) * spacing, (v - (n_v - 1) / 2) * spacing),

    so the horizontal index h (y axis) runs fastest and a vector over elements reshapes to an image
    ``[n_v, n_h]`` whose rows go up along z.

    >>> element_positions(SystemConfig(n_h=3, n_v=2, spacing=0.2))[1].tolist()
    [0.0, 0.0, -0.1]
    """
    index = torch.arange(system.elements, dtype=torch.float64, device=device)
    v = torch.div(index, system.n_h, rounding_mode="floor")
    h = index - v * system.n_h
    y = (h - (system.n_h - 1) / 2) * system.spacing
    z = (v - (system.n_v - 1) / 2) * system.spacing
    return torch.stack((torch.zeros_like(y), y, z), dim=-1).to(dtype)


def direction(phi: Tensor, theta: Tensor) -> Tensor:
    """Unit vector u = (cos th cos ph, cos th sin ph, sin th), ``[...] -> [..., 3]``.

    >>> direction(torch.tensor(0.0), torch.tensor(0.0)).tolist()
    [1.0, 0.0, 0.0]
    """
    cos_theta = torch.cos(theta)
    return torch.stack(
        (cos_theta * torch.cos(phi), cos_theta * torch.sin(phi), torch.sin(theta)), dim=-1
    )


def to_cartesian(phi: Tensor, theta: Tensor, r: Tensor) -> Tensor:
    """Position r u(phi, theta), ``[...] -> [..., 3]`` in metres."""
    return r[..., None] * direction(phi, theta)


def to_spherical(xyz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuth, elevation and range of positions ``[..., 3]``; inverse of :func:`to_cartesian`.

    phi lies in [-pi, pi] and theta in [-pi/2, pi/2].
    """
    x, y, z = xyz.unbind(-1)
    return (
        torch.atan2(y, x),
        torch.atan2(z, torch.hypot(x, y)),
        torch.linalg.vector_norm(xyz, dim=-1),
    )


def wrap_angle(x: Tensor) -> Tensor:
    """Angle equal to ``x`` modulo 2 pi in [-pi, pi]; values already there are returned unchanged.

    The derivative is 1 everywhere.

    >>> wrap_angle(torch.tensor([0.25, 2 * math.pi + 0.25], dtype=torch.float64))
    tensor([0.2500, 0.2500], dtype=torch.float64)
    """
    return x - 2 * math.pi * torch.round(x / (2 * math.pi))


class _Path(NamedTuple):
    """Float64 path geometry from a source to every element."""

    positions: Tensor
    """[N, 3]"""
    squared: Tensor
    """|p_n|^2, [N]"""
    projection: Tensor
    """u . p_n, [..., N]"""
    curvature: Tensor
    """q = 1 / r, [..., 1]"""
    ratio: Tensor
    """rho_n = R_n / r, [..., N]"""
    advance: Tensor
    """r - R_n, [..., N]"""


def _path(
    system: SystemConfig, phi: Tensor, theta: Tensor, r: Tensor, positions: Tensor | None
) -> _Path:
    # With q = 1/r and s = u.p:  rho = R/r = sqrt(1 - 2 q s + q^2 |p|^2)  and
    #   r - R = (r^2 - R^2) / (r + R) = (2 s - q |p|^2) / (1 + rho),
    # which has no difference of nearly equal numbers and is exact for r = inf (a plane wave).
    for name, value in (("phi", phi), ("theta", theta), ("r", r)):
        if not value.is_floating_point():
            raise ValueError(
                f"steering: {name} has dtype {value.dtype}, expected a real float dtype"
            )
    if not phi.shape == theta.shape == r.shape:
        raise ValueError(
            f"steering: phi {tuple(phi.shape)}, theta {tuple(theta.shape)} and r {tuple(r.shape)} "
            "must have the same shape"
        )
    if positions is None:
        positions = element_positions(system, device=phi.device)
    positions = positions.to(torch.float64)
    squared = positions.square().sum(-1)
    projection = direction(phi.to(torch.float64), theta.to(torch.float64)) @ positions.mT
    curvature = r.to(torch.float64).reciprocal()[..., None]
    ratio = torch.sqrt(1 - curvature * (2 * projection - curvature * squared))
    advance = (2 * projection - curvature * squared) / (1 + ratio)
    return _Path(positions, squared, projection, curvature, ratio, advance)


def _wave(system: SystemConfig, path: _Path, dtype: torch.dtype) -> Tensor:
    if dtype not in _REAL:
        raise ValueError(
            f"steering: dtype is {dtype}, expected torch.complex64 or torch.complex128"
        )
    # The phase reaches tens of radians: it is wrapped in float64 before it may lose digits.
    phase = wrap_angle(path.advance * (2 * math.pi / system.wavelength)).to(_REAL[dtype])
    scale: Tensor | float = 1 / math.sqrt(path.positions.shape[0])
    if system.taper:
        scale = scale / path.ratio.to(_REAL[dtype])
    return torch.complex(torch.cos(phase) * scale, torch.sin(phase) * scale)


def steering(
    system: SystemConfig,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    *,
    positions: Tensor | None = None,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Steering vectors of exact spherical waves, ``[...] -> [..., N]``::

        a_n = exp(j k0 (r - R_n)) / sqrt(N),  R_n^2 = r^2 - 2 r u.p_n + |p_n|^2,  k0 = 2 pi / lambda

    With ``system.taper`` each entry is scaled by r / R_n (spherical spreading). Without it the norm
    is 1. The phase reference is the array centre; r = inf gives the plane wave exp(j k0 u.p_n).

    Args:
        phi, theta, r: real tensors of one shape [...], radians and metres, r > 0.
        positions: ``[N, 3]`` element positions in place of :func:`element_positions`, for instance
            a copy kept on the device.
        dtype: complex64 or complex128. Phases are computed in float64 for both, so that a complex64
            result is the rounded exact value (to about 2e-7 relative).

    Differentiable in phi, theta, r and positions. :func:`steering_derivatives` gives the analytic
    derivatives.

    Raises:
        ValueError: shapes differ, a real floating dtype is missing, or ``dtype`` is not complex.

    >>> a = steering(SystemConfig(), *torch.tensor([[0.1], [0.0], [2.0]]))
    >>> a.shape, round(float(a.abs().square().sum()), 5)
    (torch.Size([1, 144]), 1.0)
    """
    return _wave(system, _path(system, phi, theta, r, positions), dtype)


def steering_derivatives(
    system: SystemConfig,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    *,
    positions: Tensor | None = None,
    dtype: torch.dtype = torch.complex64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Analytic derivatives (da/dphi, da/dtheta, da/dr) of :func:`steering`, each ``[..., N]``.

    With s = u.p, rho = R/r, q = 1/r and D = r - R, and a prime for d/d phi or d/d theta::

        D' = s' / rho,          dD/dr = q^2 (|p|^2 - D s) / (rho (1 + rho)),
        (ln r/R)' = q s'/rho^2, d(ln r/R)/dr = q^2 (q |p|^2 - s) / rho^2,
        a' = a (j k0 D' + (ln r/R)'),

    the logarithmic terms only with ``system.taper``. Units: 1/rad, 1/rad, 1/m.
    """
    path = _path(system, phi, theta, r, positions)
    wave = _wave(system, path, torch.complex128)
    ph, th = phi.to(torch.float64), theta.to(torch.float64)
    zero = torch.zeros_like(ph)
    along_phi = torch.stack((-th.cos() * ph.sin(), th.cos() * ph.cos(), zero), dim=-1)
    along_theta = torch.stack((-th.sin() * ph.cos(), -th.sin() * ph.sin(), th.cos()), dim=-1)
    s_phi = along_phi @ path.positions.mT
    s_theta = along_theta @ path.positions.mT
    s, q, rho = path.projection, path.curvature, path.ratio
    advances = (
        s_phi / rho,
        s_theta / rho,
        q.square() * (path.squared - path.advance * s) / (rho * (1 + rho)),
    )
    spreads = (
        q * s_phi / rho.square(),
        q * s_theta / rho.square(),
        q.square() * (q * path.squared - s) / rho.square(),
    )
    k0 = 2 * math.pi / system.wavelength
    taper = float(system.taper)
    d_phi, d_theta, d_r = (
        (wave * torch.complex(taper * spread, k0 * advance)).to(dtype)
        for advance, spread in zip(advances, spreads, strict=True)
    )
    return d_phi, d_theta, d_r
