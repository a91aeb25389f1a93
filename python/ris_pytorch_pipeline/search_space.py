# SPDX-License-Identifier: Apache-2.0
"""Search spaces of the hyperparameter search, as data over the configuration's fields.

A dimension names a field of :class:`ExperimentConfig` by its dotted path. Weights of loss terms
are searched on a logarithmic scale and so never reach 0: every term is computed in every trial,
which the objective of :mod:`.hpo` relies on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .configs import ConfigError, ExperimentConfig, from_dict, to_dict

if TYPE_CHECKING:
    import optuna

Value: TypeAlias = "float | int"


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included."""

    path: str
    low: float
    high: float
    log: bool = False
    integer: bool = False

    def suggest(self, trial: optuna.trial.Trial) -> Value:
        """The trial's value."""
        if self.integer:
            return trial.suggest_int(self.path, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, log=self.log)

    def nearest(self, value: Value) -> Value:
        """The value of the dimension closest to ``value``."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of a few numbers."""

    path: str
    options: tuple[int, ...]

    def suggest(self, trial: optuna.trial.Trial) -> Value:
        """The trial's value."""
        return trial.suggest_categorical(self.path, self.options)

    def nearest(self, value: Value) -> Value:
        """The option closest to ``value`` in ratio."""
        return min(self.options, key=lambda option: abs(math.log(option / max(value, 1e-12))))


Space: TypeAlias = "tuple[Range | Choice, ...]"


def _log(path: str, low: float, high: float) -> Range:
    return Range(path, low, high, log=True)


def _count(path: str, low: int, high: int) -> Range:
    return Range(path, low, high, integer=True)


SPACES: dict[str, Space] = {
    "wide": (
        _log("train.lr_backbone", 1e-4, 5e-3),
        _log("train.lr_head", 2e-4, 1e-2),
        _log("train.weight_decay", 1e-6, 1e-2),
        _log("train.clip_norm", 0.2, 5.0),
        Choice("model.channels", (16, 24, 32, 48, 64)),
        _count("model.conv_blocks", 1, 4),
        Choice("model.width", (64, 128, 192, 256)),
        Choice("model.heads", (2, 4, 8)),
        _count("model.layers", 1, 4),
        Range("model.dropout", 0.0, 0.3),
        Range("covariance.beta", 0.05, 0.6),
        _log("covariance.alpha", 1e-4, 1e-1),
        Range("covariance.shrinkage", 0.0, 0.2),
        _log("loss.nmse_blend", 0.2, 5.0),
        _log("loss.nmse_pred", 0.1, 5.0),
        _log("loss.subspace", 0.02, 2.0),
        _log("loss.eigengap", 0.005, 0.5),
        _log("loss.margin", 0.005, 0.5),
        _log("loss.angle", 0.2, 5.0),
        _log("loss.range_log", 0.1, 5.0),
        _log("loss.existence", 0.1, 5.0),
    ),
    "narrow": (
        _log("train.lr_backbone", 4e-4, 3e-3),
        _log("train.lr_head", 8e-4, 6e-3),
        Range("model.dropout", 0.0, 0.1),
        Range("covariance.beta", 0.1, 0.4),
        _log("covariance.alpha", 3e-4, 1e-2),
        _log("loss.nmse_pred", 0.2, 2.0),
        _log("loss.subspace", 0.05, 1.0),
        _log("loss.angle", 0.5, 2.0),
        _log("loss.range_log", 0.2, 2.0),
    ),
}
"""The search spaces by name: ``wide`` includes the network's size, ``narrow`` does not."""


def _leaf(config: ExperimentConfig, path: str) -> Any:
    section, name = path.split(".")
    return getattr(getattr(config, section), name)


def starting_point(space: Space, config: ExperimentConfig) -> dict[str, Value]:
    """The point of ``space`` nearest to ``config``, as parameters of a trial.

    >>> starting_point(SPACES["narrow"], ExperimentConfig())["covariance.beta"]
    0.3
    """
    return {dimension.path: dimension.nearest(_leaf(config, dimension.path)) for dimension in space}


def apply_parameters(config: ExperimentConfig, parameters: Mapping[str, Any]) -> ExperimentConfig:
    """``config`` with the fields named by dotted paths replaced; unknown paths are refused.

    >>> apply_parameters(ExperimentConfig(), {"loss.angle": 2.0}).loss.angle
    2.0
    """
    tree = to_dict(config)
    for path, value in parameters.items():
        section, _, name = path.partition(".")
        if name not in tree.get(section, {}):
            raise ConfigError(f"unknown search dimension {path!r}: no such configuration field")
        tree[section][name] = value
    return from_dict(ExperimentConfig, tree)
