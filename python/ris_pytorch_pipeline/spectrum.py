# SPDX-License-Identifier: Apache-2.0
"""MVDR, MUSIC and back-projection spectra over azimuth, elevation and range.

All three are functions of ``q = ||F^H a||^2 = steering_power(F)``, for one factor F [N, k] of each:

- **MVDR**, ``P = |a|^2 / (a^H S^-1 a)`` with S = N R / tr R + delta I. From factors (X, rho), with
  X and rho scaled alike and d = rho + delta, S^-1 = (I - Z Z^H) / d with Z = X L^-H and
  d I + X^H X = L L^H: an r x r Cholesky, F = Z and ``a^H S^-1 a = (|a|^2 - q) / d``. From a dense
  matrix S = L L^H, F = L^-H and a^H S^-1 a = q.
- **MUSIC**, ``P = |a|^2 / (|a|^2 - q)``, F being the K leading eigenvectors: of X X^H by way of the
  r x r X^H X, or of a dense matrix.
- **Back-projection**, ``P = (q + rho |a|^2) / |a|^2``, F = X, or the square root of a dense matrix.

``|a|^2`` is 1 without taper. White noise alone gives P = 1 + delta (MVDR) or 1 everywhere. Near a
peak ``|a|^2 - q`` is a small difference, known to the rounding of 1: so on grids it is computed in
complex128, and at single points MUSIC takes the residual ``||a - F F^H a||^2``, whose rounding is
that squared.

A spectrum can be *deflated*: the span T of given steering vectors is taken out by the factor
``(|a|^2 - ||T^H a||^2) / |a|^2``, and of back-projection's F too. That removes those sources' peaks
and their flanks and leaves the others'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

import riskernels

from .configs import SystemConfig
from .geometry import element_positions, steering
from .search_grid import SearchGrid as SearchGrid

Covariance = Tensor | tuple[Tensor, Tensor]
"""R [B, N, N], or factors (X, rho) [B, N, r] and [B] with R = X X^H + rho I."""

_SMALLEST = {torch.float32: 1e-6, torch.float64: 1e-14}
"""Shares of |a|^2 below which a difference from it is rounding."""


def _scenes(bad: Tensor) -> list[int]:
    """Up to eight of the marked scenes, for a message."""
    return torch.nonzero(bad.reshape(-1)).flatten().tolist()[:8]


def _hermitian(covariance: Tensor) -> Tensor:
    """The Hermitian part in complex128; refuses a matrix that is not Hermitian to rounding."""
    matrix = covariance.to(torch.complex128)
    half = 0.5 * (matrix - matrix.mH)
    bad = torch.linalg.matrix_norm(half) > 1e-4 * torch.linalg.matrix_norm(matrix)
    if bool(bad.any()):
        raise ValueError(
            f"covariance: scene(s) {_scenes(bad)} are not Hermitian (the anti-Hermitian part is "
            "over 1e-4 of the matrix); pass 0.5 * (R + R.mH) if that is meant"
        )
    return matrix - half


def loaded_cholesky(covariance: Tensor, loading: float = 1e-3) -> Tensor:
    """Lower Cholesky factor L of N R / tr R + loading I.

    ``covariance`` is Hermitian positive semidefinite, [..., N, N]; ``loading`` is relative to its
    mean eigenvalue. The factor is complex128 whatever the input: it is cheap beside the spectrum,
    and in single precision a loading below about 1e-4 is lost in the rounding of R.

    Raises ``ValueError`` naming the scenes whose covariance is not finite or not positive
    semidefinite to within the loading.

    >>> factor = loaded_cholesky(2 * torch.eye(3, dtype=torch.complex64), loading=0.0)
    >>> bool((factor == torch.eye(3)).all())
    True
    """
    if covariance.ndim < 2 or covariance.shape[-1] != covariance.shape[-2]:
        raise ValueError(f"covariance: got shape {tuple(covariance.shape)}, expected [..., N, N]")
    if not covariance.is_complex():
        raise ValueError(f"covariance: got {covariance.dtype}, expected a complex type")
    if not (math.isfinite(loading) and loading >= 0):
        raise ValueError(f"loading: got {loading}, expected a finite number >= 0")
    matrix = _hermitian(covariance)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).real
    matrix = matrix / diagonal.mean(-1)[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix + loading * identity)
    # cholesky_ex reports nothing about NaN input, which only shows in the factor.
    bad = (info != 0) | ~torch.isfinite(factor).all(-1).all(-1)
    if bool(bad.any()):
        raise ValueError(
            f"covariance: scene(s) {_scenes(bad)} are not finite or not positive semidefinite to "
            f"within loading {loading:g}; check the data, or raise the loading"
        )
    return factor


@dataclass(frozen=True)
class Spectrum:
    """A spectrum of B scenes; made by :func:`mvdr`, :func:`music` or :func:`back_projection`."""

    kind: Literal["power", "inverse", "complement"]
    """Whether P is ``q / |a|^2``, ``|a|^2 / q`` or ``|a|^2 / (|a|^2 - q)``, times ``scale``."""
    factor: Tensor
    """F [B, N, k] complex128."""
    scale: Tensor
    """[B] float64, in the units of P."""
    orthonormal: bool = False
    """Whether the columns of F are orthonormal (or zero)."""
    shift: Tensor | None = None
    """[B], what is added to a ``power`` P: rho."""
    taken: Tensor | None = None
    """Orthonormal basis T [B, N, J] of what was taken out; zero columns for nothing."""

    def __len__(self) -> int:
        return self.factor.shape[0]

    def deflated(self, basis: Tensor) -> Spectrum:
        """With the span of an orthonormal ``basis`` [B, N, J] taken out, in place of an earlier
        one."""
        if self.kind != "power":
            return replace(self, taken=basis)
        return replace(self, factor=self.factor - basis @ (basis.mH @ self.factor), taken=basis)

    def log_level(self, points: Tensor, system: SystemConfig) -> Tensor:
        """log P [B, P] at points [P, 3] or [B, P, 3] (azimuth, elevation, 1/range), by the kernel.

        Not differentiable in the points; :func:`.peaks.spectrum_derivatives` is. Minus infinity
        where what was taken out leaves nothing.
        """
        phi, theta, inverse_range = (t.contiguous() for t in points.unbind(-1))
        positions = element_positions(system, device=points.device)

        def power(factor: Tensor, dtype: torch.dtype) -> Tensor:
            return riskernels.steering_power(
                factor.to(dtype), phi, theta, 1 / inverse_range, positions, system.wavelength,
                taper=system.taper,
            )  # fmt: skip

        precise = torch.complex128 if self.kind == "complement" else torch.complex64
        q = power(self.factor, precise)
        size = _squared_norm(points, system, positions).to(q.dtype)
        least = _SMALLEST[q.dtype]
        left = size
        if self.taken is not None:
            left = size - power(self.taken, torch.complex128)
        gone = left < 1e-8 * size
        if self.kind == "complement":
            q = size - q
        ratio = q.clamp_min(least) / left.clamp_min(least)
        level = ratio.log() if self.kind == "power" else -ratio.log()
        level = level + self.scale.log()[:, None]
        if self.shift is not None:
            level = (level.exp() + self.shift[:, None]).log()
        return level.masked_fill(gone, -math.inf)


def _squared_norm(points: Tensor, system: SystemConfig, positions: Tensor) -> Tensor:
    """|a|^2 at points [..., 3]."""
    if not system.taper:
        return points.new_ones(())
    parts = []
    for phi, theta, inverse_range in (t.unbind(-1) for t in points.reshape(-1, 3).split(8192)):
        wave = steering(
            system, phi, theta, 1 / inverse_range, positions=positions, dtype=torch.complex128
        )
        parts.append(torch.view_as_real(wave).square().sum((1, 2)))
    return torch.cat(parts).reshape(points.shape[:-1])


def _check_factors(covariance: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """X and rho scaled to a mean eigenvalue of R of 1, and the scale of R, in double."""
    x, rho = covariance
    if x.ndim != 3 or not x.is_complex() or rho.shape != x.shape[:1] or rho.is_complex():
        raise ValueError(
            f"covariance: got factors of shapes {tuple(x.shape)} and {tuple(rho.shape)}, expected "
            "X [B, N, r] complex and rho [B] real"
        )
    x, rho = x.to(torch.complex128), rho.to(torch.float64)
    mean = torch.view_as_real(x).square().sum((1, 2, 3)) / x.shape[1] + rho
    bad = ~torch.isfinite(mean) | (mean <= 0) | (rho < 0)
    if bool(bad.any()):
        raise ValueError(
            f"covariance: scene(s) {_scenes(bad)} are not finite or not positive semidefinite; "
            "check the data"
        )
    return x / mean.sqrt()[:, None, None], rho / mean, mean


def _dense_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, and eigenvectors of a Hermitian [B, N, N]."""
    finite = torch.isfinite(torch.view_as_real(matrix)).flatten(1).all(1)
    if not bool(finite.all()):
        raise ValueError(f"covariance: scene(s) {_scenes(~finite)} are not finite; check the data")
    values, vectors = torch.linalg.eigh(matrix)
    bad = (values[:, -1] <= 0) | (values[:, 0] < -1e-4 * values[:, -1])
    if bool(bad.any()):
        raise ValueError(
            f"covariance: scene(s) {_scenes(bad)} are not positive semidefinite, or zero; check "
            "the data"
        )
    return values.flip(-1), vectors.flip(-1)


