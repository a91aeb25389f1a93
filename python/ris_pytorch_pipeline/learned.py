# SPDX-License-Identifier: Apache-2.0
"""The learned estimator: the network proposes positions, the measurements decide and refine.

The positions of the network's slots and the highest peaks of R_blend are the proposals of a scene.
Matching pursuit picks sources among them, one after another, by what each takes off the residual of
y, and refines all picked ones jointly after every pick (:func:`~.pursuit.pursue`). Where K is not
known it stops where noise would give as much. A source that y hardly supports is left out.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .configs import ConfigError
from .estimators import (
    Setting,
    check_scenes,
    checked_count,
    count_by_residual,
    keep_first,
    register,
)
from .localize import Positions, estimate_positions
from .model import infer
from .pursuit import PursuitConfig, pursue, reconsider
from .refine import finite_scenes, refine_positions
from .simulate import Scenes
from .stopping_rule import DOUBT

FIRST_SNR_DB = 10.0
"""What the network is told of the noise before there is an estimate of it."""
STARTS = 3
"""Proposals that are refined at every pick."""
_BLOCK = 64


@register("learned")
class Learned:
    """Network, pursuit among its proposals, and variable projection.

    A network that wants the signal-to-noise ratio, which no receiver is given, is told an estimate:
    what a first pass, with all slots refined, leaves of y is noise; its power per degree of freedom
    is sigma^2, and the rest of y is signal.
    """

    name = "learned"

    def __init__(self, setting: Setting) -> None:
        checkpoint = setting.checkpoint
        if checkpoint is None:
            raise ConfigError("learned: no checkpoint, expected Setting(checkpoint=...)")
        if checkpoint.config.system != setting.system:
            raise ConfigError(
                "learned: the checkpoint is of another system than the scenes: got "
                f"{checkpoint.config.system}, expected {setting.system}"
            )
        self.setting, self.pursuit = setting, PursuitConfig(starts=STARTS)
        self.net, self.config = checkpoint.net, checkpoint.config

    def __call__(self, scenes: Scenes, num_sources: Tensor | None) -> Positions:
        check_scenes(scenes, self.setting.system)
        if num_sources is not None:
            num_sources = checked_count(num_sources, scenes, self.setting.system)
        found = []
        for start in range(0, max(1, len(scenes)), _BLOCK):
            part = slice(start, start + _BLOCK)
            known = None if num_sources is None else num_sources[part]
            found.append(self._block(scenes[part], known))
        names = [spec.name for spec in dataclasses.fields(Positions)]
        return Positions(*(torch.cat([getattr(f, name) for f in found]) for name in names))

    def _block(self, scenes: Scenes, num_sources: Tensor | None) -> Positions:
        usable = finite_scenes(scenes)
        if not bool(usable.any()):
            none = torch.zeros(len(scenes), self.setting.system.max_sources, dtype=torch.float64)
            none = none.to(scenes.y.device)
            return Positions(none, none, torch.ones_like(none), none, none > 0)
        # The network never sees a scene that is not finite; a zero one stands in for it.
        parts = {name: getattr(scenes, name) for name in ("y", "h", "codes")}
        kept = {
            name: torch.where(usable.reshape(-1, *(1,) * (value.ndim - 1)), value, 0)
            for name, value in parts.items()
        }
        scenes = dataclasses.replace(scenes, **kept)
        setting = self.setting
        with torch.inference_mode():
            proposals = self._proposals(self._told_snr(scenes))
        wanted = None if num_sources is None else num_sources * usable
        found = pursue(
            scenes,
            wanted,
            setting.system,
            self.pursuit,
            symbols=setting.symbols,
            proposals=proposals,
        )
        positions = self._complete(scenes, found.positions)
        return keep_first(positions, count_by_residual(scenes, positions, setting, DOUBT))

    def _complete(self, scenes: Scenes, positions: Positions) -> Positions:
        return positions

    def _proposals(self, scenes: Scenes) -> Tensor:
        """Slots and peaks of R_blend, [B, 2 K_max, 3]; a slot twice where there is no peak."""
        system = self.setting.system
        inference = infer(self.net, scenes)
        slots = inference.prediction
        peaks = estimate_positions(inference.factors, system.max_sources, system)
        pairs = ((slots.phi, peaks.phi), (slots.theta, peaks.theta), (slots.r, peaks.r))
        places = [torch.cat([s, torch.where(peaks.valid, p, s)], 1).double() for s, p in pairs]
        return torch.stack([places[0], places[1], 1 / places[2]], dim=-1)

    def _told_snr(self, scenes: Scenes) -> Scenes:
        """The scenes with an estimate of the ratio, if the network wants it."""
        if not self.config.model.known_snr:
            return scenes
        first = torch.full_like(scenes.snr_db, FIRST_SNR_DB)
        slots = self.net(dataclasses.replace(scenes, snr_db=first))
        every = torch.ones_like(slots.existence, dtype=torch.bool)
        guess = refine_positions(
            scenes,
            (slots.phi, slots.theta, slots.r, every),
            self.setting.system,
            symbols=self.setting.symbols,
        )
        return dataclasses.replace(scenes, snr_db=self._snr_db(scenes, guess.residual))

    def _snr_db(self, scenes: Scenes, residual: Tensor) -> Tensor:
        """Signal-to-noise ratio at the base station, [B], within the range of the training."""
        system, simulation = self.setting.system, self.config.simulation
        snapshots, antennas = scenes.y.shape[1:]
        fitted = system.max_sources * (1 if self.setting.symbols == "static" else snapshots)
        noise = residual / max(1, snapshots * antennas - fitted - 1.5 * system.max_sources)
        total = torch.view_as_real(scenes.y).double().square().sum((1, 2, 3))
        signal = total / (snapshots * antennas) - noise
        ratio = signal.clamp_min(1e-30) / noise.clamp_min(1e-30)
        decibel = (10 * ratio.log10()).clamp(simulation.snr_db_min, simulation.snr_db_max)
        return decibel.to(scenes.snr_db.dtype)


@register("learned_search")
class LearnedSearch(Learned):
    """The learned estimator, and one round in which every source is searched again on y.

    The round is that of the pursuit over a grid (:func:`~.pursuit.reconsider`), with the options of
    ``omp``: what it gains over ``learned`` is not the network's.
    """

    name = "learned_search"

    def _complete(self, scenes: Scenes, positions: Positions) -> Positions:
        setting = self.setting
        return reconsider(scenes, positions, setting.system, symbols=setting.symbols).positions
