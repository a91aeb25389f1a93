# SPDX-License-Identifier: Apache-2.0
"""Scenes and their true covariances for the tests of spectra and localization."""

from __future__ import annotations

import torch
from torch import Tensor

from ris_pytorch_pipeline.configs import (
    SimulationConfig,
    SystemConfig,
)
from ris_pytorch_pipeline.simulate import (
    Scenes,
    Simulator,
    true_factor,
    true_steering,
)

SMALL = SystemConfig(n_h=4, n_v=3, antennas=4, snapshots=4, max_sources=2)


def scenes_of(system: SystemConfig, seed: int, count: int, **simulation: float) -> Scenes:
    config = SimulationConfig(**simulation)  # type: ignore[arg-type]
    return Simulator(system, config, seed=seed, split="test").batch(count)


def factors_of(system: SystemConfig, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """R_true as factors (X, rho)."""
    columns = true_steering(system, scenes, dtype=torch.complex128)
    return true_factor(system, scenes, columns), torch.zeros(len(scenes), dtype=torch.float64)
