# SPDX-License-Identifier: Apache-2.0
"""Inputs, oracle and cost common to the Tikhonov operators.

Symbols: B scenes, L snapshots, M base-station antennas, N elements; y [B,L,M], h [B,M,N] or
[B,L,M,N], codes [B,L,N], Phi = H diag(c).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.registry import Case, Cost, Inputs

ALPHA = 1e-3
ARGUMENTS = ("y", "h", "codes")
DEFAULT = {"B": 64, "L": 16, "M": 16, "N": 144}
SMALL = {"B": 64, "L": 5, "M": 7, "N": 31}
LARGE = {"B": 8, "L": 32, "M": 32, "N": 1024}
LARGEST_N_SIDE = 400
"""Elements up to which N x N systems are solved, by the oracle and by peers."""


def per_snapshot(case: Case) -> bool:
    return "per-snapshot" in case.variant


def varying(case: Case) -> bool:
    return "varying-modulus" in case.variant


def one_factorisation(case: Case) -> bool:
    """Whether all Phi_l Phi_l^H of a scene are the same matrix."""
    return not (per_snapshot(case) or varying(case))


def inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Random y, h with E|h|^2 = 1/N, and codes of unit modulus or of moduli from 0.5 to 1.5."""
    b, snapshots, m, n = (case.sizes[name] for name in "BLMN")
    h_shape = (b, snapshots, m, n) if per_snapshot(case) else (b, m, n)
    modulus = torch.ones(b, snapshots, n)
    if varying(case):
        modulus = 0.5 + torch.rand(b, snapshots, n, generator=generator)
    phase = 2 * math.pi * torch.rand(b, snapshots, n, generator=generator)
    dtype = torch.complex64
    return {
        "y": torch.randn(b, snapshots, m, dtype=dtype, generator=generator),
        "h": torch.randn(h_shape, dtype=dtype, generator=generator) / math.sqrt(n),
        "codes": torch.polar(modulus, phase),
    }


def _loaded_solve(system: Tensor, rhs: Tensor) -> Tensor:
    """(system + alpha I)^{-1} rhs.

    By Cholesky: torch 2.13 with MKL on several threads fails in batched complex LU at N = 256.
    """
    identity = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
    factor = torch.linalg.cholesky(system + ALPHA * identity)
    return torch.cholesky_solve(rhs.unsqueeze(-1), factor).squeeze(-1)


def oracle_snapshots(y: Tensor, h: Tensor, codes: Tensor, largest: int = LARGEST_N_SIDE) -> Tensor:
    """a_l = (Phi_l^H Phi_l + alpha I_N)^{-1} Phi_l^H y_l, solved on the N side.

    Above ``largest`` elements on the M side, a_l = Phi_l^H (Phi_l Phi_l^H + alpha I_M)^{-1} y_l:
    the same in complex128, where N x N solves would take longer than all the timing.
    """
    phi = (h if h.dim() == 4 else h.unsqueeze(1)) * codes.unsqueeze(-2)
    if phi.shape[-1] > largest:
        z = _loaded_solve(phi @ phi.mH, y)
        return (phi.mH @ z.unsqueeze(-1)).squeeze(-1)
    return _loaded_solve(phi.mH @ phi, (phi.mH @ y.unsqueeze(-1)).squeeze(-1))


def oracle_covariance(y: Tensor, h: Tensor, codes: Tensor) -> Tensor:
    """R = (1/L) sum_l a_l a_l^H."""
    a = oracle_snapshots(y, h, codes)
    return torch.einsum("bli,blj->bij", a, a.conj()) / a.shape[1]


def solve_multiply_adds(case: Case) -> tuple[float, str]:
    """Real multiply-adds of the estimates of one scene, Hermitian halves counted once."""
    snapshots, m, n = (case.sizes[name] for name in "LMN")
    if per_snapshot(case):
        gram, text, factors = 2 * m * m * n * snapshots, "2LM²N", snapshots
    elif varying(case):
        # Products h_i conj(h_j) once, then one real-weighted sum of them for each snapshot.
        gram, text, factors = 2 * m * m * n + snapshots * m * m * n, "2M²N + LM²N", snapshots
    else:
        gram, text, factors = 2 * m * m * n, "2M²N", 1
    total = gram + factors * 2 * m**3 / 3 + 4 * snapshots * (m * m + m * n + n)
    return total, f"{text} + {'⅔LM³' if factors > 1 else '⅔M³'} + 4LM² + 4LMN + 4LN"


def input_elements(case: Case) -> int:
    b, snapshots, m, n = (case.sizes[name] for name in "BLMN")
    channels = snapshots if per_snapshot(case) else 1
    return b * (snapshots * m + channels * m * n + snapshots * n)


def forward_cost(case: Case, extra: float, text: str, output: int, output_text: str) -> Cost:
    """Cost of the estimates and ``extra`` multiply-adds a scene that make ``output`` elements."""
    adds, formula = solve_multiply_adds(case)
    read = 8.0 * input_elements(case)
    written = 8.0 * output
    return Cost(
        flops=2 * case.sizes["B"] * (adds + extra),
        bytes_read=read,
        bytes_written=written,
        footprint=read + written,
        formula=f"FLOPs: 2B({formula}{text}); bytes: 8(inputs + {output_text})",
    )
