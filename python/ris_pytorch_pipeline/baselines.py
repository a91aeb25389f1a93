# SPDX-License-Identifier: Apache-2.0
"""Estimators that learn nothing: MVDR and MUSIC on R_samp, pursuit, joint least squares."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from .configs import SystemConfig
from .covariance import sample_covariance
from .estimators import (
    Setting,
    checked_count,
    count_by_residual,
    finite_scenes,
    keep_first,
    register,
)
from .localize import Positions, estimate_positions
from .pursuit import PursuitConfig, pursue
from .refine import Symbols
from .simulate import Scenes

_BLOCK_BYTES = 64 << 20
_FALSE_ALARM = PursuitConfig().false_alarm


def covariance_peaks(covariance: Tensor, count: Tensor, system: SystemConfig) -> Positions:
    """The highest ``count`` [B] peaks of the MVDR spectrum of ``covariance`` [B, N, N]."""
    return estimate_positions(covariance, count, system)


def signal_projector(covariance: Tensor, count: Tensor) -> Tensor:
    """Projector onto the ``count`` [B] leading eigenvectors, [B, N, N].

    The MVDR spectrum of U U^H with loading delta is delta' / (1 - ||U^H a||^2 / (1 + delta')) up to
    a factor, delta' = delta K / N: that of MUSIC with a floor of 1e-5 below the peaks.
    """
    vectors: Tensor = torch.linalg.eigh(covariance)[1].flip(-1)
    leading = torch.arange(vectors.shape[-1], device=count.device) < count.clamp_min(1)[:, None]
    return (vectors * leading[:, None]) @ vectors.mH


class _CovariancePeaks:
    """Peaks of a spectrum of R_samp; K from the residual of y where it is not known."""

    name: ClassVar[str]
    subspace: ClassVar[bool]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __call__(self, scenes: Scenes, num_sources: Tensor | None) -> Positions:
        system = self.setting.system
        if num_sources is not None:
            num_sources = checked_count(num_sources, scenes, system)
        size = max(1, _BLOCK_BYTES // (16 * system.elements**2))
        parts = [slice(s, s + size) for s in range(0, max(1, len(scenes)), size)]
        found = [
            self._block(scenes[part], None if num_sources is None else num_sources[part])
            for part in parts
        ]
        names = [spec.name for spec in dataclasses.fields(Positions)]
        return Positions(*(torch.cat([getattr(f, name) for f in found]) for name in names))

    def _block(self, scenes: Scenes, num_sources: Tensor | None) -> Positions:
        system = self.setting.system
        usable = finite_scenes(scenes)
        r_samp = sample_covariance(scenes, self.setting.covariance)
        # A scene that cannot be used gets a white covariance, and its peaks are discarded.
        white = torch.eye(system.elements, dtype=r_samp.dtype, device=r_samp.device)
        dark = r_samp.diagonal(dim1=1, dim2=2).real.sum(1) <= 0
        r_samp = torch.where((usable & ~dark)[:, None, None], r_samp, white)
        if num_sources is None:
            return self._decide(scenes, r_samp, usable)
        found = self._peaks(r_samp, num_sources)
        return keep_first(found, num_sources * usable)

    def _peaks(self, r_samp: Tensor, count: Tensor) -> Positions:
        if len(r_samp) == 0:
            none = r_samp.real.new_zeros(0, self.setting.system.max_sources, dtype=torch.float64)
            return Positions(none, none, none, none, none > 0)
        covariance = signal_projector(r_samp, count) if self.subspace else r_samp
        return covariance_peaks(covariance, count, self.setting.system)

    def _decide(self, scenes: Scenes, r_samp: Tensor, usable: Tensor) -> Positions:
        most = torch.full_like(scenes.num_sources, self.setting.system.max_sources)
        found = self._peaks(r_samp, most)
        count = count_by_residual(scenes, found, self.setting, _FALSE_ALARM)
        if self.subspace:
            # The signal space was too large: now its dimension is known.
            found = self._peaks(r_samp, count)
        return keep_first(found, count * usable)


@register("mvdr")
class Mvdr(_CovariancePeaks):
    """Peaks of the MVDR spectrum of R_samp."""

    name = "mvdr"
    subspace = False


@register("music")
class Music(_CovariancePeaks):
    """Peaks of the MUSIC spectrum of R_samp, with a signal space of dimension K."""

    name = "music"
    subspace = True


class _Pursuit:
    name: ClassVar[str]

    def __init__(self, setting: Setting, config: PursuitConfig | None = None) -> None:
        self.setting = setting
        self.config = config or PursuitConfig()

    @property
    def symbols(self) -> Symbols:
        """The model of the symbols."""
        return self.setting.symbols

    def __call__(self, scenes: Scenes, num_sources: Tensor | None) -> Positions:
        system = self.setting.system
        if num_sources is not None:
            num_sources = checked_count(num_sources, scenes, system)
        return pursue(scenes, num_sources, system, self.config, symbols=self.symbols).positions


@register("omp")
class Omp(_Pursuit):
    """Simultaneous OMP with Gauss-Newton after every pick: :func:`~.pursuit.pursue`."""

    name = "omp"


@register("joint_ls")
class JointLeastSquares(_Pursuit):
    """Least squares over all snapshots as one measurement of L M entries: static symbols.

    The same search with one symbol vector a scene. Where symbols change from snapshot to snapshot
    this is the wrong model.
    """

    name = "joint_ls"

    @property
    def symbols(self) -> Symbols:
        """Static, whatever the setting says."""
        return "static"
