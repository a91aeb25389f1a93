# SPDX-License-Identifier: Apache-2.0
"""Parts that the PyTorch peers of the Tikhonov operators share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bench.operators._tikhonov import LARGEST_N_SIDE
from bench.registry import Case


def serves(case: Case) -> bool:
    return case.operator in ("tikhonov_covariance", "tikhonov_snapshots")


def serves_n_side(case: Case) -> bool:
    """Forward alone, and where an N x N solve for each snapshot does not take minutes."""
    return serves(case) and not case.gradients and case.sizes["N"] <= LARGEST_N_SIDE


def effective_channel(h: Tensor, codes: Tensor) -> Tensor:
    """Phi = H diag(c), [B,L,M,N]."""
    return (h if h.dim() == 4 else h.unsqueeze(1)) * codes.unsqueeze(-2)


def covariance(snapshots: Callable[..., Tensor], case: Case) -> Callable[..., Tensor]:
    """The function of a case: the estimates, or (1/L) sum_l a_l a_l^H of them.

    y is scaled by L^(-1/2) beforehand: that spares a pass over the N x N output.
    """
    if case.operator == "tikhonov_snapshots":
        return snapshots

    def function(y: Tensor, h: Tensor, codes: Tensor) -> Tensor:
        a = snapshots(y * y.shape[1] ** -0.5, h, codes)
        return a.mT @ a.conj()

    return function
