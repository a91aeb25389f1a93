# SPDX-License-Identifier: Apache-2.0
"""PyTorch push-through: M x M systems, as the equation reads and with the Gram matrices blocked.

``torch_push_through`` forms Phi [B,L,M,N] and batches everything over scenes and snapshots.
``torch_push_through_blocked`` never forms Phi where H is shared: the Gram matrices of a scene are
one [LM,N] x [N,M] product, and the back-projections another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.operators._calls import torch_call
from bench.operators._tikhonov import ALPHA, ARGUMENTS, per_snapshot
from bench.peers._tikhonov import covariance, effective_channel, serves
from bench.registry import Case, Inputs, Peer


def solve(gram: Tensor, y: Tensor) -> Tensor:
    """(gram + alpha I)^{-1} y by Cholesky, gram [..., M, M] and y [..., M]."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    system = gram + ALPHA * identity
    factor, _ = torch.linalg.cholesky_ex(system)
    return torch.cholesky_solve(y.unsqueeze(-1), factor).squeeze(-1)


def snapshots(y: Tensor, h: Tensor, codes: Tensor) -> Tensor:
    phi = effective_channel(h, codes)
    z = solve(phi @ phi.mH, y)
    return (phi.mH @ z.unsqueeze(-1)).squeeze(-1)


def snapshots_blocked(y: Tensor, h: Tensor, codes: Tensor) -> Tensor:
    b, length, m = y.shape
    weights = torch.view_as_real(codes).square().sum(-1)
    weighted = (h.unsqueeze(1) * weights.unsqueeze(2)).reshape(b, length * m, -1)
    z = solve((weighted @ h.mH).reshape(b, length, m, m), y)
    return (z @ h.conj()) * codes.conj()


def prepare(case: Case, inputs: Inputs):
    return torch_call(covariance(snapshots, case), case, inputs, ARGUMENTS)


def prepare_blocked(case: Case, inputs: Inputs):
    return torch_call(covariance(snapshots_blocked, case), case, inputs, ARGUMENTS)


PEERS = (
    Peer("torch_push_through", "PyTorch push-through", serves, prepare),
    Peer(
        "torch_push_through_blocked",
        "PyTorch push-through, blocked",
        lambda case: serves(case) and not per_snapshot(case),
        prepare_blocked,
    ),
)
