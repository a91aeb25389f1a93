# SPDX-License-Identifier: Apache-2.0
"""The loop the library replaces: one N x N solve for each snapshot of each scene, in Python.

Two scenes are timed and scaled to the batch: the loop has no work that scenes share.
"""

from __future__ import annotations

import torch

from bench.operators._tikhonov import ALPHA
from bench.peers._tikhonov import serves_n_side
from bench.registry import Case, Inputs, Peer


def prepare(case: Case, inputs: Inputs):
    y, h, codes = (inputs[name] for name in ("y", "h", "codes"))
    n = codes.shape[2]
    loading = ALPHA * torch.eye(n, dtype=y.dtype, device=y.device)

    def run() -> torch.Tensor:
        covariances, estimates = [], []
        for b in range(y.shape[0]):
            covariance = torch.zeros(n, n, dtype=y.dtype, device=y.device)
            for snapshot in range(y.shape[1]):
                channel = h[b] if h.dim() == 3 else h[b, snapshot]
                phi = channel * codes[b, snapshot]
                system = phi.mH @ phi + loading
                a = torch.linalg.solve(system, phi.mH @ y[b, snapshot])
                estimates.append(a)
                covariance += torch.outer(a, a.conj())
            covariances.append(covariance / y.shape[1])
        if case.operator == "tikhonov_snapshots":
            return torch.stack(estimates).reshape(codes.shape)
        return torch.stack(covariances)

    return run


PEERS = (
    Peer(
        name="naive_loop",
        title="Python loop of N x N solves",
        serves=serves_n_side,
        prepare=prepare,
        tolerance=5e-2,
        scenes=2,
        capturable=False,
        note="float32 N-side solves lose three to five digits to conditioning",
    ),
)
