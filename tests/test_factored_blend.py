# SPDX-License-Identifier: Apache-2.0
"""factored_blend on every backend, against the steps of the definition in complex128."""

from __future__ import annotations

import factored_inputs as fi
import pytest
import tikhonov_inputs as ti
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import riskernels
from riskernels.testing import assert_close, tolerance

C64, C128 = torch.complex64, torch.complex128
OPTIONS = [
    {},
    {"beta": 0.0},
    {"beta": 1.0, "shrinkage": 0.5},
    {"beta": 0.6, "target_trace": 7.0, "loading": 0.1, "shrinkage": 0.2},
]


def make(
    b: int, n: int, k: int, snapshots: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    factor = ti.complex_normal(b, n, k, dtype=dtype, seed=g).to(device)
    return factor, (3 * ti.complex_normal(b, snapshots, n, dtype=dtype, seed=g)).to(device)


def oracle(
    factor: Tensor,
    snapshots: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> Tensor:
    """R_blend [B, N, N], step by step."""
    n = factor.shape[1]
    identity = torch.eye(n, dtype=factor.dtype)
    trace = lambda m: m.diagonal(dim1=1, dim2=2).real.sum(-1)[:, None, None]  # noqa: E731
    pred = factor @ factor.mH
    samp = torch.einsum("bli,blj->bij", snapshots, snapshots.conj()) / snapshots.shape[1]
    blend = (1 - beta) * n * pred / trace(pred) + beta * n * samp / trace(samp)
    blend = blend + loading * trace(blend) / n * identity
    blend = (1 - shrinkage) * blend + shrinkage * trace(blend) / n * identity
    return (n if target_trace is None else target_trace) * blend / trace(blend)


def check(factor: Tensor, snapshots: Tensor, **options: float) -> None:
    wide = factor.detach().cpu().to(C128).requires_grad_()
    samples = snapshots.detach().cpu().to(C128)
    expected = oracle(wide, samples, **options)
    leaf = factor.detach().requires_grad_()
    x, rho = riskernels.factored_blend(leaf, snapshots, **options)
    assert x.shape == (*factor.shape[:2], factor.shape[2] + snapshots.shape[1])
    assert x.is_contiguous() and rho.dtype == factor.dtype.to_real() and not rho.requires_grad
    bound = tolerance(factor.dtype)
    own = x.detach().cpu().to(C128)
    assert_close(fi.dense(own, rho.cpu().double()), expected, bound)
    # The columns of A and of V stand in their places.
    k = factor.shape[2]
    columns = torch.cat([factor.detach().cpu().to(C128), samples.mT], dim=-1)
    for part, of in ((own[..., :k], columns[..., :k]), (own[..., k:], columns[..., k:])):
        scale = part.norm(dim=(1, 2)) / of.norm(dim=(1, 2))
        fi.close(part, scale[:, None, None] * of, bound, floor=1e-30)
    # Through R = X X^H + rho I, whose gradient to X is what arrives.
    weight = torch.randn(expected.shape, dtype=C128)
    (wanted,) = torch.autograd.grad(ti.inner(expected, weight), wide)
    incoming = ((weight + weight.mH) @ own).to(x.device, x.dtype)
    (got,) = torch.autograd.grad(x, leaf, incoming)
    fi.close(got, wanted, bound, floor=(incoming.norm() * own.norm() / wide.norm()).item())


@pytest.mark.parametrize("dtype", [C64, C128])
@pytest.mark.parametrize("n,snapshots,k", fi.SIZES)
def test_sizes_and_options(backend, poisoned, n, snapshots, k, dtype):
    factor, samples = make(2, n, k, snapshots, dtype, backend.device)
    for options in OPTIONS:
        check(factor, samples, **options)


@pytest.mark.parametrize("dtype", [C64, C128])
def test_layouts(backend, poisoned, dtype):
    factor, samples = make(3, 62, 5, 16, dtype, backend.device)
    apart = [torch.stack([t, -t], -1)[..., 0] for t in (factor, samples)]
    cases = [
        (factor.mT.contiguous().mT, samples.mT.contiguous().mT),
        (apart[0], apart[1]),
        (factor[:1].expand(3, 62, 5), samples[:, :1].expand(3, 16, 62)),
        (factor.conj(), samples.mT.contiguous().mH),
        (factor[:, ::2], samples[:, ::3, 1::2]),
    ]
    for case in cases:
        check(*case, **OPTIONS[3])


def test_incoming_gradient_of_any_strides(backend):
    factor, samples = make(2, 31, 5, 16, C64, backend.device)
    x, _ = riskernels.factored_blend(factor.requires_grad_(), samples)
    grad = torch.randn(2, 31, 21, dtype=C64).to(backend.device)
    (want,) = torch.autograd.grad(x, factor, grad, retain_graph=True)
    same = [
        grad.mT.contiguous().mT,
        torch.stack([grad, grad], -1)[..., 0],
        grad.conj().resolve_conj().conj(),
    ]
    for other in same:
        (got,) = torch.autograd.grad(x, factor, other, retain_graph=True)
        assert_close(got, want, 1e-6)


def test_factor_without_energy(backend, poisoned):
    """A factor that is 0 is left out, and the other one takes its share."""
    factor, samples = make(3, 31, 5, 16, C64, backend.device)
    factor[0] = 0
    samples[1] = 0
    factor[2], samples[2] = 0, 0
    leaf = factor.requires_grad_()
    x, rho = riskernels.factored_blend(leaf, samples, loading=0.1)
    trace = x.detach().abs().square().sum((1, 2)) + 31 * rho
    assert_close(trace, torch.tensor([31.0, 31.0, 0.0]), 1e-6)
    assert (x[0, :, :5] == 0).all() and (x[1, :, 5:] == 0).all() and rho[2] == 0
    x.abs().square().sum().backward()
    assert (leaf.grad[0] == 0).all() and (leaf.grad[2] == 0).all()
    assert torch.isfinite(leaf.grad.abs()).all()


def test_snapshots_whose_first_entries_are_zero(backend):
    """Whether the snapshots count is not decided by their first entry alone."""
    factor, samples = make(1, 31, 5, 3, C64, backend.device)
    samples[:, :, :-1] = 0
    check(factor, samples, **OPTIONS[3])


def test_no_gradient_reaches_the_snapshots(backend):
    factor, samples = make(2, 31, 5, 16, C64, backend.device)
    x, _ = riskernels.factored_blend(factor.requires_grad_(), samples.requires_grad_())
    x.abs().sum().backward()
    assert samples.grad is None and factor.grad is not None


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(backend, options):
    factor, samples = make(2, 5, 3, 2, C128, backend.device)
    assert torch.autograd.gradcheck(
        lambda a: riskernels.factored_blend(a, samples, **options)[0], factor.requires_grad_()
    )


def test_opcheck():
    factor, samples = make(2, 5, 3, 4, C128)
    ops = torch.ops.riskernels
    leaf = factor.clone().requires_grad_()
    torch.library.opcheck(ops.factored_blend, (leaf, samples, 0.3, None), {"loading": 0.1})
    torch.library.opcheck(
        ops.factored_blend_backward,
        (torch.randn(2, 5, 7, dtype=C128), factor, samples, 0.3, 2.0, 0.1, 0.2),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_non_finite_input_stays_in_its_scene(backend):
    factor, samples = make(3, 31, 5, 16, C64, backend.device)
    factor[1, 3, 2] = float("nan")
    leaf = factor.requires_grad_()
    x, rho = riskernels.factored_blend(leaf, samples)
    assert torch.isfinite(x[[0, 2]].abs()).all() and torch.isfinite(rho[[0, 2]]).all()
    assert torch.isnan(x[1, :, :5].abs()).all()
    x.abs().square().sum().backward()
    assert torch.isfinite(leaf.grad[[0, 2]].abs()).all() and torch.isnan(leaf.grad[1].abs()).all()


def test_empty_batch_and_deterministic(backend):
    factor, samples = make(0, 31, 5, 16, C64, backend.device)
    x, rho = riskernels.factored_blend(factor.requires_grad_(), samples)
    assert x.shape == (0, 31, 21) and rho.shape == (0,)
    x.abs().sum().backward()
    assert factor.grad.shape == (0, 31, 5)
    inputs = make(3, 144, 5, 16, C64, backend.device)
    first, again = (riskernels.factored_blend(*inputs)[0] for _ in range(2))
    assert torch.equal(first, again)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 7),
    snapshots=st.integers(1, 17),
    seed=st.integers(0, 2**31),
    beta=st.floats(0, 1),
    loading=st.floats(0, 2),
    shrinkage=st.floats(0, 1),
)
def test_properties(n, k, snapshots, seed, beta, loading, shrinkage):
    factor, samples = make(3, n, k, snapshots, C128, seed=seed)
    options = {"loading": loading, "shrinkage": shrinkage}
    x, rho = riskernels.factored_blend(factor, samples, beta, **options)
    blend = fi.dense(x, rho)
    pred = factor @ factor.mH
    samp = samples.mT @ samples.conj() / snapshots
    assert_close(blend, riskernels.blend_covariance(pred, samp, beta, **options), 1e-12)
    scaled = riskernels.factored_blend(2 * factor, 5 * samples, beta, **options)
    assert_close(fi.dense(*scaled), blend, 1e-12)
    rotation = torch.linalg.qr(torch.randn(3, k, k, dtype=C128))[0]
    turned = riskernels.factored_blend(factor @ rotation, samples, beta, **options)
    assert_close(fi.dense(*turned), blend, 1e-12)
    order = torch.randperm(3)
    permuted, _ = riskernels.factored_blend(factor[order], samples[order], beta, **options)
    assert torch.equal(permuted, x[order])


def test_compile_once_for_every_batch():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def total(factor: Tensor, samples: Tensor) -> Tensor:
        x, rho = riskernels.factored_blend(factor, samples, loading=0.1)
        return x.abs().sum() + rho.sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True, dynamic=True)
    for b in (2, 3, 5):
        factor, samples = make(b, 31, 5, 16, C64, seed=b)
        leaf = factor.requires_grad_()
        got, want = (torch.autograd.grad(f(leaf, samples), leaf)[0] for f in (compiled, total))
        assert_close(got, want, 1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 1), (3, 2)])
