# SPDX-License-Identifier: Apache-2.0
"""Named configurations of whole trainings, for ``ris train --recipe``.

A recipe draws its scenes on the fly and needs no data. Its network is not told the signal-to-noise
ratio of a scene, since no receiver knows it, so that its estimates may be compared with those of
methods that are not told either.
"""

from __future__ import annotations

from .configs import ConfigError, DataConfig, ExperimentConfig, ModelConfig, TrainConfig

RECIPES: dict[str, ExperimentConfig] = {
    # 4,000 steps of 64 scenes.
    "default": ExperimentConfig(
        model=ModelConfig(known_snr=False),
        data=DataConfig(train_samples=12_800, val_samples=1024),
        train=TrainConfig(epochs=20, warmup_steps=100, patience=20),
    ),
}
"""The recipes by name."""


def recipe(name: str) -> ExperimentConfig:
    """The recipe called ``name``.

    >>> recipe("default").train.epochs
    20
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe: got {name!r}, expected one of {', '.join(RECIPES)}")
    return RECIPES[name]
