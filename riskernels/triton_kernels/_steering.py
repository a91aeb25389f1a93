# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (upper case: a constant of the compilation)
r"""Tiles of steering vectors inside Triton kernels.

Lengths are counted in wavelengths and phases in turns. With q = wavelength / r, e = p / wavelength
and rho = R / r,

    d = 2 u . e - q |e|^2,    rho^2 = 1 - q d,    phase = (r - R) / wavelength = d / (1 + rho).

Points (2 u, q) and elements (e, |e|^2) are computed in float64 and rounded to the precision of the
tile. The scale 1 / sqrt(N) is left to the sums.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

RADIAN = tl.constexpr(1 / (2 * math.pi))
QUARTERS = tl.constexpr(2 / math.pi)
# pi / 2 in three parts: up to 2^20 times the first two are exact in float64.
FIRST, SECOND, THIRD = (
    tl.constexpr(part)
    for part in (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)
)

# sin(2 pi x) / x and (cos(2 pi x) - 1) / x^2 in powers of x^2, relative error below 4e-18.
SIN_0 = tl.constexpr(6.283185307179586)
SIN_1 = tl.constexpr(-41.341702240399634)
SIN_2 = tl.constexpr(81.60524927594444)
SIN_3 = tl.constexpr(-76.70585970329512)
SIN_4 = tl.constexpr(42.058684899330416)
SIN_5 = tl.constexpr(-15.093797335824226)
SIN_6 = tl.constexpr(3.7807222492997856)
COS_0 = tl.constexpr(-19.739208802178716)
COS_1 = tl.constexpr(64.93939402266801)
COS_2 = tl.constexpr(-85.45681720653997)
COS_3 = tl.constexpr(60.24464133159533)
COS_4 = tl.constexpr(-26.426251138717046)
COS_5 = tl.constexpr(7.903101550264729)
COS_6 = tl.constexpr(-1.6970183321988146)


@triton.jit
def sincos_quarters(quarters, rest):
    """Sine and cosine of 2 pi (quarters / 4 + rest), |rest| <= 1/8: minimax polynomials."""
    z = rest * rest
    if rest.dtype == tl.float32:
        s = ((-75.3934319 * z + 81.592351) * z - 41.3416614) * z + 6.28318529
        c = (((59.245865 * z - 85.4437391) * z + 64.9393265) * z - 19.7392087) * z + 1.0
    else:
        s = SIN_6 * z + SIN_5
        s = ((s * z + SIN_4) * z + SIN_3) * z + SIN_2
        s = (s * z + SIN_1) * z + SIN_0
        c = COS_6 * z + COS_5
        c = ((c * z + COS_4) * z + COS_3) * z + COS_2
        c = ((c * z + COS_1) * z + COS_0) * z + 1.0
    s = s * rest
    quadrant = quarters - 4.0 * tl.floor(0.25 * quarters)
    odd = (quadrant == 1.0) | (quadrant == 3.0)
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    sine = tl.where(quadrant >= 2.0, -sine, sine)
    cosine = tl.where((quadrant == 1.0) | (quadrant == 2.0), -cosine, cosine)
    return sine, cosine


@triton.jit
def sincos_angle(x):
    """Of float64 radians. ``tl.sin`` would take a stack frame for its reduction of large angles."""
    quarters = tl.floor(x * QUARTERS + 0.5)
    rest = ((x - quarters * FIRST) - quarters * SECOND) - quarters * THIRD
    return sincos_quarters(quarters, rest * RADIAN)


@triton.jit
def load_points(phi, theta, r, stride, points, count, wavelength, dtype: tl.constexpr):
    """(2 u, q) of points [P], int64; NaN where r is not positive."""
    inside = points < count
    azimuth = tl.load(phi + points * stride[0], mask=inside, other=0.0).to(tl.float64)
    elevation = tl.load(theta + points * stride[1], mask=inside, other=0.0).to(tl.float64)
    distance = tl.load(r + points * stride[2], mask=inside, other=1.0).to(tl.float64)
    azimuth_sine, azimuth_cosine = sincos_angle(azimuth)
    sine, cosine = sincos_angle(elevation)
    q = tl.where(distance > 0.0, wavelength / distance, float("nan"))
    ux, uy = 2.0 * cosine * azimuth_cosine, 2.0 * cosine * azimuth_sine
    return ux.to(dtype), uy.to(dtype), (2.0 * sine).to(dtype), q.to(dtype)


@triton.jit
def load_elements(positions, stride, elements, count, wavelength, dtype: tl.constexpr):
    """(e, |e|^2) of elements [E]; at the origin beyond the last."""
    inside = elements < count
    at = positions + elements.to(tl.int64) * stride[0]
    x = tl.load(at, mask=inside, other=0.0).to(tl.float64) / wavelength
    y = tl.load(at + stride[1], mask=inside, other=0.0).to(tl.float64) / wavelength
    z = tl.load(at + 2 * stride[1], mask=inside, other=0.0).to(tl.float64) / wavelength
    square = x * x + y * y + z * z
    return x.to(dtype), y.to(dtype), z.to(dtype), square.to(dtype)


@triton.jit
def steering_tile(ux, uy, uz, q, ex, ey, ez, square, TAPER: tl.constexpr):
    """sqrt(N) a_n(g), real and imaginary, where points and elements broadcast to a tile."""
    d = ux * ex + (uy * ey + (uz * ez - q * square))
    # Rounding alone can make the square negative, at an element. NaN is in d too.
    square_of_ratio = tl.maximum(1.0 - q * d, 0.0)
    if TAPER:
        # |u - q p|^2, which near an element keeps the digits that the difference loses.
        dx, dy, dz = 0.5 * ux - q * ex, 0.5 * uy - q * ey, 0.5 * uz - q * ez
        square_of_ratio = dx * dx + (dy * dy + dz * dz)
    ratio = tl.sqrt(square_of_ratio)
    turns = d / (1.0 + ratio)
    quarters = tl.floor(4.0 * turns + 0.5)
    sine, cosine = sincos_quarters(quarters, turns - 0.25 * quarters)
    if TAPER:
        sine, cosine = sine / ratio, cosine / ratio
    return cosine, sine
