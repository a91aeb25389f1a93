# SPDX-License-Identifier: Apache-2.0
"""The one interface of position estimators, and the registry that finds them by name.

An estimator maps scenes to positions. Of a scene it may look at ``y``, ``h`` and ``codes``, which a
receiver has, and at nothing else; :func:`receiver_view` takes the rest away. A new estimator is one
class with a ``name``, registered by :func:`register`::

    @register("strongest")
    class Strongest:
        name = "strongest"

        def __init__(self, setting: Setting) -> None: ...
        def __call__(self, scenes: Scenes, num_sources: Tensor | None) -> Positions: ...
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from .configs import ConfigError, CovarianceConfig, SystemConfig
from .localize import Positions
from .refine import Symbols, refine_positions
from .simulate import Scenes
from .stopping_rule import detection_threshold

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

_HOMES = ("baselines", "learned")
"""Modules of the package that register estimators."""


class Estimator(Protocol):
    """Positions of the sources of B scenes, from y, h and codes."""

    name: str

    def __call__(self, scenes: Scenes, num_sources: Tensor | None) -> Positions:
        """``num_sources`` [B] int64 is K; None: the estimator decides. Sources come most certain
        first; a scene that is not finite has none."""
        ...


@dataclass(frozen=True)
class Setting:
    """What an estimator may know before it sees a scene."""

    system: SystemConfig
    covariance: CovarianceConfig = field(default_factory=CovarianceConfig)
    """How R_samp is made from the snapshots."""
    symbols: Symbols = "independent"
    """Whether symbols are fresh in every snapshot or constant over a scene."""
    checkpoint: Checkpoint | None = None
    """The network of the learned estimator, and its configuration."""


Factory = Callable[[Setting], Estimator]
_T = TypeVar("_T", bound=Callable[..., object])
_REGISTRY: dict[str, Factory] = {}


def register(name: str) -> Callable[[_T], _T]:
    """Class decorator: make the estimator known as ``name``."""

    def enter(factory: _T) -> _T:
        if name in _REGISTRY:
            raise ValueError(f"register: there is an estimator {name!r} already")
        _REGISTRY[name] = factory  # type: ignore[assignment]
        return factory

    return enter


def estimator_names() -> list[str]:
    """Names of all estimators, sorted.

    >>> "omp" in estimator_names()
    True
    """
    for home in _HOMES:
        importlib.import_module(f".{home}", __package__)
    return sorted(_REGISTRY)


def make_estimator(name: str, setting: Setting) -> Estimator:
    """The estimator ``name``.

    >>> make_estimator("omp", Setting(SystemConfig())).name
    'omp'
    """
    names = estimator_names()
    if name not in names:
        raise ConfigError(f"estimator: got {name!r}, expected one of {', '.join(names)}")
    return _REGISTRY[name](setting)


def receiver_view(scenes: Scenes) -> Scenes:
    """The scenes with everything but y, h and codes made meaningless (NaN, and K = 0)."""
    hidden = ("phi", "theta", "r", "power", "snr_db")
    blanks = {name: torch.full_like(getattr(scenes, name), float("nan")) for name in hidden}
    return dataclasses.replace(scenes, num_sources=torch.zeros_like(scenes.num_sources), **blanks)


def check_scenes(scenes: Scenes, system: SystemConfig) -> None:
    """Refuse scenes of another geometry than that of ``system``."""
    got = (*scenes.y.shape[1:], scenes.codes.shape[2])
    expected = (system.snapshots, system.antennas, system.elements)
    if got != expected:
        raise ConfigError(
            f"scenes: got (L, M, N) = {got}, expected {expected}, those of the system; use scenes "
            "of this system, or the system of these scenes"
        )


def checked_count(num_sources: Tensor, scenes: Scenes, system: SystemConfig) -> Tensor:
    """K of every scene, refused unless it is one integer of 0 to ``max_sources`` a scene."""
    if num_sources.shape != (len(scenes),) or num_sources.is_floating_point():
        raise ValueError(
            f"num_sources: got {num_sources.dtype} of shape {list(num_sources.shape)}, expected "
            f"one integer for each of {len(scenes)} scenes"
        )
    if len(scenes):
        low, high = int(num_sources.min()), int(num_sources.max())
        if low < 0 or high > system.max_sources:
            raise ValueError(
                f"num_sources: got {low} to {high}, expected 0 to max_sources = "
                f"{system.max_sources}"
            )
    return num_sources.to(scenes.y.device)


def keep_first(positions: Positions, count: Tensor) -> Positions:
    """The first ``count`` [B] sources of every scene."""
    slots = torch.arange(positions.valid.shape[1], device=count.device)
    return dataclasses.replace(positions, valid=positions.valid & (slots < count[:, None]))


def count_by_residual(
    scenes: Scenes, found: Positions, setting: Setting, false_alarm: float
) -> Tensor:
    """How many of the sources, taken in their order, the measurements believe in, [B].

    A source counts while all before it count and it takes more off the residual of y than
    :func:`~ris_pytorch_pipeline.stopping_rule.detection_threshold` allows to noise.
    """
    places = (found.phi, found.theta, found.r)
    count = torch.zeros(len(scenes), dtype=torch.int64, device=found.phi.device)
    going = torch.ones_like(count, dtype=torch.bool)
    left = torch.view_as_real(scenes.y).to(torch.float64).square().sum((1, 2, 3))
    for k in range(found.valid.shape[1]):
        share = detection_threshold(setting.system, k, false_alarm, setting.symbols)
        if share >= 1:
            break
        prefix = tuple(value[:, : k + 1] for value in places)
        points = (*prefix, found.valid[:, : k + 1])
        _, lower = refine_positions(
            scenes,
            points,  # type: ignore[arg-type]
            setting.system,
            steps=0,
            symbols=setting.symbols,
        )
        going = going & (left - lower > share * left)
        count, left = count + going, lower
    return count
