# SPDX-License-Identifier: Apache-2.0
r"""Power of a factor along steering vectors that are made on the fly, in plain PyTorch.

A spherical wave from the point r u, u = (cos th cos ph, cos th sin ph, sin th), meets an element at
p after R = |r u - p|. With q = 1/r, s = u . p and rho = R / r,

    rho^2 = 1 - q (2 s - q |p|^2),    r - R = (r^2 - R^2) / (r + R) = (2 s - q |p|^2) / (1 + rho),

where no nearly equal numbers are subtracted however large r is, and r = inf (q = 0) is the plane
wave. With taper, which divides by rho, rho = |u - q p|: near an element the difference would lose
digits twice as fast. The steering vector and the power of the columns x_j of X along it are

    a_n = exp(j k0 (r - R_n)) / sqrt(N)    (times 1 / rho_n with taper),    k0 = 2 pi / wavelength,
    P_g = sum_j |c_gj|^2,    c_gj = a(g)^H x_j.

P_g moves with X by dP_g = 2 Re sum_j conj(c_gj) a(g)^H dx_j, so that for gbar = dL/dP, in PyTorch's
convention (dL/dRe + i dL/dIm),

    dL/dX = 2 sum_g gbar_g a(g) (a(g)^H X).

The phase is counted in turns of 2 pi, in double, and rounded to the precision of X only after whole
turns are taken off. Points are worked on in chunks: no steering vector outlives its chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_BYTES = 16 << 20


def _steering(
    points: list[Tensor], positions: Tensor, wavelength: float, taper: bool, dtype: torch.dtype
) -> Tensor:
    """a(g) [..., N] of points (phi, theta, r), each [...]; NaN where r is not positive."""
    phi, theta, r, p = (t.to(torch.float64) for t in (*points, positions))
    level = torch.cos(theta)
    u = torch.stack((level * torch.cos(phi), level * torch.sin(phi), torch.sin(theta)), dim=-1)
    q = torch.where(r > 0, r.reciprocal(), torch.nan)[..., None]
    doubled = 2 * (u @ p.mT) - q * p.square().sum(-1)
    # Rounding alone can make the square of a distance negative, at an element.
    square = (1 - q * doubled).clamp_min(0.0)
    if taper:
        # |u - q p|^2, which near an element keeps the digits that the difference loses.
        x, y, z = (u[..., i, None] - q * p[:, i] for i in range(3))
        square = x.square() + y.square() + z.square()
    rho = square.sqrt()
    turns = doubled / ((1 + rho) * wavelength)
    phase = (2 * math.pi * (turns - turns.round())).to(dtype.to_real())
    scale = torch.full_like(rho, 1 / math.sqrt(p.shape[0]))
    if taper:
        scale = scale / rho
    scale = scale.to(dtype.to_real())
    return torch.complex(torch.cos(phase) * scale, torch.sin(phase) * scale)


def _chunks(factor: Tensor, phi: Tensor) -> Iterator[slice]:
    """Slices of the points, so that their steering vectors take about _CHUNK_BYTES."""
    scenes = phi.shape[0] if phi.dim() == 2 else 1
    vectors = 16 * scenes * factor.shape[1]
    products = factor.element_size() * factor.shape[0] * factor.shape[2]
    size = max(1, _CHUNK_BYTES // max(1, vectors, products))
    for start in range(0, phi.shape[-1], size):
        yield slice(start, start + size)


def steering_power(
    factor: Tensor,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    positions: Tensor,
    wavelength: float,
    *,
    taper: bool = False,
) -> Tensor:
    """P [B, G]."""
    power = factor.new_empty((factor.shape[0], phi.shape[-1]), dtype=factor.dtype.to_real())
    for part in _chunks(factor, phi):
        points = [t[..., part] for t in (phi, theta, r)]
        a = _steering(points, positions, wavelength, taper, factor.dtype)
        product = torch.view_as_real(a.conj_physical() @ factor)
        power[:, part] = product.square().sum((-2, -1))
    return power


def steering_power_backward(
    grad: Tensor,
    factor: Tensor,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    positions: Tensor,
    wavelength: float,
    *,
    taper: bool = False,
) -> Tensor:
    """dL/dX [B, N, k] from grad = dL/dP [B, G]."""
    gradient = torch.zeros_like(factor, memory_format=torch.contiguous_format)
    for part in _chunks(factor, phi):
        points = [t[..., part] for t in (phi, theta, r)]
        a = _steering(points, positions, wavelength, taper, factor.dtype)
        product = (2 * grad[:, part, None]) * (a.conj_physical() @ factor)
        gradient += a.mT @ product
    return gradient
