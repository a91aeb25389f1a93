# SPDX-License-Identifier: Apache-2.0
"""What all trials of a study have in common, and how that of two runs is compared."""

from __future__ import annotations

import copy
import json
from typing import Any

from .configs import ExperimentConfig, to_dict
from .trainer import FREE_TO_CHANGE

CHANGES_NO_VALUE = FREE_TO_CHANGE - {"epochs", "patience"}
"""Fields of TrainConfig that may differ between two runs of one study."""


def settings_differences(saved: str, present: dict[str, Any]) -> list[str]:
    """``key old -> new`` for every setting of two runs, the first one's as JSON, that differs.

    >>> from ris_pytorch_pipeline.configs import TrainConfig
    >>> old = {"config": {"train": {"batch_size": 8, "log_every": 3}}}  # before the other fields
    >>> new = {"config": to_dict(ExperimentConfig(train=TrainConfig(batch_size=9)))}
    >>> settings_differences(json.dumps(old), new)
    ['config.train.batch_size 8 -> 9']
    """
    return _walk(_comparable(json.loads(saved)), _comparable(json.loads(json.dumps(present))))


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that may change a value; fields that a study did not know have their default."""
    if "config" not in settings:
        return settings
    defaults = json.loads(json.dumps(to_dict(ExperimentConfig())))
    config = _merged(defaults, settings["config"])
    train = config["train"].items()
    config["train"] = {name: value for name, value in train if name not in CHANGES_NO_VALUE}
    return {**settings, "config": config}


def _merged(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(defaults)
    for name, value in given.items():
        held = merged.get(name)
        nested = isinstance(held, dict) and isinstance(value, dict)
        merged[name] = _merged(merged[name], value) if nested else value
    return merged


def _walk(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [line for n in names for line in _walk(old.get(n), new.get(n), f"{key}.{n}")]
    return [] if old == new else [f"{key[1:]} {old!r} -> {new!r}"]