def mvdr(covariance: Covariance, loading: float = 1e-3) -> Spectrum:
    """The MVDR spectrum, with ``loading`` relative to the mean eigenvalue.

    >>> spectrum = mvdr(torch.eye(16, dtype=torch.complex64)[None], loading=0.5)
    >>> system = SystemConfig(n_h=4, n_v=4)
    >>> level = grid_log_spectrum(spectrum, SearchGrid.for_system(system), system)
    >>> bool(torch.allclose(level, torch.full_like(level, 1.5).log(), atol=1e-6))
    True
    """
    if isinstance(covariance, Tensor):
        lower = loaded_cholesky(covariance, loading)
        identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        factor = torch.linalg.solve_triangular(lower, identity, upper=False).mH
        return Spectrum("inverse", factor, factor.real.new_ones(len(factor)))
    if not (math.isfinite(loading) and loading >= 0):
        raise ValueError(f"loading: got {loading}, expected a finite number >= 0")
    x, rho, _ = _check_factors(covariance)
    load = rho + loading
    if bool((load <= 0).any()):
        raise ValueError("mvdr: a factor without rho needs a loading > 0, got 0")
    identity = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    gram = x.mH @ x + load[:, None, None] * identity
    lower = torch.linalg.cholesky(gram)
    factor = torch.linalg.solve_triangular(lower, x.mH, upper=False).mH
    return Spectrum("complement", factor, load)


