# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of hermitian_nmse on the block executor, against the definition in complex128.

Outputs and workspaces are blocks of their exact size, filled with NaN beforehand; AddressSanitizer
and UBSan watch every access. What the executor itself detects is tested in test_cuda_executor.py.
"""

from __future__ import annotations

import pytest
import tikhonov_inputs as ti
import torch
from cuda_on_cpu import operators
from torch import Tensor

from riskernels.reference import hermitian_nmse as nmse_reference
from riskernels.testing import assert_close, tolerance

pytestmark = pytest.mark.check("cuda-executor")
DTYPES = [torch.complex64, torch.complex128]


def nmse_pair(b: int, n: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed + n)
    target = ti.complex_normal(b, n, n, dtype=torch.complex128, seed=g)
    # A diagonal far above the rest: sums that mix the two would show.
    target.diagonal(dim1=1, dim2=2).mul_(30)
    estimate = target + 0.1 * ti.complex_normal(b, n, n, dtype=torch.complex128, seed=g)
    return estimate.to(dtype), target.to(dtype)


def nmse_masks(b: int, n: int) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(n)
    return [None, torch.rand(n, generator=g) < 0.7, torch.rand(b, n, generator=g) < 0.7]


def check_nmse(
    estimate: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    weights: tuple[float, float, float] = (0.2, 0.8, 1e-12),
    **options: int,
) -> None:
    """Value, sums and both gradients."""
    bound = tolerance(estimate.dtype)
    wide = [t.to(torch.complex128) for t in (estimate, target)]
    expected, expected_sums = nmse_reference.hermitian_nmse_forward(*wide, mask, *weights)
    nmse, sums = operators.nmse_forward(estimate, target, mask, weights, **options)
    assert_close(nmse, expected, bound, "nmse")
    for k, name in enumerate(("e_D", "e_O", "t_D", "t_O")):
        assert_close(sums[:, k], expected_sums[:, k], bound, name)
    grad = torch.randn(nmse.shape, dtype=torch.float64)
    wanted = nmse_reference.hermitian_nmse_backward(grad, *wide, expected_sums, mask, *weights)
    got = operators.nmse_backward(
        grad.to(nmse.dtype), estimate, target, sums, mask, weights, **options
    )
    diagonal = torch.eye(estimate.shape[1], dtype=torch.bool).expand(estimate.shape)
    for name, g, w in zip(("estimate", "target"), got, wanted, strict=True):
        for part in (diagonal, ~diagonal):
            assert_close(g[part], w[part], bound, f"gradient to {name}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 7, 16, 31, 33, 144])
def test_nmse_sizes_and_masks(n, dtype):
    estimate, target = nmse_pair(2, n, dtype)
    weights = [(0.2, 0.8, 1e-12), (0.7, 0.0, 1e-3), (0.0, 2.0, 0.1)]
    for seed, (mask, chosen) in enumerate(zip(nmse_masks(2, n), weights, strict=True)):
        check_nmse(estimate, target, mask, chosen, seed=seed)


@pytest.mark.parametrize("multiprocessors", [1, 4, 132])
@pytest.mark.parametrize(
    "n,dtype", [(257, torch.complex64), (256, torch.complex64), (182, torch.complex128)]
)
def test_nmse_split_scenes(n, dtype, multiprocessors):
    """Several blocks per scene, which the host plans by size and device."""
    estimate, target = nmse_pair(2, n, dtype)
    check_nmse(estimate, target, nmse_masks(2, n)[2], multiprocessors=multiprocessors)


def test_nmse_strides():
    estimate, target = nmse_pair(3, 32, torch.complex64)
    mask = nmse_masks(3, 32)[2]
    padded = torch.full((3, 32, 36), torch.nan, dtype=torch.complex64)
    padded[:, :, :32] = estimate
    odd = torch.full((3, 32, 33), torch.nan, dtype=torch.complex64)
    odd[:, :, 1:] = estimate
    pairs = [
        (estimate.mT, target),
        (estimate.mT, target.mT),
        (estimate, target[:1].expand(3, 32, 32)),
        (estimate, target[:, :1, :1].expand(3, 32, 32)),
        (padded[:, :, :32], target),
        (odd[:, :, 1:], target),
        (torch.stack([estimate, target], -1)[..., 1], target.mT),
        (estimate[:, ::2, ::2], target[:, 1::2, 1::2]),
        (estimate.flatten()[1:1987].view(2, 993)[:, :961].view(2, 31, 31), target[1:, 1:, 1:]),
    ]
    for e, t in pairs:
        check_nmse(e, t)
        check_nmse(e, t, mask[: e.shape[0], : e.shape[1]])
    check_nmse(estimate, target, mask.mT.contiguous().mT)
    check_nmse(estimate, target, mask[0, ::2].repeat_interleave(4)[::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nmse_masked_entries_stay_out(dtype):
    """NaN and infinity in masked rows and columns reach neither values nor gradients."""
    estimate, target = nmse_pair(2, 33, dtype)
    mask = torch.arange(33) % 3 != 0
    clean = operators.nmse_forward(estimate, target, mask)
    grad = torch.ones(2, dtype=estimate.dtype.to_real())
    clean_gradients = operators.nmse_backward(grad, estimate, target, clean[1], mask)
    for t, value in ((estimate, torch.nan), (target, torch.inf)):
        t[:, ~mask] = value
        t[:, :, ~mask] = value
    nmse = operators.nmse_forward(estimate, target, mask)
    gradients = operators.nmse_backward(grad, estimate, target, nmse[1], mask)
    for got, want in zip((*nmse, *gradients), (*clean, *clean_gradients), strict=True):
        assert torch.equal(got, want)
    assert all(torch.all(g[:, ~mask] == 0) for g in gradients)


def test_nmse_nothing_kept():
    """All elements masked and eps = 0: gradients are 0, though their factors are not finite."""
    estimate, target = nmse_pair(1, 6, torch.complex64)
    mask = torch.zeros(6, dtype=torch.bool)
    _, sums = operators.nmse_forward(estimate, target, mask, (0.2, 0.8, 0.0))
    assert torch.all(sums == 0)
    grad = torch.ones(1)
    for g in operators.nmse_backward(grad, estimate, target, sums, mask, (0.2, 0.8, 0.0)):
        assert torch.all(g == 0)


def test_nmse_nan_stays_in_its_scene():
    estimate, target = nmse_pair(3, 16, torch.complex64)
    estimate[1, 2, 3] = torch.nan
    nmse, sums = operators.nmse_forward(estimate, target)
    assert torch.equal(torch.isnan(nmse), torch.tensor([False, True, False]))
    gradients = operators.nmse_backward(torch.ones(3), estimate, target, sums)
    for g in gradients:
        assert torch.isfinite(g[[0, 2]].abs()).all()


@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("masked", [False, True])
def test_nmse_one_sided_gradients(need, masked):
    estimate, target = nmse_pair(2, 32, torch.complex64)
    mask = nmse_masks(2, 32)[1] if masked else None
    _, sums = operators.nmse_forward(estimate, target, mask)
    grad = torch.rand(1).expand(2)  # stride 0
    both = operators.nmse_backward(grad, estimate, target, sums, mask)
    got = operators.nmse_backward(grad, estimate, target, sums, mask, need=need)
    for one, all_, needed in zip(got, both, need, strict=True):
        assert (one is None) if not needed else torch.equal(one, all_)


def test_nmse_orders_agree():
    """Blocks, warps and lanes in other orders: the same bits."""
    estimate, target = nmse_pair(3, 64, torch.complex64)
    mask = nmse_masks(3, 64)[2]
    first = operators.nmse_forward(estimate, target, mask, seed=1)
    grad = torch.rand(3)
    gradients = operators.nmse_backward(grad, estimate, target, first[1], mask, seed=1)
    for seed in range(2, 6):
        again = operators.nmse_forward(estimate, target, mask, seed=seed)
        more = operators.nmse_backward(grad, estimate, target, first[1], mask, seed=seed)
        for a, b in zip((*first, *gradients), (*again, *more), strict=True):
            assert torch.equal(a, b)


def test_nmse_batches():
    """None, and more scenes than any dimension of a grid but x may have."""
    empty = torch.empty(0, 5, 5, dtype=torch.complex64)
    nmse, sums = operators.nmse_forward(empty, empty)
    assert nmse.shape == (0,) and sums.shape == (0, 4)
    gradients = operators.nmse_backward(nmse, empty, empty, sums)
    assert all(g.shape == (0, 5, 5) for g in gradients)
    estimate, target = nmse_pair(1, 2, torch.complex64)
    _, sums = operators.nmse_forward(estimate, target)
    grad = torch.arange(1.0, 65538.0)
    one, _ = operators.nmse_backward(torch.ones(1), estimate, target, sums)
    many, _ = operators.nmse_backward(
        grad,
        estimate.expand(65537, 2, 2),
        target.expand(65537, 2, 2),
        sums.expand(65537, 4).contiguous(),
        need=(True, False),
    )
    assert_close(many, grad[:, None, None] * one.to(torch.complex128), 1e-6)


@pytest.mark.parametrize("n,multiprocessors", [(144, 1), (1024, 1), (512, 132)])
def test_nmse_accuracy(n, multiprocessors):
    """float32 sums lose no more than their rounding, also of entries that are all alike."""
    estimate, target = nmse_pair(1, n, torch.complex64)
    alike = torch.full_like(target, 0.1 + 0.3j)
    for e, t in ((estimate, target), (2.5 * alike, alike)):
        nmse, sums = operators.nmse_forward(e, t, multiprocessors=multiprocessors)
        expected, expected_sums = nmse_reference.hermitian_nmse_forward(
            e.to(torch.complex128), t.to(torch.complex128), None, 0.2, 0.8, 1e-12
        )
        assert_close(nmse, expected, 5e-7)
        assert_close(sums, expected_sums, 2e-7)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("n,multiprocessors", [(34, 1), (34, 132), (256, 132)])
def test_nmse_no_data_races(n, multiprocessors, kind):
    """No two threads touch the same byte without a barrier between them; see races.hpp."""
    estimate, target = nmse_pair(1, n, torch.complex64)
    mask = nmse_masks(1, n)[kind]
    options = dict(races=True, multiprocessors=multiprocessors)
    # A race raises harness.ExecutorError.
    nmse, sums = operators.nmse_forward(estimate, target, mask, **options)
    gradients = operators.nmse_backward(nmse, estimate, target, sums, mask, **options)
    assert torch.isfinite(nmse).all() and len(gradients) == 2
