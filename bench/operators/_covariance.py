# SPDX-License-Identifier: Apache-2.0
"""Inputs, definitions and counts common to the operators on covariances and their factors.

Symbols: B scenes, N elements, K source slots, L snapshots, k columns of a target or of steering
vectors, r columns of a factor X with R = X X^H + rho I, c = r + k. The definitions are those of
DESIGN.md 4.3 and 4.4, step by step on dense matrices, to be evaluated in complex128.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from bench.registry import Case, Cost, Inputs

BETA, LOADING, SHRINKAGE = 0.3, 0.01, 0.05
RIDGE = 1e-4
ORACLE_ENTRIES = 2**20
"""Of the dense complex128 matrices that an oracle holds at a time: 16 MiB, one scene of N = 1024.
The C allocator keeps blocks of that size; larger ones cost it a page fault for every page."""


def random_complex(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=generator)


def steering_vectors(b: int, n: int, k: int, generator: torch.Generator) -> Tensor:
    """[B, N, k] of unit norm, all entries of the same modulus."""
    phase = 2 * math.pi * torch.rand(b, n, k, generator=generator)
    return torch.polar(torch.full((b, n, k), n**-0.5), phase)


def source_counts(b: int, k: int, generator: torch.Generator) -> Tensor:
    """[B] int64 from 1 to k."""
    return torch.randint(1, k + 1, (b,), generator=generator)


def with_trace(factor: Tensor, trace: float) -> Tensor:
    """The factor scaled so that tr(X X^H) is ``trace`` in every scene."""
    energy = torch.view_as_real(factor).square().sum((1, 2, 3))
    return factor * (trace / energy).sqrt()[:, None, None]


def factor_near(target: Tensor, r: int, generator: torch.Generator) -> Tensor:
    """X [B, N, r] of trace N: 70 % near the target [B, N, k], the rest like snapshots."""
    b, n, k = target.shape
    near = with_trace(target + 0.3 * random_complex((b, n, k), generator), 0.7 * n)
    if r <= k:
        return with_trace(near[..., :r], n)
    rest = with_trace(random_complex((b, n, r - k), generator), 0.3 * n)
    return torch.cat([near, rest], dim=2)


def factored_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """factor X, rho, target_factor Y of trace N, steering and num_sources."""
    b, n, r, k = (case.sizes[name] for name in "BNrk")
    steering = steering_vectors(b, n, k, generator)
    power = 0.5 + torch.rand(b, 1, k, generator=generator)
    target = with_trace(steering * power.sqrt(), n)
    return {
        "factor": factor_near(target, r, generator),
        "rho": 0.02 + 0.01 * torch.rand(b, generator=generator),
        "target_factor": target,
        "steering": steering,
        "num_sources": source_counts(b, k, generator),
    }


def chosen(case: Case, values: Inputs, names: tuple[str, ...]) -> Inputs:
    """The inputs a case has: its arguments, and the upstream gradient if it has a backward."""
    kept = (*names, "upstream") if case.gradients else names
    return {name: values[name] for name in kept}


def dense(factor: Tensor, rho: Tensor | None = None) -> Tensor:
    """R = X X^H + rho I."""
    matrix = factor @ factor.mH
    if rho is None:
        return matrix
    return matrix + rho[:, None, None] * torch.eye(
        matrix.shape[-1], dtype=rho.dtype, device=rho.device
    )


def trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=1, dim2=2).real.sum(-1)[:, None, None]


def exact_blend(
    pred: Tensor,
    samp: Tensor,
    beta: float = BETA,
    loading: float = LOADING,
    shrinkage: float = SHRINKAGE,
) -> Tensor:
    """R_blend by its steps; the sample covariance is a constant."""
    n = pred.shape[-1]
    identity = torch.eye(n, dtype=pred.dtype, device=pred.device)

    def normalised(matrix: Tensor) -> Tensor:
        hermitian = (matrix + matrix.mH) / 2
        return hermitian * (n / trace(hermitian))

    blend = (1 - beta) * normalised(pred) + beta * normalised(samp.detach())
    blend = blend + loading * (trace(blend) / n) * identity
    blend = (1 - shrinkage) * blend + shrinkage * (trace(blend) / n) * identity
    return normalised(blend)


def exact_leakage(
    covariance: Tensor, steering: Tensor, num_sources: Tensor, ridge: float = RIDGE
) -> Tensor:
    """|R|^2 - 2 <R, S R> + <R, S R S> over |R|^2 with S = 2P - P^2, [B].

    For a Hermitian R it is |(I - P) R (I - P)|^2 / |R|^2. P = A (A^H A + ridge I)^-1 A^H is applied
    and not formed, so that N = 1024 stays affordable.
    """
    counted = torch.arange(steering.shape[-1], device=steering.device) < num_sources[:, None]
    columns = steering * counted[:, None]
    identity = torch.eye(columns.shape[-1], dtype=columns.dtype, device=columns.device)
    solved = torch.linalg.solve(columns.mH @ columns + ridge * identity, columns.mH)

    def projected(matrix: Tensor) -> Tensor:
        once = columns @ (solved @ matrix)
        return 2 * once - columns @ (solved @ once)

    def inner(one: Tensor, other: Tensor) -> Tensor:
        return (one.conj() * other).real.sum((1, 2))

    left = projected(covariance)
    both = projected(left.mH).mH
    total = inner(covariance, covariance)
    return (total - 2 * inner(covariance, left) + inner(covariance, both)) / total


def exact_spectrum(factor: Tensor, rho: Tensor | None = None) -> Tensor:
    """Leading min(N, r) eigenvalues of X X^H + rho I from the singular values of X, [B, min]."""
    values = torch.linalg.svdvals(factor).square()
    return values if rho is None else values + rho[:, None]


def gram_flops(n: int, columns: int) -> float:
    """A Gram matrix of complex columns, its Hermitian half counted once."""
    return 4.0 * n * columns**2


def back_flops(n: int, columns: int, wanted: int) -> float:
    """[N, columns] times [columns, wanted], complex."""
    return 8.0 * n * columns * wanted


def eigen_flops(r: int, vectors: bool) -> float:
    """Tridiagonal form of a complex Hermitian matrix, and the vectors taken back through it."""
    return (16 / 3 + (8 if vectors else 0)) * float(r) ** 3


def oracle_scenes(case: Case) -> int:
    return max(1, ORACLE_ENTRIES // case.sizes["N"] ** 2)


def verified_scenes(n: int) -> int | None:
    """Of large arrays four: their dense complex128 matrices take longer than all the timing."""
    return None if n <= 144 else 4


def factored_cases(name: str) -> tuple[Case, ...]:
    """Forward and backward to X, at the default array and at a large one."""
    cases = []
    for n, r in ((144, 21), (1024, 26)):
        sizes = {"B": 64, "N": n, "r": r, "k": 5}
        plain = Case(name, "forward", "forward", sizes, verified_scenes=verified_scenes(n))
        title = "forward + backward to X"
        cases += [plain, replace(plain, variant="gradient", title=title, gradients=("factor",))]
    return tuple(cases)


def joint_gram_cost(case: Case) -> Cost:
    """One Gram matrix of all columns; the gradient to X is a product of them with [r + k, r]."""
    b, n, r, k = (case.sizes[name] for name in "BNrk")
    read, written = 8.0 * b * n * (r + k), 8.0 * b * n * r
    double = b * gram_flops(n, r + k)
    if not case.gradients:
        return Cost(
            flops=0.0,
            double_flops=double,
            bytes_read=read,
            bytes_written=0.0,
            footprint=read,
            formula="float64 FLOPs: 4BN(r + k)²; bytes: 8BN(r + k)",
        )
    return Cost(
        flops=b * back_flops(n, r + k, r),
        double_flops=double,
        bytes_read=2 * read,
        bytes_written=written,
        footprint=read + written,
        formula=(
            "float64 FLOPs: 4BN(r + k)²; FLOPs: 8BN(r + k)r; bytes: 16BN(r + k) read + 8BNr written"
        ),
    )
