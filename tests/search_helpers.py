# SPDX-License-Identifier: Apache-2.0
"""A search that takes about half a second per trial, and storages for its workers."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import optuna

from ris_pytorch_pipeline.configs import ExperimentConfig, ModelConfig, SystemConfig, TrainConfig
from ris_pytorch_pipeline.hpo import HpoOptions
from ris_pytorch_pipeline.storage import find_storage

TINY = SystemConfig(n_h=4, n_v=4, antennas=4, snapshots=4, max_sources=2)


POSTGRES = os.environ.get("RISKERNELS_TEST_POSTGRES")
"""URL of a database, on which the tests of several workers are repeated."""
STORAGES = ["journal", *(["postgres"] if POSTGRES else [])]


def empty_storage(kind: str, folder: Path, study: str) -> str:
    """A storage of one of the ``STORAGES`` without a study of that name."""
    if kind == "journal":
        return str(folder / "study.journal")
    assert POSTGRES is not None
    with contextlib.suppress(KeyError):
        storage = find_storage(POSTGRES, folder, 2).open()
        optuna.delete_study(study_name=study, storage=storage)
    return POSTGRES


def search_options(out: Path, **changes: Any) -> HpoOptions:
    """Options of a search in ``out``; a trial is saved after every second of its four steps."""
    values: dict[str, Any] = {
        "n_trials": 1,
        "epochs_per_trial": 1,
        "space": "narrow",
        "out": str(out),
        "train_samples": 32,
        "val_samples": 16,
        "batch_size": 8,
        "device": "cpu",
        "system": TINY,
        "base": ExperimentConfig(
            model=ModelConfig(channels=4, conv_blocks=1, width=16, heads=2, layers=1),
            train=TrainConfig(checkpoint_every=2),
        ),
    }
    return HpoOptions(**{**values, **changes})
