# SPDX-License-Identifier: Apache-2.0
"""MVDR spectrum of a covariance over azimuth, elevation and range.

With the covariance scaled to unit mean eigenvalue and loaded, S = N R / tr R + delta I = L L^H, the
spectrum at a point g is

    P(g) = 1 / (a(g)^H S^-1 a(g)) = 1 / ||L^-1 a(g)||^2,

where a(g) is the one steering vector of :mod:`.geometry`. White noise alone gives P = 1 + delta at
every point. There is one Cholesky factorisation per scene and one triangular solve per point; S is
never inverted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .configs import SystemConfig
from .geometry import element_positions, steering

_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class SearchGrid:
    """Points at which the spectrum is searched: uniform in azimuth, elevation and 1/range."""

    phi: Tensor
    """Azimuths [n_phi] in radians, ascending."""
    theta: Tensor
    """Elevations [n_theta] in radians, ascending."""
    inverse_range: Tensor
    """Inverse ranges [n_r] in 1/m, ascending."""

    @classmethod
    def for_system(
        cls,
        system: SystemConfig,
        *,
        oversampling: float = 4.0,
        device: torch.device | str = "cpu",
    ) -> SearchGrid:
        """Grid over the field of view whose steps follow the resolution of the surface.

        An aperture of n elements at spacing d resolves lambda / (n d) radians at boresight; the
        angular step is that divided by ``oversampling``. A step of lambda / rho^2 in 1/r, rho being
        the distance from the centre to a corner, changes the wavefront's phase there by pi; the
        range step is that times 4 / ``oversampling``, and at least three ranges are searched.

        >>> grid = SearchGrid.for_system(SystemConfig(n_h=4, n_v=4))
        >>> grid.shape
        (18, 10, 3)
        """
        if not (math.isfinite(oversampling) and oversampling > 0):
            raise ValueError(f"oversampling: got {oversampling}, expected a finite number > 0")

        def axis(low: float, high: float, step: float) -> Tensor:
            count = max(3, math.ceil((high - low) / step - 1e-9) + 1)
            return torch.linspace(low, high, count, dtype=torch.float64, device=device)

        half_h, half_v = (n * system.spacing / 2 for n in (system.n_h, system.n_v))
        angle = system.wavelength / oversampling
        depth = 4 * system.wavelength / (oversampling * (half_h**2 + half_v**2))
        return cls(
            axis(-system.phi_max, system.phi_max, angle / (2 * half_h)),
            axis(-system.theta_max, system.theta_max, angle / (2 * half_v)),
            axis(1 / system.r_max, 1 / system.r_min, depth),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of azimuths, elevations and ranges."""
        return len(self.phi), len(self.theta), len(self.inverse_range)

    @property
    def steps(self) -> Tensor:
        """Distance between neighbours in azimuth, elevation and 1/range, [3]."""
        return torch.stack([axis[1] - axis[0] for axis in self._axes])

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Least and greatest (azimuth, elevation, 1/range), [3] each."""
        return torch.stack([axis[0] for axis in self._axes]), torch.stack(
            [axis[-1] for axis in self._axes]
        )

    @property
    def _axes(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.phi, self.theta, self.inverse_range

    def points(self, flat: Tensor) -> Tensor:
        """Coordinates [..., 3] (azimuth, elevation, 1/range) of flat indices into the grid."""
        _, n_theta, n_r = self.shape
        return torch.stack(
            [
                self.phi[flat // (n_theta * n_r)],
                self.theta[(flat // n_r) % n_theta],
                self.inverse_range[flat % n_r],
            ],
            dim=-1,
        )


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
    matrix = covariance.to(torch.complex128)
    matrix = 0.5 * (matrix + matrix.mH)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).real
    matrix = matrix / diagonal.mean(-1)[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix + loading * identity)
    # cholesky_ex reports nothing about NaN input, which only shows in the factor.
    bad = (info != 0) | ~torch.isfinite(factor).all(-1).all(-1)
    if bool(bad.any()):
        scenes = torch.nonzero(bad.reshape(-1)).flatten().tolist()
        raise ValueError(
            f"covariance: scene(s) {scenes[:8]} are not finite or not positive semidefinite to "
            f"within loading {loading:g}; check the data, or raise the loading"
        )
    return factor


def log_spectrum(
    factor: Tensor, points: Tensor, system: SystemConfig, *, positions: Tensor | None = None
) -> Tensor:
    """log P at given points of each scene, differentiable in the points.

    ``factor`` [..., N, N] from :func:`loaded_cholesky`; ``points`` [..., P, 3], or [P, 3] for the
    same points in every scene, hold azimuth and elevation in radians and 1/range in 1/m. Returns
    [..., P], real, natural logarithm.
    """
    phi, theta, inverse_range = points.unbind(-1)
    vectors = steering(
        system, phi, theta, 1 / inverse_range, positions=positions, dtype=factor.dtype
    )
    whitened = torch.linalg.solve_triangular(factor, vectors.mT, upper=False)
    form: Tensor = torch.view_as_real(whitened).square().sum((-3, -1))
    return form.log().neg()


def _chunks(
    grid: SearchGrid, batch: int, elements: int, itemsize: int, chunk_bytes: int
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the flattened grid, with their points, that keep [batch, N, chunk] in memory."""
    total = math.prod(grid.shape)
    chunk = max(1, chunk_bytes // max(1, batch * elements * itemsize))
    for start in range(0, total, chunk):
        part = slice(start, min(start + chunk, total))
        yield part, grid.points(torch.arange(part.start, part.stop, device=grid.phi.device))


def grid_log_spectrum(
    factor: Tensor,
    grid: SearchGrid,
    system: SystemConfig,
    *,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Tensor:
    """log P on a whole grid: [B, n_phi, n_theta, n_r] for ``factor`` [B, N, N].

    The grid is cut so that one block of steering vectors and its triangular solve take about
    ``chunk_bytes`` each beside the result, whatever the number of scenes.

    >>> system = SystemConfig(n_h=4, n_v=4)
    >>> factor = loaded_cholesky(torch.eye(16, dtype=torch.complex64)[None], loading=0.5)
    >>> level = grid_log_spectrum(factor, SearchGrid.for_system(system), system)
    >>> bool(torch.allclose(level, torch.full_like(level, 1.5).log(), atol=1e-6))
    True
    """
    if factor.ndim != 3 or factor.shape[-1] != system.elements:
        raise ValueError(
            f"factor: got shape {tuple(factor.shape)}, expected [B, N, N], N = {system.elements}"
        )
    batch, elements, _ = factor.shape
    positions = element_positions(system, device=factor.device)
    level = factor.real.new_empty(batch, math.prod(grid.shape))
    for part, points in _chunks(grid, batch, elements, factor.element_size(), chunk_bytes):
        level[:, part] = log_spectrum(factor, points, system, positions=positions)
    return level.reshape(batch, *grid.shape)


def grid_log_residual(
    points: Tensor,
    mask: Tensor,
    grid: SearchGrid,
    system: SystemConfig,
    *,
    floor: float = 1e-4,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Tensor:
    """log of the share of |a(g)|^2 outside the span of given steering vectors, on a whole grid.

    With A the steering vectors of the ``points`` [B, K, 3] marked in ``mask`` [B, K] and
    A^H A = C C^H, the share is 1 - ||C^-1 A^H a(g)||^2 / ||a(g)||^2, not below ``floor``. Added to
    log P it removes those sources' peaks and their flanks, and leaves the others'. Returns
    [B, n_phi, n_theta, n_r], float32.
    """
    positions = element_positions(system, device=points.device)
    phi, theta, inverse_range = points.unbind(-1)
    columns = steering(
        system, phi, theta, 1 / inverse_range, positions=positions, dtype=torch.complex128
    )
    columns = columns * mask[..., None]
    gram = columns.conj() @ columns.mT
    # A masked column gets a one on the diagonal; the ridge keeps coinciding points solvable.
    gram = gram + torch.diag_embed((~mask).to(gram.dtype) + 1e-9)
    basis = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), columns.conj(), upper=False)
    basis = basis.to(torch.complex64)
    batch, count, elements = basis.shape
    share = basis.real.new_empty(batch, math.prod(grid.shape))
    # Only the N steering vectors and their K products are alive at a time.
    rows = max(elements, batch * count)
    for part, places in _chunks(grid, 1, rows, basis.element_size(), chunk_bytes):
        angles = places[:, 0], places[:, 1], 1 / places[:, 2]
        vectors = steering(system, *angles, positions=positions)
        inside = torch.view_as_real(basis @ vectors.mT).square().sum((1, 3))
        share[:, part] = 1 - inside / torch.view_as_real(vectors).square().sum((1, 2))
    residual: Tensor = share.clamp_min(floor).log()
    return residual.reshape(batch, *grid.shape)
