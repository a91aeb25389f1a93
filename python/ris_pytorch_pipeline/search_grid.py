# SPDX-License-Identifier: Apache-2.0
"""The grid of azimuth, elevation and 1/range on which spectra are searched."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .configs import SystemConfig


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

    def all_points(self) -> Tensor:
        """Coordinates of every point, [G, 3], range running fastest."""
        return torch.cartesian_prod(*self._axes)

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
