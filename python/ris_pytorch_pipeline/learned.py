# SPDX-License-Identifier: Apache-2.0
"""The learned estimator: the network proposes positions, least squares on the measurements refines.

Two proposals are made and refined: the positions of the network's slots, and the peaks of R_blend.
The one that leaves less of y is taken. K, where it is not known, is what the network says.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .configs import ConfigError
from .estimators import Setting, checked_count, finite_scenes, keep_first, register
from .localize import Positions, estimate_positions
from .model import Prediction, infer
from .position_report import predicted_count
from .pursuit import reconsider, strongest_first
from .refine import Refinement, refine_positions
from .simulate import Scenes

FIRST_SNR_DB = 10.0
"""What the network is told of the noise before there is an estimate of it."""
_BLOCK = 64


@register("learned")
class Learned:
    """Network and variable projection.

    The network wants the signal-to-noise ratio, which no receiver is given. It is estimated: what
    a first pass, with all slots refined, leaves of y is noise; its power per degree of freedom is
    sigma^2, and the rest of y is signal. The second pass gets that ratio.
    """

    name = "learned"

    def __init__(self, setting: Setting, *, steps: int = 40) -> None:
        checkpoint = setting.checkpoint
        if checkpoint is None:
            raise ConfigError("learned: no checkpoint, expected Setting(checkpoint=...)")
        if checkpoint.config.system != setting.system:
            raise ConfigError(
                "learned: the checkpoint is of another system than the scenes: got "
                f"{checkpoint.config.system}, expected {setting.system}"
            )
        self.setting, self.steps = setting, steps
        self.net, self.config = checkpoint.net, checkpoint.config

    def __call__(self, scenes: Scenes, num_sources: Tensor | None) -> Positions:
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
        with torch.inference_mode():
            first = torch.full_like(scenes.snr_db, FIRST_SNR_DB)
            prediction = self.net(dataclasses.replace(scenes, snr_db=first))
            every = torch.ones_like(prediction.existence, dtype=torch.bool)
            guess = self._refine(scenes, _slots(prediction, every))
            scenes = dataclasses.replace(scenes, snr_db=self._snr_db(scenes, guess.residual))
            inference = infer(self.net, scenes)
            existence = inference.prediction.existence
            if num_sources is None:
                num_sources = predicted_count(existence, self.config.simulation.min_sources)
            slots = self._refine(
                scenes, _slots(inference.prediction, _leading(existence, num_sources))
            )
            blend = inference.r_blend
        peaks = self._refine(scenes, estimate_positions(blend, num_sources, self.setting.system))
        chosen = self._complete(scenes, _better(slots, peaks))
        return keep_first(strongest_first(chosen), num_sources * usable)

    def _complete(self, scenes: Scenes, positions: Positions) -> Positions:
        return positions

    def _refine(self, scenes: Scenes, points: Positions) -> Refinement:
        setting = self.setting
        return refine_positions(
            scenes, points, setting.system, steps=self.steps, symbols=setting.symbols
        )

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

    The round is that of the pursuit (:func:`~.pursuit.reconsider`): what it gains over ``learned``
    is not the network's.
    """

    name = "learned_search"

    def _complete(self, scenes: Scenes, positions: Positions) -> Positions:
        setting = self.setting
        return reconsider(scenes, positions, setting.system, symbols=setting.symbols).positions


def _leading(existence: Tensor, count: Tensor) -> Tensor:
    """The ``count`` [B] slots of the highest existence, [B, K_max] bool."""
    rank = existence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count[:, None]


def _slots(prediction: Prediction, mask: Tensor) -> Positions:
    return Positions(
        prediction.phi, prediction.theta, prediction.r, prediction.existence.float(), mask
    )


def _better(first: Refinement, second: Refinement) -> Positions:
    """Scene by scene, the positions that leave less of y; a full set goes before a smaller one."""
    one, two = first.positions, second.positions
    full = one.valid.sum(1) >= two.valid.sum(1)
    # Peaks can be fewer than sources: the smaller set cannot leave less for a good reason.
    take = torch.where(
        one.valid.sum(1) == two.valid.sum(1), first.residual <= second.residual, full
    )
    pairs = [
        (getattr(one, spec.name), getattr(two, spec.name)) for spec in dataclasses.fields(Positions)
    ]
    return Positions(*(torch.where(take[:, None], a, b) for a, b in pairs))
