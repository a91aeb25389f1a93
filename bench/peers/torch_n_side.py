# SPDX-License-Identifier: Apache-2.0
"""PyTorch, N side: batched N x N systems (Phi^H Phi + alpha I) a = Phi^H y.

The systems are Hermitian positive definite, and Cholesky is the fastest of PyTorch's solvers for
them. Memory holds one N x N matrix a snapshot, hence the limit on the scenes that are timed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.operators._calls import torch_call
from bench.operators._tikhonov import ALPHA, ARGUMENTS
from bench.peers._tikhonov import covariance, effective_channel, serves_n_side
from bench.registry import Case, Inputs, Peer


def snapshots(y: Tensor, h: Tensor, codes: Tensor) -> Tensor:
    phi = effective_channel(h, codes)
    system = phi.mH @ phi
    system.diagonal(dim1=-2, dim2=-1).add_(ALPHA)
    factor, _ = torch.linalg.cholesky_ex(system)
    return torch.cholesky_solve(phi.mH @ y.unsqueeze(-1), factor).squeeze(-1)


def prepare(case: Case, inputs: Inputs):
    return torch_call(covariance(snapshots, case), case, inputs, ARGUMENTS)


PEERS = (
    Peer(
        name="torch_n_side",
        title="PyTorch, N x N solves",
        serves=serves_n_side,
        prepare=prepare,
        tolerance=5e-2,
        scenes=8,
        capturable=False,
        note="float32 N-side solves lose three to five digits to conditioning",
    ),
)
