# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of the factored blend, NMSE and leakage on the block executor.

The reference is the definition in complex128. Outputs and workspaces are blocks of their exact
size, filled with NaN beforehand; AddressSanitizer and UBSan watch every access.
"""

from __future__ import annotations

import pytest
import tikhonov_inputs as ti
import torch
from cuda_on_cpu import factored_operators as operators
from cuda_on_cpu.factored_checks import (
    check_blend,
    check_leakage,
    check_nmse,
    leakage_scene,
    masks,
    scene,
)
from cuda_on_cpu.factored_operators import BlendOptions, NmseOptions
from torch import Tensor

from riskernels.reference import hermitian_nmse as dense_reference
from riskernels.testing import assert_close, tolerance

pytestmark = pytest.mark.check("cuda-executor")
DTYPES = [torch.complex64, torch.complex128]
# (N, r, k, dtype)
SHAPES = [
    (1, 1, 1, torch.complex64),
    (7, 5, 1, torch.complex128),
    (31, 21, 5, torch.complex64),
    (33, 40, 7, torch.complex128),
    (144, 21, 5, torch.complex64),
    (257, 26, 7, torch.complex64),
]
# Devices for which the plans differ: a scene to a block; rows split between blocks; rows split and
# less shared memory, so that chunks are short; too little of it to keep matrices there.
DEVICES = [
    dict(multiprocessors=1),
    dict(multiprocessors=132),
    dict(multiprocessors=132, shared_limit=48 * 1024),
    dict(multiprocessors=4, shared_limit=32 * 1024),
]
# Too little for the matrix of a gradient with r = 40 and k = 7, which goes to a workspace.
APART = {torch.complex64: 18 * 1024, torch.complex128: 32 * 1024}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n,r,k,dtype", SHAPES)
def test_shapes_and_devices(n, r, k, dtype, device):
    """Every plan of the NMSE and the leakage: the sizes and devices between them choose all."""
    x, rho, y = scene(2, n, r, k, dtype)
    chosen = n % 3
    weights = [NmseOptions(), NmseOptions(0.7, 0.0, 1e-3), NmseOptions(0.0, 2.0, 0.1)][chosen]
    check_nmse(x, rho, y, masks(2, n)[chosen], weights, seed=n, **device)
    check_leakage(*leakage_scene(2, n, r, k, dtype), seed=n, **device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "n,columns,snapshots,dtype",
    [(1, 1, 1, torch.complex64), (31, 5, 16, torch.complex128), (144, 5, 16, torch.complex64),
     (1500, 8, 17, torch.complex64)],
)  # fmt: skip
def test_blend_shapes_and_devices(n, columns, snapshots, dtype, device):
    g = torch.Generator().manual_seed(n)
    a = ti.complex_normal(2, n, columns, dtype=dtype, seed=g)
    v = ti.complex_normal(2, snapshots, n, dtype=dtype, seed=g)
    check_blend(a, v, BlendOptions(0.3, None if n % 2 else 5.0, 0.01, 0.1), **device)


def test_many_columns():
    """More columns than one window of the Gram matrix, and than a block's shared memory."""
    for r, k, shared in ((90, 7, 227 * 1024), (60, 30, 24 * 1024)):
        x, rho, y = scene(1, 40, r, k, torch.complex64)
        check_nmse(x, rho, y, masks(1, 40)[1], shared_limit=shared)
        x, rho, s, _ = leakage_scene(1, 40, r, k, torch.complex64)
        check_leakage(x, rho, s, torch.tensor([k - 2]), shared_limit=shared)
    g = torch.Generator().manual_seed(0)
    a = ti.complex_normal(1, 20, 300, dtype=torch.complex64, seed=g)
    check_blend(a, ti.complex_normal(1, 2, 20, dtype=torch.complex64, seed=g), shared_limit=16384)


def strided(t: Tensor, kind: str) -> Tensor:
    """The same values (for "expanded": the first scene's) in other memory."""
    if kind == "transposed":
        return t.mT.contiguous().mT
    if kind == "padded":
        room = torch.full((t.shape[0], t.shape[1] + 2, t.shape[2] + 3), torch.nan, dtype=t.dtype)
        room[:, 1:-1, 2:-1] = t
        return room[:, 1:-1, 2:-1]
    return t[:1].expand(t.shape)