def test_vmap(in_dims):
    stacked = [
        t if d is None else torch.stack([t, t.roll(1, 0)], d)
        for t, d in zip(make(3, 9, 4, 2, C128), in_dims, strict=True)
    ]
    got = torch.vmap(riskernels.factored_blend, in_dims)(*stacked)
    for i in range(2):
        one = (t if d is None else t.select(d, i) for t, d in zip(stacked, in_dims, strict=True))
        for g, w in zip(got, riskernels.factored_blend(*one), strict=True):
            assert_close(g[i], w, 1e-13)


def test_batched_gradients():
    factor, samples = make(3, 9, 4, 2, C128)
    x, _ = riskernels.factored_blend(factor.requires_grad_(), samples)
    weights = torch.randn(2, *x.shape, dtype=C128)
    (batched,) = torch.autograd.grad(x, factor, weights, is_grads_batched=True, retain_graph=True)
    for i in range(2):
        (single,) = torch.autograd.grad(x, factor, weights[i], retain_graph=True)
        assert_close(batched[i], single, 1e-12)


def test_autocast_keeps_full_precision():
    inputs = make(2, 31, 5, 16, C64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = riskernels.factored_blend(*inputs)
    for got, want in zip(outputs, riskernels.factored_blend(*inputs), strict=True):
        assert torch.equal(got, want)


ERRORS = [
    ({"factor": torch.zeros(6, 4, dtype=C64)}, r"factor has shape \[6, 4\], expected \[B, N, K\]"),
    ({"factor": torch.zeros(2, 6, 0, dtype=C64)}, "N and K must be at least 1, got N=6, K=0"),
    ({"snapshots": torch.zeros(2, 3, 5, dtype=C64)}, r"snapshots has shape .*expected \[2, L, 6\]"),
    ({"snapshots": torch.zeros(2, 0, 6, dtype=C64)}, "L must be at least 1, got L=0"),
    ({"snapshots": torch.zeros(2, 3, 6, dtype=C128)}, "snapshots has dtype torch.complex128, exp"),
    ({"beta": 1.1}, "beta is 1.1, expected a number from 0 to 1"),
    ({"shrinkage": float("nan")}, "shrinkage is nan, expected a number from 0 to 1"),
    ({"loading": -1.0}, "loading is -1.*, expected a finite number >= 0"),
    ({"target_trace": 0.0}, "target_trace is 0.*, expected a finite number > 0"),
]


@pytest.mark.parametrize("change,message", ERRORS)
def test_errors(backend, change, message):
    factor, samples = make(2, 6, 4, 3, C64)
    arguments = {
        name: v.to(backend.device) if isinstance(v, Tensor) else v
        for name, v in {"factor": factor, "snapshots": samples, **change}.items()
    }
    with pytest.raises(RuntimeError, match=f"^riskernels::factored_blend: {message}"):
        riskernels.factored_blend(**arguments)


def test_backward_checks_the_gradient(backend):
    factor, samples = make(2, 6, 4, 3, C64, backend.device)
    with pytest.raises(RuntimeError, match=r"grad has shape \[2, 6, 4\], expected \[2, 6, 7\]"):
        torch.ops.riskernels.factored_blend_backward(factor, factor, samples, 0.3, None, 0.0, 0.0)
