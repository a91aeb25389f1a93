# SPDX-License-Identifier: Apache-2.0
"""Eager PyTorch of the NMSE, as it is usually written and at its best.

``torch_eager_abs`` is the expression found in training code. ``torch_eager`` works on the real
views throughout and takes the sums as vector norms, the fastest of six forms measured forward and
backward (abs, re^2 + im^2, sums or norms of the real view, of E or of both inputs, inner
products). Off-diagonal sums are totals minus diagonals.
"""

from __future__ import annotations

from torch import Tensor

from bench.operators._calls import torch_call
from bench.operators.hermitian_nmse import ARGUMENTS, EPS, LAM_DIAG, LAM_OFF
from bench.registry import Case, Inputs, Peer
from ris_pytorch_pipeline import eager


def _combine(error_diag: Tensor, error: Tensor, target_diag: Tensor, target: Tensor) -> Tensor:
    diagonal = error_diag / (target_diag + EPS)
    off = (error - error_diag) / (target - target_diag + EPS)
    return (LAM_DIAG * diagonal + LAM_OFF * off) / (LAM_DIAG + LAM_OFF)


def nmse_abs(estimate: Tensor, target: Tensor) -> Tensor:
    error, power = (estimate - target).abs().square(), target.abs().square()

    def diagonal(x: Tensor) -> Tensor:
        return x.diagonal(dim1=1, dim2=2).sum(-1)

    return _combine(diagonal(error), error.sum((1, 2)), diagonal(power), power.sum((1, 2)))


def nmse_norms(estimate: Tensor, target: Tensor) -> Tensor:
    return eager.nmse(estimate, target, LAM_DIAG, LAM_OFF)


def _serves(case: Case) -> bool:
    return case.operator == "hermitian_nmse"


def _prepare(case: Case, inputs: Inputs):
    return torch_call(nmse_norms, case, inputs, ARGUMENTS)


def _prepare_abs(case: Case, inputs: Inputs):
    return torch_call(nmse_abs, case, inputs, ARGUMENTS)


PEERS = (
    Peer("torch_eager", "PyTorch eager, vector norms", _serves, _prepare),
    Peer("torch_eager_abs", "PyTorch eager, abs().square()", _serves, _prepare_abs),
)
