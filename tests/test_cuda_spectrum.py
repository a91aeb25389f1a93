# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of factored_spectrum on the block executor, against the reference in complex128.

Outputs and workspaces are blocks of their exact size, filled with NaN beforehand; AddressSanitizer
and UBSan watch every access. What the executor itself detects is tested in test_cuda_executor.py.
"""

from __future__ import annotations

import pytest
import torch
from cuda_on_cpu.harness import SHARED_LIMIT
from cuda_on_cpu.spectrum_operator import spectrum_backward, spectrum_forward
from test_factored_spectrum import factors, with_spectrum
from torch import Tensor

from riskernels.reference import factored_spectrum as reference
from riskernels.testing import assert_close, tolerance

pytestmark = pytest.mark.check("cuda-executor")
C64, C128 = torch.complex64, torch.complex128
# Bytes of a block in which 21 columns are decomposed on chip but not summed there, and in which
# they are neither.
NARROW, TINY = 16 * 1024, 9 * 1024


def check(x: Tensor, rho: Tensor | None = None, **options: int) -> tuple[Tensor, Tensor]:
    """Values, vectors and both gradients."""
    bound = tolerance(x.dtype)
    wide = x.to(C128)
    wide_rho = None if rho is None else rho.double()
    values, vectors = spectrum_forward(x, rho, **options)
    expected, _ = reference.factored_spectrum_forward(wide, wide_rho)
    largest = expected[:, :1].clamp_min(1e-300)
    assert ((values - expected).abs() / largest).max() <= bound
    assert torch.all(values[:, 1:] <= values[:, :-1])
    u, gram = vectors.to(C128), wide.mH @ wide
    assert_close(u.mH @ u, torch.eye(x.shape[2], dtype=C128).expand_as(u), bound)
    diagonal = torch.diag_embed((u.mH @ gram @ u).diagonal(dim1=1, dim2=2))
    assert ((gram @ u - u @ diagonal).abs().amax((1, 2)) / largest[:, 0]).max() <= bound
    grad = torch.randn(values.shape, dtype=torch.float64)
    wanted = reference.factored_spectrum_backward(grad, wide, u)
    got = spectrum_backward(grad.to(values.dtype), x, vectors, **options)
    # Sums of both signs: exact to a share of their terms, whatever is left of them.
    largest_slope = 2 * wide.flatten(1).norm(dim=1) * grad.abs().amax(1)
    assert ((got[0] - wanted[0]).flatten(1).norm(dim=1) <= bound * largest_slope).all()
    assert ((got[1] - wanted[1]).abs() <= bound * grad.abs().sum(1)).all()
    return values, vectors


@pytest.mark.parametrize("dtype", [C64, C128])
@pytest.mark.parametrize("n,r", [(1, 1), (5, 2), (7, 5), (20, 16), (33, 21), (3, 9), (2, 33)])
def test_spectrum_sizes(n, r, dtype):
    """Even and odd numbers of columns, more columns than rows; every order of the threads."""
    x, rho = factors(2, n, r, dtype, seed=n)
    check(x, rho, seed=n)


@pytest.mark.parametrize("shared_limit", [SHARED_LIMIT, NARROW, TINY])
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_spectrum_memory(shared_limit, multiprocessors):
    """Matrices on chip and outside, scenes of one block and of several, M of the backward too."""
    options = dict(shared_limit=shared_limit, multiprocessors=multiprocessors)
    x, rho = factors(2, 40, 21, C64)
    check(x, rho, **options)
    x, _ = factors(1, 900, 21, C64, seed=1)
    check(x, **options)


def test_spectrum_of_many_columns():
    """More columns than a window of the Gram plan, and than there are threads for pairs of them."""
    x, rho = factors(1, 12, 90, C64)
    check(x, rho)


@pytest.mark.parametrize("shared_limit", [SHARED_LIMIT, TINY])
def test_spectrum_hard_matrices(shared_limit):
    spectra = [
        torch.ones(1, 12, dtype=torch.float64),
        torch.tensor([[3.0, 1.0, 1e-8]]).double().repeat_interleave(4, 1),
        torch.logspace(0, -18, 12, dtype=torch.float64)[None],
        1 + 1e-15 * torch.randn(1, 12, dtype=torch.float64),
    ]
    for squares in spectra:
        check(with_spectrum(squares, 20), shared_limit=shared_limit)
    x, _ = factors(2, 9, 3, C128)
    low, _ = factors(2, 3, 14, C128, seed=1)
    check(x @ low, shared_limit=shared_limit)
    for exponent in (-450, 450):
        check(x * 2.0**exponent, shared_limit=shared_limit)
    values, vectors = spectrum_forward(
        torch.zeros(1, 4, 3, dtype=C128), torch.tensor([0.5]).double()
    )
    assert torch.all(values == 0.5) and torch.equal(vectors[0], torch.eye(3, dtype=C128))


def test_spectrum_strides():
    base, rho = factors(3, 12, 10, C64)
    stacked = torch.stack([base, base], -1)
    views = [
        base.mT,
        base[:1].expand(3, 12, 10),
        base[:, :1].expand(3, 12, 10),
        stacked[..., 1],
        base[:, ::3, 1::2],
    ]
    for x in views:
        check(x, rho)
    check(base, rho[:1].expand(3))
    vectors = spectrum_forward(base)[1]
    for grad in (torch.rand(10, 3).mT, torch.rand(1).expand(3, 10)):
        strided = spectrum_backward(grad, base, vectors)
        plain = spectrum_backward(grad.clone(), base, vectors)
        assert all(torch.equal(s, p) for s, p in zip(strided, plain, strict=True))


@pytest.mark.parametrize("shared_limit", [SHARED_LIMIT, TINY])
def test_spectrum_nan_stays_in_its_scene(shared_limit):
    clean, rho = factors(4, 12, 20, C64)
    dirty = clean.clone()
    dirty[1, 3, 4], dirty[2, 0, 0] = torch.nan, torch.inf
    lost = torch.tensor([False, True, True, False])
    expected = spectrum_forward(clean, rho, shared_limit=shared_limit)
    got = spectrum_forward(dirty, rho, shared_limit=shared_limit)
    for g, e in zip(got, expected, strict=True):
        assert torch.equal(g[~lost], e[~lost])
        assert g[lost].real.isnan().all()
    grad = torch.rand(4, 20)
    slope, of_rho = spectrum_backward(grad, dirty, got[1], shared_limit=shared_limit)
    assert torch.isfinite(slope[~lost].abs()).all() and slope[lost].real.isnan().all()
    assert torch.isfinite(of_rho).all()


@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shared_limit", [SHARED_LIMIT, NARROW])
def test_spectrum_one_sided_gradients(need, shared_limit):
    """With M of the backward on chip, and too large for it."""
    x, _ = factors(2, 70, 45, C64)
    vectors = torch.randn(2, 45, 45, dtype=C64)
    grad = torch.rand(2, 45)
    both = spectrum_backward(grad, x, vectors, shared_limit=shared_limit)
    wanted = reference.factored_spectrum_backward(grad, x, vectors)
    for b, w in zip(both, wanted, strict=True):
        assert_close(b, w, tolerance(C64))
    got = spectrum_backward(grad, x, vectors, need, shared_limit=shared_limit)
    for one, all_, needed in zip(got, both, need, strict=True):
        assert (one is None) if not needed else torch.equal(one, all_)


def test_spectrum_orders_agree_and_empty_batch():
    """Blocks, warps and lanes in other orders: the same bits."""
    x, rho = factors(2, 20, 11, C64)
    first = spectrum_forward(x, rho, seed=1)
    grad = torch.rand(2, 11)
    slopes = spectrum_backward(grad, x, first[1], seed=1)
    for seed in range(2, 5):
        again = spectrum_forward(x, rho, seed=seed)
        more = spectrum_backward(grad, x, first[1], seed=seed)
        for a, b in zip((*first, *slopes), (*again, *more), strict=True):
            assert torch.equal(a, b)
    empty = torch.empty(0, 5, 3, dtype=C64)
    values, vectors = spectrum_forward(empty)
    assert values.shape == (0, 3) and vectors.shape == (0, 3, 3)
    slope, of_rho = spectrum_backward(values, empty, vectors)
    assert slope.shape == (0, 5, 3) and of_rho.shape == (0,)


@pytest.mark.parametrize("shared_limit", [SHARED_LIMIT, NARROW, TINY])
def test_spectrum_no_data_races(shared_limit):
    """No two threads touch the same byte without a barrier between them; see races.hpp."""
    x, rho = factors(1, 40, 21, C64)
    options = dict(races=True, shared_limit=shared_limit)
    # A race raises harness.ExecutorError.
    values, vectors = spectrum_forward(x, rho, **options)
    gradients = spectrum_backward(values, x, vectors, **options)
    assert torch.isfinite(values).all() and len(gradients) == 2
