# SPDX-License-Identifier: Apache-2.0
"""Scenes for the factored operators, and calls of their CUDA kernels compared with the definition.

The reference runs in complex128 on the values that the kernels get.
"""

from __future__ import annotations

import tikhonov_inputs as ti
import torch
from cuda_on_cpu import factored_operators as operators
from cuda_on_cpu.factored_operators import BlendOptions, NmseOptions
from torch import Tensor

from riskernels.reference import factored_blend as blend_reference
from riskernels.reference import factored_leakage as leakage_reference
from riskernels.reference import factored_nmse as nmse_reference
from riskernels.testing import assert_close, tolerance

WIDE = tolerance(torch.complex128)


def scene(
    b: int, n: int, r: int, k: int, dtype: torch.dtype, distance: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """X, rho and Y with X X^H + rho I near Y Y^H."""
    g = torch.Generator().manual_seed(1000 * n + 10 * r + k)
    y = ti.complex_normal(b, n, k, dtype=torch.complex128, seed=g)
    # A diagonal of R - T far from constant.
    y = y * torch.linspace(0.5, 2, n, dtype=torch.float64)[:, None]
    x = distance * ti.complex_normal(b, n, r, dtype=torch.complex128, seed=g) / r**0.5
    x[..., : min(r, k)] += y[..., : min(r, k)]
    rho = distance * torch.rand(b, generator=g, dtype=torch.float64)
    return x.to(dtype), rho.to(dtype.to_real()), y.to(dtype)


def masks(b: int, n: int) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(n)
    return [None, torch.rand(n, generator=g) < 0.7, torch.rand(b, n, generator=g) < 0.7]


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [
        None if t is None else t.to(torch.complex128 if t.is_complex() else torch.float64)
        for t in tensors
    ]


def check_nmse(
    x: Tensor,
    rho: Tensor | None,
    y: Tensor,
    mask: Tensor | None = None,
    weights: NmseOptions = operators.NMSE_DEFAULTS,
    **options: int,
) -> None:
    """Value, sums, Gram matrix and all gradients."""
    bound = tolerance(x.dtype)
    exact = wide(x, rho, y)
    nmse, sums, gram = operators.nmse_forward(x, rho, y, mask, weights, **options)
    value, parts, products = nmse_reference.factored_nmse_forward(*exact, mask, *weights)
    assert_close(gram, products, WIDE, "gram")
    assert torch.equal(gram, gram.mH.resolve_conj())
    for i, name in ((0, "e_D"), (2, "t_D")):
        assert_close(sums[:, i], parts[:, i], 1e-12, name)
    # Differences of the squares of the Gram matrix, to the precision of these.
    scale = products.abs().square().sum((1, 2))
    for i in (1, 3):
        assert ((sums[:, i] - parts[:, i]).abs() <= 1e-13 * scale).all()
    assert_close(nmse, value, max(bound, 1e-9), "nmse")
    grad = torch.randn(x.shape[0], dtype=torch.float64)
    wanted = nmse_reference.factored_nmse_backward(
        grad, *exact, parts, products, mask, *weights, need_rho=rho is not None
    )
    got = operators.nmse_backward(
        grad.to(nmse.dtype), x, rho, y, (sums, gram), mask, weights,
        (True, rho is not None, True), **options,
    )  # fmt: skip
    # Every gradient is a difference, of X and of Y, each with its own rounding.
    r, total = x.shape[2], weights.lam_diag + weights.lam_off
    at_rows = 4 * grad * weights.lam_off / (total * (parts[:, 3] + weights.eps))
    sides = [nmse_reference.keep_rows(t, mask) * at_rows[:, None, None] for t in exact[::2]]
    products_of = [sides[0] @ products[:, :r], sides[1] @ products[:, r:]]
    at_trace = 2 * grad * weights.lam_diag / (total * (parts[:, 2] + weights.eps))
    terms = (
        sum(t[:, :, :r].norm().item() for t in products_of),
        (at_trace * products.diagonal(dim1=1, dim2=2).real.sum(1)).norm().item(),
        sum(t[:, :, r:].norm().item() for t in products_of),
    )
    for name, g, w, term in zip(("factor", "rho", "target"), got, wanted, terms, strict=True):
        if g is not None:
            condition = term / w.norm().item() if w.norm() > 0 else 1.0
            assert condition < 1000
            assert_close(g, w, tolerance(x.dtype, condition, 8.0), f"gradient to {name}")


def leakage_scene(
    b: int, n: int, r: int, k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, rho, unit-modulus S and source counts that cover none, some, all and beyond."""
    x, rho, y = scene(b, n, r, k, torch.complex128)
    counts = torch.tensor([k, 0, max(k - 1, 0), k + 3, -2])[torch.arange(b) % 5]
    return x.to(dtype), rho.to(dtype.to_real()), (y / y.abs()).to(dtype), counts


def check_leakage(
    x: Tensor, rho: Tensor | None, s: Tensor, counts: Tensor, ridge: float = 1e-4, **options: int
) -> None:
    bound = tolerance(x.dtype)
    exact = wide(x, rho, s)
    leakage, gram = operators.leakage_forward(x, rho, s, counts, ridge, **options)
    value, products = leakage_reference.factored_leakage_forward(*exact, counts, ridge)
    assert_close(gram, products, WIDE, "gram")
    assert_close(leakage, value, max(bound, 1e-10), "leakage")
    grad = torch.randn(x.shape[0], dtype=torch.float64)
    wanted = leakage_reference.factored_leakage_backward(
        grad, *exact, counts, value, products, ridge, need_rho=rho is not None
    )
    got = operators.leakage_backward(
        grad.to(leakage.dtype), x, rho, s, counts, (leakage, gram), ridge,
        (True, rho is not None), **options,
    )  # fmt: skip
    if x.shape[1] == 1:
        # The leakage of one element does not depend on X: rounding is left, of terms of size 1/|X|.
        assert (got[0].norm() <= bound * (grad / exact[0].norm(dim=(1, 2))).norm()).all()
        return
    for name, g, w in zip(("factor", "rho"), got, wanted, strict=True):
        if g is not None:
            assert_close(g, w, max(4 * bound, 1e-9), f"gradient to {name}")


def check_blend(
    a: Tensor, v: Tensor, blend: BlendOptions = operators.BLEND_DEFAULTS, **options: int
) -> None:
    bound = tolerance(a.dtype)
    keywords = dict(loading=blend.loading, shrinkage=blend.shrinkage)
    exact_a, exact_v = wide(a, v)
    x, rho = operators.blend_forward(a, v, blend, **options)
    wanted, wanted_rho = blend_reference.factored_blend(exact_a, exact_v, *blend[:2], **keywords)
    assert_close(x, wanted, bound, "X")
    assert_close(rho, wanted_rho, bound, "rho")
    # Rows in any order of memory, as autograd brings them.
    grad = torch.randn(x.mT.shape, dtype=a.dtype).mT
    to_a = operators.blend_backward(grad, a, v, blend, **options)
    wanted_a = blend_reference.factored_blend_backward(
        grad.to(torch.complex128), exact_a, exact_v, *blend
    )
    assert_close(to_a, wanted_a, bound, "gradient to factor")