def test_strides():
    """Scenes, rows and columns in any order, with gaps, shared, and at odd addresses."""
    x, rho, y = scene(3, 33, 7, 3, torch.complex64)
    _, _, s, counts = leakage_scene(3, 33, 7, 3, torch.complex64)
    mask = masks(3, 33)[2].mT.contiguous().mT
    kinds = ("transposed", "padded", "expanded")
    for i, kind in enumerate(kinds):
        other = kinds[(i + 1) % 3]
        every_second = torch.stack([rho, rho + 1], -1)[:, 1]
        check_nmse(strided(x, kind), rho[:1].expand(3), strided(y, other), mask)
        check_leakage(
            strided(x, kind), every_second, strided(s, other), counts[:1].expand(3), seed=i
        )
        check_blend(strided(x, kind), strided(y.mT, other))
    check_nmse(x, None, strided(y, "transposed"))
    check_leakage(x, None, s, torch.stack([counts, counts - 1], -1)[:, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_elements_and_columns_stay_out(dtype):
    """NaN and infinity in masked rows and columns reach neither values nor gradients."""
    x, rho, y = scene(2, 33, 40, 7, dtype)
    grad = torch.ones(2, dtype=rho.dtype)
    mask = torch.arange(33) % 3 != 0
    outcomes = []
    for poison in (False, True):
        if poison:
            x[:, ~mask], y[:, ~mask] = torch.nan, torch.inf
        for limit in (227 * 1024, APART[dtype]):
            options = dict(shared_limit=limit)
            saved = operators.nmse_forward(x, rho, y, mask, **options)
            gradients = operators.nmse_backward(grad, x, rho, y, saved[1:], mask, **options)
            outcomes.append([*saved, *gradients])
            assert (gradients[0][:, ~mask] == 0).all() and (gradients[2][:, ~mask] == 0).all()
    for clean, poisoned in zip(outcomes[:2], outcomes[2:], strict=True):
        for a, b in zip(clean, poisoned, strict=True):
            assert torch.isfinite(b).all() and torch.equal(a, b)
    x, rho, s, _ = leakage_scene(2, 33, 5, 3, dtype)
    counts = torch.tensor([2, 1])
    clean = operators.leakage_forward(x, rho, s, counts)
    for b in range(2):
        s[b, :, counts[b] :] = torch.nan
    saved = operators.leakage_forward(x, rho, s, counts)
    for a, b in zip(clean, saved, strict=True):
        assert torch.equal(a, b)
    gradients = operators.leakage_backward(grad, x, rho, s, counts, saved)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_masked_columns_do_not_raise_the_pivot_floor():
    """Steering vectors of 1e-8: a floor made from the ones of masked columns would hide them."""
    g = torch.Generator().manual_seed(0)
    factor, steering = (
        ti.complex_normal(2, 9, columns, dtype=torch.complex128, seed=g) for columns in (4, 3)
    )
    sources = torch.tensor([2, 3])
    got, _ = operators.leakage_forward(factor, None, steering * 1e-8, sources, 1e-26)
    want, _ = operators.leakage_forward(factor, None, steering, sources, 1e-10)
    assert_close(got, want, 1e-6)


def test_one_element_and_no_power():
    """One kept element has no off-diagonal part; no power and eps = 0 leave masked rows at 0."""
    x, rho, y = scene(2, 9, 4, 2, torch.complex64)
    mask = torch.arange(9) == 4
    for n, mask_ in ((9, mask), (1, None)):
        leaves = [t[:, :n].to(torch.complex128).requires_grad_() for t in (x, y)]
        loading = rho.double().requires_grad_()
        estimate, target = (t @ t.mH for t in leaves)
        estimate = estimate + loading[:, None, None] * torch.eye(n)
        value, _ = dense_reference.hermitian_nmse_forward(estimate, target, mask_, 0.2, 0.8, 1e-12)
        wanted = torch.autograd.grad(value.sum(), [leaves[0], loading, leaves[1]])
        saved = operators.nmse_forward(x[:, :n], rho, y[:, :n], mask_)
        got = operators.nmse_backward(torch.ones(2), x[:, :n], rho, y[:, :n], saved[1:], mask_)
        for actual, expected in zip((saved[0], *got), (value, *wanted), strict=True):
            assert_close(actual, expected, tolerance(torch.complex64))
    _, sums, gram = operators.nmse_forward(x, rho, y, mask, NmseOptions(0.2, 0.8, 0.0))
    assert (sums[:, 1] == 0).all() and (sums[:, 3] == 0).all()
    to_x, _, to_y = operators.nmse_backward(
        torch.ones(2), x, rho, y, (sums, gram), mask, NmseOptions(0.2, 0.8, 0.0)
    )
    assert (to_x[:, ~mask] == 0).all() and (to_y[:, ~mask] == 0).all()
    zero = torch.zeros_like(x)
    counts = torch.tensor([2, 0])
    saved = operators.leakage_forward(zero, None, y, counts)
    assert (saved[0] == 0).all()
    (gradient, _) = operators.leakage_backward(
        torch.ones(2), zero, None, y, counts, saved, need=(True, False)
    )
    assert (gradient == 0).all()
    present = y.mT
    for a, v in (
        (zero, present),
        (x, torch.zeros_like(present)),
        (zero, torch.zeros_like(present)),
    ):
        check_blend(a, v)
        check_blend(a, v, BlendOptions(1.0, None, 0.1, 0.2))


def test_nan_stays_in_its_scene():
    x, rho, y = scene(3, 20, 6, 3, torch.complex64)
    x[1, 7, 2] = torch.nan
    saved = operators.nmse_forward(x, rho, y)
    gradients = operators.nmse_backward(torch.ones(3), x, rho, y, saved[1:])
    _, _, s, counts = leakage_scene(3, 20, 6, 3, torch.complex64)
    kept = operators.leakage_forward(x, rho, s, counts)
    more = operators.leakage_backward(torch.ones(3), x, rho, s, counts, kept)
    blend, _ = operators.blend_forward(x, y.mT)
    for t in (saved[0], *gradients, kept[0], *more, blend):
        finite = torch.isfinite(t.reshape(3, -1))
        assert finite[0].all() and finite[2].all() and not finite[1].all()


@pytest.mark.parametrize("exponent", [-1.5, -3.0])
def test_small_nmse(exponent):
    """The value of the dense definition to 1e-5, down to an NMSE of 1e-6, in complex64."""
    x, rho, y = scene(2, 144, 21, 5, torch.complex64, 10.0**exponent)
    dense = x.to(torch.complex128) @ x.to(torch.complex128).mH
    dense.diagonal(dim1=1, dim2=2).add_(rho.double()[:, None])
    target = y.to(torch.complex128) @ y.to(torch.complex128).mH
    expected, _ = dense_reference.hermitian_nmse_forward(dense, target, None, 0.2, 0.8, 1e-12)
    assert (expected < 10 ** (2 * exponent + 0.5)).all()
    for device in DEVICES:
        nmse, _, _ = operators.nmse_forward(x, rho, y, **device)
        assert ((nmse - expected).abs() <= 1e-6 * expected).all()


def test_orders_agree():
    """Blocks, warps and lanes in other orders: the same bits, for every plan."""
    x, rho, y = scene(1, 140, 40, 7, torch.complex64)
    s, counts = y / y.abs(), torch.tensor([4])
    grad = torch.ones(1)
    for device in (DEVICES[0], DEVICES[2], dict(multiprocessors=4, shared_limit=18 * 1024)):
        results = []
        for seed in (1, 2):
            options = dict(seed=seed, **device)
            saved = operators.nmse_forward(x, rho, y, **options)
            kept = operators.leakage_forward(x, rho, s, counts, **options)
            results.append([
                *saved, *kept, *operators.blend_forward(x, y.mT, **options),
                *operators.nmse_backward(grad, x, rho, y, saved[1:], **options),
                *operators.leakage_backward(grad, x, rho, s, counts, kept, **options),
                operators.blend_backward(x, x, y.mT, **options),
            ])  # fmt: skip
        for more in results[1:]:
            for a, b in zip(results[0], more, strict=True):
                assert torch.equal(a, b)


def test_needed_gradients_and_batches():
    """Any subset of the gradients has the same bits; no scenes launch nothing."""
    x, rho, y = scene(2, 40, 40, 7, torch.complex64)
    grad = torch.rand(1).expand(2)
    saved = operators.nmse_forward(x, rho, y)
    s, counts = y / y.abs(), torch.tensor([3, 1])
    kept = operators.leakage_forward(x, rho, s, counts)
    for limit in (227 * 1024, APART[torch.complex64]):
        options = dict(shared_limit=limit)
        every = operators.nmse_backward(grad, x, rho, y, saved[1:], **options)
        for need in ((True, False, False), (False, True, False), (False, False, True)):
            got = operators.nmse_backward(grad, x, rho, y, saved[1:], need=need, **options)
            for one, all_, needed in zip(got, every, need, strict=True):
                assert torch.equal(one, all_) if needed else one is None
        both = operators.leakage_backward(grad, x, rho, s, counts, kept, **options)
        for need in ((True, False), (False, True)):
            got = operators.leakage_backward(grad, x, rho, s, counts, kept, need=need, **options)
            for one, all_, needed in zip(got, both, need, strict=True):
                assert torch.equal(one, all_) if needed else one is None
    assert operators.nmse_forward(x[:0], rho[:0], y[:0])[2].shape == (0, 47, 47)
    assert operators.leakage_forward(x[:0], None, s[:0], counts[:0])[0].shape == (0,)
    assert operators.blend_forward(x[:0], y[:0].mT)[0].shape == (0, 40, 47)


@pytest.mark.parametrize("device", DEVICES)
def test_no_data_races(device):
    """No two threads touch the same byte without a barrier between them; see races.hpp."""
    x, rho, y = scene(1, 130, 13, 5, torch.complex64)
    s, counts = y / y.abs(), torch.tensor([4])
    grad = torch.ones(1)
    options = dict(races=True, **device)
    # A race raises harness.ExecutorError.
    saved = operators.nmse_forward(x, rho, y, masks(1, 130)[1], **options)
    operators.nmse_backward(grad, x, rho, y, saved[1:], masks(1, 130)[1], **options)
    kept = operators.leakage_forward(x, rho, s, counts, **options)
    operators.leakage_backward(grad, x, rho, s, counts, kept, **options)
    blend, _ = operators.blend_forward(x, y.mT, **options)
    gradient = operators.blend_backward(blend, x, y.mT, **options)
    assert torch.isfinite(saved[0]).all() and torch.isfinite(kept[0]).all()
    assert torch.isfinite(gradient).all()
