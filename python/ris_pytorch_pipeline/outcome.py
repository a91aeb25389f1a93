# SPDX-License-Identifier: Apache-2.0
"""What a training is judged by: losses on scenes held out, and the result of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from .distributed import Processes
from .loss import LocalizationLoss
from .model import LocalizationNet, infer
from .simulate import Scenes

Metrics = dict[str, float]


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a training."""

    best_val_loss: float
    """Lowest validation loss; infinite if none was finite."""
    first_train_loss: float
    """Mean over the first ``log_every`` real steps, at most the first half of all."""
    last_train_loss: float
    """Mean over as many last steps."""
    history: list[Metrics]
    """Metrics of every epoch."""
    skipped_steps: int
    """Steps skipped because of a non-finite gradient or loss."""
    checkpoint: Path
    """The best checkpoint, or the last where no validation loss was finite."""
    signum: int | None = None
    """Number of a signal that came when no step was left to stop at; the training is complete."""


@torch.no_grad()
def validate(
    net: LocalizationNet,
    loss: LocalizationLoss,
    batches: Iterable[Scenes],
    processes: Processes | None = None,
) -> Metrics:
    """Mean of every loss term over the scenes of ``batches``, through :func:`infer`.

    With ``processes`` the batches are this process's share, and the mean is over those of all.
    """
    was_training, device = net.training, next(net.parameters()).device
    net.eval()
    sums = {name: torch.zeros((), device=device) for name in loss.names}
    count = 0
    for scenes in batches:
        for name, value in loss(infer(net, scenes), scenes).items():
            sums[name] = sums[name] + value * len(scenes)
        count += len(scenes)
    net.train(was_training)
    total = torch.stack(list(sums.values()))
    if processes is not None:
        total, count = processes.reduce_sums(total, count)
    return dict(zip(sums, (total / count).tolist(), strict=True))
