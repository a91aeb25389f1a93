# SPDX-License-Identifier: Apache-2.0
"""PyTorch with one factorisation a scene: the algebra of the kernel, right where |c|^2 is the same
for every snapshot and H is shared.

Autograd through the one factor would give a wrong gradient to the codes (it takes the moduli of
the first snapshot for those of all), so the backward is written out with the kernel's formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.operators._tikhonov import ALPHA, one_factorisation
from bench.peers._tikhonov import covariance, serves
from bench.registry import Case, Inputs, Peer


def factorise(h: Tensor, codes: Tensor) -> Tensor:
    """Cholesky factor of H diag(|c|^2) H^H + alpha I, [B,M,M]."""
    weights = torch.view_as_real(codes[:, :1]).square().sum(-1)
    loading = ALPHA * torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
    return torch.linalg.cholesky_ex(torch.baddbmm(loading, h * weights, h.mH))[0]


def solve(factor: Tensor, rhs: Tensor) -> Tensor:
    """S^{-1} of every row of rhs [B,L,M]."""
    return torch.cholesky_solve(rhs.mT, factor).mT


def snapshots(y: Tensor, h: Tensor, codes: Tensor) -> Tensor:
    return (solve(factorise(h, codes), y) @ h.conj()) * codes.conj()


def covariance_and_gradients(
    y: Tensor, h: Tensor, codes: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """R and the gradients to y, h and codes for G = dL/dR."""
    scale = y.shape[1] ** -0.5
    conj_h, conj_codes = h.conj(), codes.conj()
    factor = factorise(h, codes)
    z = solve(factor, y * scale)
    back_z = z @ conj_h
    a = back_z * conj_codes
    result = a.mT @ a.conj()
    grad_a = a @ (upstream.mT + upstream.conj())
    w = solve(factor, (grad_a * codes) @ h.mT)
    back_w = w @ conj_h
    q = grad_a - back_w * conj_codes
    grad_h = z.mT @ (q * codes).conj() - w.mT @ (a * codes).conj()
    grad_codes = q.conj() * back_z - a.conj() * back_w
    return result, w * scale, grad_h, grad_codes


def call(case: Case) -> tuple:
    """The function of a case and the names of its arguments."""
    if case.gradients:
        return covariance_and_gradients, ("y", "h", "codes", "upstream")
    return covariance(snapshots, case), ("y", "h", "codes")


def serves_shared(case: Case) -> bool:
    by_hand = not case.gradients or case.operator == "tikhonov_covariance"
    return serves(case) and one_factorisation(case) and by_hand


def prepare(case: Case, inputs: Inputs):
    function, names = call(case)
    values = [inputs[name] for name in names]

    def run():
        with torch.no_grad():
            return function(*values)

    return run


PEERS = (
    Peer(
        "torch_shared_factorisation",
        "PyTorch, one factorisation",
        serves_shared,
        prepare,
        note="backward written out by hand",
    ),
)
