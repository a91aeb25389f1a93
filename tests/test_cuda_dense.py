# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of blend_covariance and subspace_leakage on the block executor.

They are compared with the references in complex128. Outputs and workspaces are blocks of their
exact size, filled with NaN beforehand; AddressSanitizer and UBSan watch every access.
"""

from __future__ import annotations

import pytest
import tikhonov_inputs as ti
import torch
from cuda_on_cpu import dense_operators as dense
from cuda_on_cpu.dense_operators import Blend
from torch import Tensor

from riskernels.reference import blend_covariance as blend_reference
from riskernels.reference import subspace_leakage as leakage_reference
from riskernels.testing import assert_close, tolerance

pytestmark = pytest.mark.check("cuda-executor")
DTYPES = [torch.complex64, torch.complex128]
BLENDS = [Blend(), Blend(0.7, 2.5, 0.1, 0.2), Blend(0.0, 1.0, 0.0, 0.5), Blend(1.0, None, 0.3)]


def wide(*tensors: Tensor) -> list[Tensor]:
    return [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in tensors]


def matrices(count: int, b: int, n: int, dtype: torch.dtype) -> list[Tensor]:
    """Not Hermitian, with traces of their own."""
    g = torch.Generator().manual_seed(31 * n + b)
    drawn = [ti.complex_normal(b, n, n, dtype=torch.complex128, seed=g) for _ in range(count)]
    for k, m in enumerate(drawn):
        m.diagonal(dim1=1, dim2=2).add_(3 + k)
    return [m.to(dtype) for m in drawn]


def check_blend(grad: Tensor, pred: Tensor, samp: Tensor, blend: Blend, **options: int) -> None:
    """Value and gradient; both exactly Hermitian."""
    keywords = dict(loading=blend.loading, shrinkage=blend.shrinkage)
    bound = tolerance(pred.dtype)
    out = dense.blend_forward(pred, samp, blend, **options)
    expected = blend_reference.blend_covariance(*wide(pred, samp), *blend[:2], **keywords)
    assert_close(out, expected, bound, "R")
    got = dense.blend_backward(grad, pred, samp, blend, **options)
    wanted = blend_reference.blend_covariance_backward(*wide(grad, pred, samp), *blend)
    # The diagonal is a difference, zero for N = 1: errors are relative to its terms.
    traces = [t.diagonal(dim1=1, dim2=2).real.sum(-1) for t in wide(pred, samp)]
    of_pred = blend_reference.blend_coefficients(*traces, pred.shape[1], *blend)[0]
    term = of_pred[:, None, None] * (grad + grad.mH).to(torch.complex128) / 2
    assert (got - wanted).norm() <= bound * term.norm()
    assert (got - wanted).abs().max() <= bound * term.abs().max()
    for t in (out, got):
        assert torch.equal(t, t.mH) and not t.diagonal(dim1=1, dim2=2).imag.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 31, 32, 33, 65, 144])
def test_blend_sizes(n, dtype):
    inputs = matrices(3, 2, n, dtype)
    for blend in BLENDS if n == 7 else BLENDS[1:2]:
        check_blend(*inputs, blend, seed=n)


def test_blend_plans_agree():
    """One or several blocks per scene, and traces of a kernel of their own: the same bits."""
    blend = Blend(0.3, None, 0.01)
    for n in (65, 258):
        inputs = matrices(3, 2, n, torch.complex64)
        check_blend(*inputs, blend, multiprocessors=132)
        values = [
            dense.blend_forward(*inputs[1:], blend, multiprocessors=m, seed=m) for m in (1, 132)
        ]
        assert torch.equal(*values)
    check_blend(*matrices(3, 2, 65, torch.complex64), blend, multiprocessors=1)


def test_blend_strides():
    grad, pred, samp = matrices(3, 3, 34, torch.complex64)
    padded = torch.full((3, 34, 36), torch.nan, dtype=torch.complex64)
    padded[:, :, :34] = samp
    odd = torch.full((3, 34, 35), torch.nan, dtype=torch.complex64)
    odd[:, :, 1:] = pred
    one = torch.ones((), dtype=torch.complex64)
    for g, p, s in (
        (grad.mT, pred, samp.mT),
        (grad, pred.mT, samp),
        (grad.mT, pred.mT, samp.mT),
        (one.expand(3, 34, 34), pred, samp[:1].expand(3, 34, 34)),
        (grad, odd[:, :, 1:], padded[:, :, :34]),
        (torch.stack([pred, grad], -1)[..., 1], samp[:, :1, :1].expand(3, 34, 34), pred),
        (grad[:, ::2, ::2], pred[:, 1::2, 1::2], samp[:, ::2, 1::2]),
        (
            grad[1:, 1:, 1:],
            pred.flatten()[1:2200].view(1, -1)[:, :2178].view(2, 33, 33),
            samp[:2, 1:, :33],
        ),
    ):
        check_blend(g, p, s, BLENDS[1])


def test_blend_leaves_a_normalised_covariance_as_it_is():
    (pred,) = matrices(1, 2, 34, torch.complex64)
    pred = (pred + pred.mH) / 2
    pred.diagonal(dim1=1, dim2=2).fill_(1)
    out = dense.blend_forward(pred, torch.eye(34).to(pred).expand(2, 34, 34), Blend(0.0))
    assert torch.equal(out, pred)


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_blend_excluded_and_invalid_scenes(multiprocessors):
    """A trace <= 0 leaves its matrix out; NaN stays in its scene."""
    grad, pred, samp = matrices(3, 4, 40, torch.complex64)
    pred[1], samp[2] = -pred[1], 0
    check_blend(grad, pred, samp, BLENDS[1], multiprocessors=multiprocessors)
    grad[1, 3, 4] = torch.inf
    pred[3, 2, 5] = torch.nan
    got = dense.blend_backward(grad, pred, samp, BLENDS[1], multiprocessors=multiprocessors)
    assert not got[1].any()
    out = dense.blend_forward(pred, samp, BLENDS[1], multiprocessors=multiprocessors)
    for t in (out, got):
        assert torch.isfinite(t[:3]).all()
    pred[3, 7, 7] = torch.nan
    out = dense.blend_forward(pred, samp, BLENDS[1], multiprocessors=multiprocessors)
    assert torch.isfinite(out[:3]).all() and torch.isnan(out[3]).all()


# Several pairs of tiles to a block, one, and traces of a kernel of their own.
@pytest.mark.parametrize("n,multiprocessors", [(130, 1), (66, 132), (258, 132)])
def test_blend_no_data_races(n, multiprocessors):
    """No two threads touch the same byte without a barrier between them; see races.hpp."""
    grad, pred, samp = matrices(3, 1, n, torch.complex64)
    options = dict(races=True, multiprocessors=multiprocessors)
    # A race raises harness.ExecutorError.
    out = dense.blend_forward(pred, samp, Blend(), **options)
    got = dense.blend_backward(grad, pred, samp, Blend(), **options)
    assert torch.isfinite(out).all() and torch.isfinite(got).all()


def scene(b: int, n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Covariance near the span of unit steering vectors, and counts that also need clamping."""
    g = torch.Generator().manual_seed(n + 1000 * k)
    steering = ti.complex_normal(b, n, k, dtype=torch.complex128, seed=g) / n**0.5
    noise = 0.3 * ti.complex_normal(b, n, n, dtype=torch.complex128, seed=g) / n
    cov = steering @ steering.mH + noise + noise.mH
    num_sources = torch.tensor([k, k // 2, k + 3, -1])[:b]
    if b > 1:
        steering[1, :, k // 2 :] = torch.nan
    return cov.to(dtype), steering.to(dtype), num_sources


def check_leakage(
    cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float = 1e-4, **options: int
) -> None:
    """All outputs of the forward, and the gradient from them."""
    bound = tolerance(cov.dtype)
    expected = leakage_reference.subspace_leakage_forward(*wide(cov, steering), num_sources, ridge)
    state = dense.leakage_forward(cov, steering, num_sources, ridge, **options)
    # Q is rounded to the dtype, and comes from a solve in double with S_m^H S_m + ridge I.
    gram = (masked := leakage_reference.masked_steering(steering, num_sources)).mH @ masked
    condition = float(torch.linalg.eigvalsh(gram).max()) / ridge
    rounded = bound + tolerance(torch.complex128, condition)
    # The leakage is a difference of sums that are 1 relative to it.
    assert (state.leakage - expected[0]).abs().max() <= bound
    for got, want, name in zip(state[1:], expected[1:], state._fields[1:], strict=True):
        assert_close(got, want, bound if name == "total" else rounded, name)
    grad = torch.randn(cov.shape[0], dtype=torch.float64)
    got = dense.leakage_backward(grad.to(state.total.dtype), cov, state, **options)
    wanted = leakage_reference.subspace_leakage_backward(grad, *wide(cov), *expected)
    scale = 2 * grad.abs() / expected[1].sqrt()
    error = (got - wanted).flatten(1).norm(dim=1)
    assert torch.all(error <= bound * scale), error / scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n,k", [(1, 1), (7, 5), (31, 7), (33, 1), (65, 9), (144, 5), (6, 8)])
def test_leakage_sizes(n, k, dtype):
    check_leakage(*scene(4 if n < 40 else 2, n, k, dtype), seed=n)


@pytest.mark.parametrize(
    "n,k,dtype,device",
    [
        (260, 5, torch.complex64, dict(multiprocessors=132)),  # strips of columns
        (260, 3, torch.complex64, dict(multiprocessors=1)),  # rows of Q in several pieces
        (190, 2, torch.complex128, dict(multiprocessors=132)),
        (40, 34, torch.complex64, dict(multiprocessors=1)),  # K x K matrices in a workspace
        (66, 5, torch.complex128, dict(multiprocessors=4, shared_limit=24 * 1024)),
        (66, 5, torch.complex64, dict(multiprocessors=1000)),
    ],
)
def test_leakage_plans(n, k, dtype, device):
    check_leakage(*scene(1 if n > 150 else 2, n, k, dtype), **device)


def test_leakage_strides():
    cov, steering, num_sources = scene(3, 34, 5, torch.complex64)
    steering = steering.nan_to_num()
    padded = torch.full((3, 34, 36), torch.nan, dtype=torch.complex64)
    padded[:, :, :34] = cov
    transposed = steering.mT.contiguous().mT
    for c, s, m in (
        (cov.mT, transposed, num_sources),
        (padded[:, :, :34], steering, torch.stack([num_sources, num_sources + 1], -1)[:, 0]),
        (padded[:, :, 1:34][:, 1:], steering[:, 1:], num_sources[:1].expand(3)),
        (cov[:1].expand(3, 34, 34), steering[:1].expand(3, 34, 5), num_sources),
        (cov[:, ::2, ::2], steering[:, ::2, ::2], num_sources.flip(0)),
        (torch.stack([cov, cov], -1)[..., 1], steering, num_sources),
    ):
        check_leakage(c, s, m)


def test_leakage_extremes():
    """In the span next to nothing; without sources all of it; of R = 0 none, without gradient."""
    _, steering, _ = scene(1, 34, 4, torch.complex128)
    steering = torch.linalg.qr(steering)[0].expand(3, 34, 4)
    cov = (steering @ steering.mH).to(torch.complex64)
    cov[2] = 0
    state = dense.leakage_forward(cov, steering.to(torch.complex64), torch.tensor([4, 0, 4]))
    assert 0 <= state.leakage[0] < 1e-6
    assert state.leakage[1:].tolist() == [1, 0] and not state.basis[1].any()
    got = dense.leakage_backward(torch.ones(3), cov, state)
    assert got[0].norm() < 1e-5 and not got[2].any()
    # Equal columns and a ridge below their rounding errors.
    twice = torch.cat([steering, steering], -1)[:1].to(torch.complex64)
    check_leakage(cov[:1], twice, torch.tensor([8]), 1e-3)
    near = dense.leakage_forward(cov[:1], twice, torch.tensor([8]), 1e-30)
    assert torch.isfinite(near.basis).all() and torch.isfinite(near.leakage).all()


def test_leakage_nan_stays_in_its_scene():
    cov, steering, _ = scene(3, 20, 5, torch.complex64)
    count = torch.tensor([5, 2, 5])
    cov[0, 2, 3] = torch.nan
    steering[2, 4, 0] = torch.nan
    state = dense.leakage_forward(cov, steering, count)
    assert torch.isnan(state.leakage).tolist() == [True, False, True]
    got = dense.leakage_backward(torch.ones(3), cov, state)
    assert torch.isfinite(got[1]).all() and torch.isnan(got[[0, 2]]).any((1, 2)).all()


def test_orders_agree():
    """Blocks, warps and lanes in other orders: the same bits."""
    grad, pred, samp = matrices(3, 2, 40, torch.complex64)
    inputs = scene(2, 40, 5, torch.complex64)
    state = dense.leakage_forward(*inputs)
    found = [
        (
            dense.blend_forward(pred, samp, Blend(), seed=seed),
            dense.blend_backward(grad, pred, samp, Blend(), seed=seed),
            *dense.leakage_forward(*inputs, seed=seed),
            dense.leakage_backward(torch.ones(2), inputs[0], state, seed=seed),
        )
        for seed in range(1, 5)
    ]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_masked_columns_do_not_raise_the_pivot_floor():
    """Steering vectors of 1e-8: a floor made from the ones of masked columns would hide them."""
    cov, steering, _ = scene(2, 9, 3, torch.complex128)
    steering, num_sources = torch.nan_to_num(steering), torch.tensor([2, 3])
    got = dense.leakage_forward(cov, steering * 1e-8, num_sources, 1e-26)
    want = dense.leakage_forward(cov, steering, num_sources, 1e-10)
    assert_close(got.leakage, want.leakage, 1e-6)


def test_no_scenes():
    empty = torch.empty(0, 5, 5, dtype=torch.complex64)
    assert dense.blend_forward(empty, empty, Blend()).shape == (0, 5, 5)
    assert dense.blend_backward(empty, empty, empty, Blend()).shape == (0, 5, 5)
    none = dense.leakage_forward(empty, empty[:, :, :2], torch.empty(0, dtype=torch.int64))
    assert none.leakage.shape == (0,) and none.basis.shape == (0, 5, 2)
    assert dense.leakage_backward(none.leakage, empty, none).shape == (0, 5, 5)


@pytest.mark.parametrize(
    "n,k,multiprocessors",
    [(7, 1, 1), (34, 5, 1), (34, 9, 132), (85, 2, 1), (258, 2, 132)],  # 85: two panels of columns
)
def test_leakage_no_data_races(n, k, multiprocessors):
    cov, steering, num_sources = scene(1, n, k, torch.complex64)
    options = dict(races=True, multiprocessors=multiprocessors)
    state = dense.leakage_forward(cov, steering, num_sources, **options)
    got = dense.leakage_backward(torch.ones(1), cov, state, **options)
    assert torch.isfinite(got).all() and torch.isfinite(state.leakage).all()
