# SPDX-License-Identifier: Apache-2.0
"""Optimal assignment of the network's slots to the sources of a scene.

For up to :data:`EXHAUSTIVE_SLOTS` slots every permutation is tried, vectorised on the device of
the cost: exact, and the host never waits for the device. Beyond that SciPy's Hungarian method
(Jonker-Volgenant) runs on the host, at one transfer each way per call.
"""

from __future__ import annotations

import functools
import itertools

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

EXHAUSTIVE_SLOTS = 6


@functools.lru_cache(maxsize=32)
def _permutations(slots: int, device: torch.device) -> Tensor:
    return torch.tensor(list(itertools.permutations(range(slots))), device=device)


def assign_slots(cost: Tensor, mask: Tensor) -> Tensor:
    """Slot of every source, by least total cost.

    Args:
        cost: [B, K, K] real, ``cost[b, i, j]`` of slot i for source j; no gradient is needed.
            A scene with a non-finite cost gets some permutation.
        mask: [B, K] bool, the sources that exist; the others are free.

    Returns:
        [B, K] int64, a permutation per scene: entry j is the slot of source j. Sources that do
        not exist get the slots that are left over.

    >>> cost = torch.tensor([[[0.0, 5.0], [1.0, 9.0]]])
    >>> assign_slots(cost, torch.tensor([[True, True]]))
    tensor([[1, 0]])
    """
    slots = cost.shape[-1]
    if cost.ndim != 3 or cost.shape[1] != slots or tuple(mask.shape) != (cost.shape[0], slots):
        raise ValueError(
            f"assign_slots: got cost {list(cost.shape)} and mask {list(mask.shape)}; "
            "expected [B, K, K] and [B, K]"
        )
    cost = torch.nan_to_num(cost.detach().float(), nan=0.0, posinf=1e30, neginf=-1e30)
    cost = cost.masked_fill(~mask[:, None, :], 0.0)
    if slots <= EXHAUSTIVE_SLOTS:
        permutations = _permutations(slots, cost.device)
        totals = cost[:, permutations, torch.arange(slots, device=cost.device)].sum(-1)
        return permutations[totals.argmin(1)]
    pairs = [linear_sum_assignment(matrix.T)[1] for matrix in cost.cpu().numpy()]
    return torch.stack([torch.as_tensor(slot) for slot in pairs]).to(cost.device)