def music(covariance: Covariance, num_sources: Tensor | int) -> Spectrum:
    """The MUSIC spectrum of the ``num_sources`` (one number or [B]) leading eigenvectors."""
    if isinstance(covariance, Tensor):
        basis = _dense_eigen(_hermitian(covariance))[1]
    else:
        x, _, _ = _check_factors(covariance)
        # Of X X^H through the small Gram matrix; QR then makes them orthonormal to rounding.
        vectors = torch.linalg.eigh(x.mH @ x)[1].flip(-1)
        basis = torch.linalg.qr(x @ vectors)[0]
    count = torch.as_tensor(num_sources, device=basis.device).expand(len(basis))
    if count.numel() and not bool(((count >= 0) & (count <= basis.shape[2])).all()):
        raise ValueError(
            f"num_sources: got {count.tolist()[:8]}, expected 0 to {basis.shape[2]}, the rank"
        )
    most = int(count.max()) if count.numel() else 0
    basis = basis[..., : max(most, 1)]
    kept = torch.arange(basis.shape[2], device=basis.device) < count[:, None]
    return Spectrum(
        "complement", basis * kept[:, None, :], basis.real.new_ones(len(basis)), orthonormal=True
    )


def back_projection(covariance: Covariance) -> Spectrum:
    """The back-projection (Bartlett) spectrum ``a^H R a / |a|^2``, R scaled to trace N."""
    if isinstance(covariance, Tensor):
        values, vectors = _dense_eigen(_hermitian(covariance))
        values = values.clamp_min(0.0)
        # Eigenvalues that are rounding of the largest need no column.
        rounding = vectors.shape[-1] * torch.finfo(covariance.dtype).eps
        kept = (values > rounding * values[:, :1]).sum(-1)
        columns = max(1, int(kept.max()) if kept.numel() else 1)
        factor = vectors * (values / values.mean(-1, keepdim=True)).sqrt()[:, None, :]
        factor = factor[..., :columns]
        return Spectrum("power", factor, factor.real.new_ones(len(factor)))
    x, rho, _ = _check_factors(covariance)
    return Spectrum("power", x, rho.new_ones(len(x)), shift=rho)


def grid_log_spectrum(spectrum: Spectrum, grid: SearchGrid, system: SystemConfig) -> Tensor:
    """log P on a whole grid, [B, n_phi, n_theta, n_r]; memory beside it is O(grid)."""
    if spectrum.factor.shape[1] != system.elements:
        raise ValueError(
            f"covariance: of {spectrum.factor.shape[1]} elements, but the system has "
            f"N = {system.elements}"
        )
    return spectrum.log_level(grid.all_points(), system).reshape(len(spectrum), *grid.shape)


def steering_basis(points: Tensor, mask: Tensor, system: SystemConfig) -> Tensor:
    """Orthonormal basis [B, N, J] of the steering vectors of ``points`` [B, J, 3].

    Columns where ``mask`` [B, J] is False are zero. Coinciding points share what they span.
    """
    phi, theta, inverse_range = points.unbind(-1)
    columns = steering(system, phi, theta, 1 / inverse_range, dtype=torch.complex128).mT
    columns = columns * mask[:, None, :]
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    kept: Tensor = (
        left * (values > 1e-9 * values.amax(-1, keepdim=True).clamp_min(1e-300))[:, None, :]
    )
    return kept
