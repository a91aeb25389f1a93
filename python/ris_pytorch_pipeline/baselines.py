# SPDX-License-Identifier: Apache-2.0
"""Estimators that learn nothing: MVDR and MUSIC on R_samp, pursuit, joint least squares."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .covariance import back_projected_snapshots
from .estimators import (
    Setting,
    check_scenes,
    checked_count,
    count_by_residual,
    keep_first,
    register,
)
from .localize import Positions, SearchConfig, estimate_positions
from .pursuit import PursuitConfig, pursue
from .refine import Symbols, finite_scenes
from .simulate import Scenes
from .stopping_rule import DOUBT


class _CovariancePeaks:
    """Peaks of a spectrum of R_samp; K from the residual of y where it is not known."""

    name: ClassVar[str]
    spectrum: ClassVar[Literal["mvdr", "music"]]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.search = SearchConfig(spectrum=self.spectrum)

    def __call__(self, scenes: Scenes, num_sources: Tensor | None) -> Positions:
        system = self.setting.system
        check_scenes(scenes, system)
        if num_sources is not None:
            num_sources = checked_count(num_sources, scenes, system)
        usable = finite_scenes(scenes)
        # R_samp = X X^H, never made: its factor is the snapshots.
        factor = back_projected_snapshots(scenes, self.setting.covariance).mT
        factor = factor / math.sqrt(system.snapshots)
        # A scene that cannot be used gets some factor, and its peaks are discarded.
        blank = torch.eye(*factor.shape[1:], dtype=factor.dtype, device=factor.device)
        usable = usable & (torch.view_as_real(factor).square().sum((1, 2, 3)) > 0)
        factor = torch.where(usable[:, None, None], factor, blank)
        if num_sources is not None:
            return keep_first(self._peaks(factor, num_sources), num_sources * usable)
        most = torch.full_like(scenes.num_sources, system.max_sources)
        found = self._peaks(factor, most)
        count = count_by_residual(scenes, found, self.setting, PursuitConfig().false_alarm)
        if self.spectrum == "music":
            # The signal space was too large: now its dimension is known.
            found = self._peaks(factor, count)
        return keep_first(found, count * usable)

    def _peaks(self, factor: Tensor, count: Tensor) -> Positions:
        silent = factor.real.new_zeros(len(factor))
        if self.spectrum == "music":
            count = count.clamp(max=min(factor.shape[1:]))
        return estimate_positions((factor, silent), count, self.setting.system, self.search)


@register("mvdr")
class Mvdr(_CovariancePeaks):
    """Peaks of the MVDR spectrum of R_samp."""

    name = "mvdr"
    spectrum = "mvdr"


@register("music")
class Music(_CovariancePeaks):
    """Peaks of the MUSIC spectrum of R_samp, with a signal space of dimension K.

    The rank of R_samp is at most L: of fewer snapshots than sources it finds L sources.
    """

    name = "music"
    spectrum = "music"


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
        check_scenes(scenes, system)
        if num_sources is not None:
            num_sources = checked_count(num_sources, scenes, system)
        return pursue(scenes, num_sources, system, self.config, symbols=self.symbols).positions


@register("omp")
class Omp(_Pursuit):
    """Simultaneous OMP with Gauss-Newton after every pick: :func:`~.pursuit.pursue`."""

    name = "omp"


@register("omp_cautious")
class OmpCautious(Omp):
    """:class:`Omp` without the sources that y hardly supports, told K or not.

    It leaves out by the rule of the learned estimators, :data:`~.stopping_rule.DOUBT`: what they
    gain over ``omp`` by that rule alone, it gains too.
    """

    name = "omp_cautious"

    def __call__(self, scenes: Scenes, num_sources: Tensor | None) -> Positions:
        found = super().__call__(scenes, num_sources)
        return keep_first(found, count_by_residual(scenes, found, self.setting, DOUBT))


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
