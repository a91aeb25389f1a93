# SPDX-License-Identifier: Apache-2.0
"""Localize held-out scenes from a checkpoint: `localize_from_checkpoint.py [CHECKPOINT]`.

Without a checkpoint (such as results_train/best of `ris train`) a small one is trained first, for
a few seconds on a small surface and at high SNR: enough to see how it works, not what it can do.
"""

import sys
import tempfile

import torch

from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SimulationConfig,
    SystemConfig,
    TrainConfig,
)
from ris_pytorch_pipeline.geometry import to_cartesian
from ris_pytorch_pipeline.localize import estimate_positions
from ris_pytorch_pipeline.metrics import match_positions, summarise_matches
from ris_pytorch_pipeline.model import infer
from ris_pytorch_pipeline.simulate import Simulator
from ris_pytorch_pipeline.train import fit

SMALL = ExperimentConfig(
    system=SystemConfig(n_h=8, n_v=8, max_sources=2, r_max=4.0),
    simulation=SimulationConfig(snr_db_min=10.0, snr_db_max=20.0),
    model=ModelConfig(channels=8, conv_blocks=1, width=32, heads=2, layers=1),
    data=DataConfig(train_samples=512, val_samples=64),
    train=TrainConfig(epochs=3, batch_size=16, device="cpu"),
)

with tempfile.TemporaryDirectory() as folder:
    path = sys.argv[1] if sys.argv[1:] else fit(SMALL, folder).checkpoint
    checkpoint = load_checkpoint(path)
config = checkpoint.config
scenes = Simulator(config.system, config.simulation, seed=1, split="held-out").batch(8)
with torch.inference_mode():
    inference = infer(checkpoint.net, scenes)  # scenes -> factor -> R_pred, R_samp -> R_blend
found = estimate_positions(inference.r_blend, scenes.num_sources, config.system)
truth = to_cartesian(scenes.phi, scenes.theta, scenes.r)

matches = []
for scene in range(len(scenes)):
    estimates = found.cartesian[scene][found.valid[scene]].tolist()
    sources = truth[scene][scenes.mask[scene]].tolist()
    match = match_positions(estimates, sources)
    for i, k, error in zip(match.estimate, match.truth, match.error, strict=True):
        pair = "{:5.2f} {:5.2f} {:5.2f} m, truth {:5.2f} {:5.2f} {:5.2f} m".format(
            *estimates[i], *sources[k]
        )
        print(f"scene {scene}: estimate {pair}, error {error:.2f} m")
    matches.append(match)
print(summarise_matches(matches))
