# SPDX-License-Identifier: Apache-2.0
"""factored_leakage on every backend, against literal projectors in complex128."""

from __future__ import annotations

import factored_inputs as fi
import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import riskernels
from riskernels.testing import assert_close, tolerance

C64, C128 = torch.complex64, torch.complex128
RIDGE = 1e-4


def oracle(f: fi.Factors, num_sources: Tensor, ridge: float = 1e-4) -> Tensor:
    """|P_perp R P_perp|^2 / |R|^2 with the N x N matrices of the definition."""
    values = []
    for x, rho, s, count in zip(*f.tensors, num_sources.cpu().tolist(), strict=True):
        s = s[:, : max(count, 0)]
        n, k = s.shape
        inverse = torch.linalg.inv(s.mH @ s + ridge * torch.eye(k, dtype=s.dtype))
        outside = torch.eye(n, dtype=s.dtype) - s @ inverse @ s.mH
        r = x @ x.mH + rho * torch.eye(n, dtype=s.dtype)
        values.append((outside @ r @ outside).abs().square().sum() / r.abs().square().sum())
    return torch.stack(values)


def counts(b: int, k: int, device: str) -> Tensor:
    """From more than there are down to none."""
    return (k + 1 - torch.arange(b)).clamp(min=0).to(device)


def condition(f: fi.Factors, ridge: float) -> float:
    """Of S^H S + ridge I, at most, whose solves run in double for either dtype."""
    values = torch.linalg.svdvals(f.y.detach()).square()
    smallest = values[..., -1] if f.y.shape[2] <= f.y.shape[1] else torch.zeros(len(values))
    return float(((values[..., 0] + ridge) / (smallest + ridge)).max())


def check(f: fi.Factors, num_sources: Tensor, ridge: float = 1e-4) -> None:
    wide, leaves = f.wide(), f.leaves()
    expected = oracle(wide, num_sources, ridge)
    actual = riskernels.factored_leakage(leaves.x, leaves.rho, f.y, num_sources, ridge)
    assert actual.dtype == f.x.dtype.to_real()
    # A leakage is a difference of numbers of size 1, and its gradients of their gradients.
    bound = max(tolerance(f.x.dtype), tolerance(C128, condition(wide, ridge)))
    fi.close(actual, expected, bound, floor=1.0)
    weight = torch.randn(f.x.shape[0], dtype=torch.float64)
    wanted = torch.autograd.grad(expected, (wide.x, wide.rho), weight)
    got = torch.autograd.grad(
        actual, (leaves.x, leaves.rho), weight.to(actual.device, actual.dtype)
    )
    energy = fi.dense(wide.x, wide.rho).detach().abs().square().sum((1, 2)).sqrt()
    scale = (weight.abs() / energy).norm().item()
    fi.close(got[0], wanted[0], bound, floor=4 * scale * wide.x.detach().norm().item())
    fi.close(got[1], wanted[1], bound, floor=4 * scale * f.x.shape[1] ** 0.5)


@pytest.mark.parametrize("dtype", [C64, C128])
@pytest.mark.parametrize("n,r,k", fi.SIZES)
def test_sizes(backend, poisoned, n, r, k, dtype):
    f = fi.make(3, n, r, k, dtype, backend.device)
    check(f, counts(3, k, backend.device))
    check(f, torch.full((3,), -1, device=backend.device), ridge=0.1)
    check(f, torch.full((3,), k, device=backend.device), ridge=0.1)


@pytest.mark.parametrize("dtype", [C64, C128])
def test_layouts(backend, poisoned, dtype):
    f = fi.make(3, 62, 11, 5, dtype, backend.device)
    strided = torch.stack([counts(3, 5, backend.device)] * 2, 1)[:, 0]
    for layout in fi.layouts(f).values():
        check(layout, strided)
        check(layout, strided[1:2].expand(3), ridge=1e-2)


def test_without_rho(backend):
    f = fi.make(3, 31, 7, 5, C64, backend.device)
    f.rho.zero_()
    sources = counts(3, 5, backend.device)
    with_zeros, without = f.leaves(), f.leaves()
    value = riskernels.factored_leakage(with_zeros.x, with_zeros.rho, f.y, sources)
    same = riskernels.factored_leakage(without.x, None, f.y, sources)
    assert torch.equal(value, same)
    value.sum().backward()
    same.sum().backward()
    assert torch.equal(with_zeros.x.grad, without.x.grad)


def test_inside_and_outside_the_span(backend):
    f = fi.make(2, 144, 8, 5, C64, backend.device)
    basis = torch.linalg.qr(f.y)[0]
    sources = torch.full((2,), 5, device=backend.device)
    inside = basis @ f.x[:, :5]
    assert (riskernels.factored_leakage(inside, None, basis, sources, 1e-7) < 1e-12).all()
    outside = f.x - basis @ (basis.mH @ f.x)
    one = torch.ones(2)
    assert_close(riskernels.factored_leakage(outside, None, basis, sources), one, 1e-6)
    nothing = torch.zeros(2, dtype=torch.int64, device=backend.device)
    assert torch.equal(riskernels.factored_leakage(inside, f.rho, basis, nothing).cpu(), one)


def test_zero_covariance(backend, poisoned):
    f = fi.make(2, 31, 7, 5, C64, backend.device)
    leaf = torch.zeros_like(f.x).requires_grad_()
    value = riskernels.factored_leakage(leaf, None, f.y, counts(2, 5, backend.device))
    assert (value == 0).all()
    value.sum().backward()
    assert (leaf.grad == 0).all()


def test_dependent_steering_vectors(backend):
    """Equal sources and a ridge below rounding: still a number from 0 to 1."""
    f = fi.make(2, 31, 7, 5, C64, backend.device)
    steering = f.y[:, :, :1].expand(2, 31, 5)
    leaves = f.leaves()
    sources = torch.full((2,), 5, device=backend.device)
    value = riskernels.factored_leakage(leaves.x, leaves.rho, steering, sources, 1e-20)
    single = riskernels.factored_leakage(f.x, f.rho, f.y, torch.ones_like(sources), 1e-20)
    assert_close(value, single, 1e-3)
    value.sum().backward()
    assert torch.isfinite(leaves.x.grad.abs()).all() and torch.isfinite(leaves.rho.grad).all()


@pytest.mark.parametrize("with_rho", [False, True])
def test_gradcheck(backend, with_rho):
    f = fi.make(3, 5, 3, 2, C128, backend.device)
    leaves, sources = f.leaves(), counts(3, 2, backend.device)
    assert torch.autograd.gradcheck(
        lambda x, rho: riskernels.factored_leakage(x, rho, f.y, sources),
        (leaves.x, leaves.rho if with_rho else None),
    )


def test_opcheck():
    f = fi.make(2, 5, 3, 2, C128)
    leaves, ops, sources = f.leaves(), torch.ops.riskernels, torch.tensor([2, 1])
    arguments = (leaves.x, leaves.rho, f.y, sources)
    torch.library.opcheck(ops.factored_leakage, arguments)
    torch.library.opcheck(ops.factored_leakage_forward, (*arguments, 1e-4))
    plain = (f.x, f.rho, f.y, sources)
    leakage, gram = ops.factored_leakage_forward(*plain, 1e-4)
    grad = torch.rand(2, dtype=torch.float64)
    for needs in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(
            ops.factored_leakage_backward,
            (grad, *plain, leakage, gram, 1e-4),
            dict(zip(("need_factor", "need_rho"), needs, strict=True)),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_one_sided_gradients(backend):
    f = fi.make(3, 31, 7, 5, C64, backend.device)
    sources, both = counts(3, 5, backend.device), f.leaves()
    riskernels.factored_leakage(both.x, both.rho, f.y, sources).sum().backward()
    for index in range(2):
        inputs = [f.x.clone(), f.rho.clone()]
        inputs[index].requires_grad_()
        riskernels.factored_leakage(*inputs, f.y, sources).sum().backward()
        assert torch.equal(inputs[index].grad, both.tensors[index].grad)


@pytest.mark.parametrize("transposed", [False, True])
def test_columns_that_do_not_count_may_hold_anything(backend, poisoned, transposed):
    f = fi.make(3, 31, 7, 5, C64, backend.device)
    sources = torch.tensor([0, 2, 4], device=backend.device)
    dirty = f.y.clone()
    for scene, count in enumerate(sources.tolist()):
        dirty[scene, :, count:] = float("nan")
    results = []
    for steering in (f.y, dirty.mT.contiguous().mT if transposed else dirty):
        leaves = f.leaves()
        value = riskernels.factored_leakage(leaves.x, leaves.rho, steering, sources)
        results.append((value, *torch.autograd.grad(value.sum(), (leaves.x, leaves.rho))))
    for clean, masked in zip(*results, strict=True):
        assert torch.equal(clean, masked)


def test_steering_that_requires_grad_is_refused(backend):
    f = fi.make(2, 31, 7, 5, C64, backend.device)
    sources, steering = counts(2, 5, backend.device), f.y.clone().requires_grad_()
    for factor in (f.x, f.leaves().x):
        with pytest.raises(RuntimeError, match=r"pass steering\.detach\(\)"):
            riskernels.factored_leakage(factor, f.rho, steering, sources)
    with torch.no_grad():
        riskernels.factored_leakage(f.x, f.rho, steering, sources)


def test_non_finite_input_stays_in_its_scene(backend):
    f = fi.make(3, 31, 7, 5, C64, backend.device)
    sources = torch.full((3,), 5, device=backend.device)
    for index in range(3):
        dirty = fi.Factors(*(t.clone() for t in f.tensors))
        dirty.tensors[index][1] = float("nan")
        leaves = dirty.leaves()
        value = riskernels.factored_leakage(leaves.x, leaves.rho, dirty.y, sources)
        assert torch.isfinite(value[[0, 2]]).all() and torch.isnan(value[1])
        for grad in torch.autograd.grad(value.sum(), (leaves.x, leaves.rho)):
            assert torch.isfinite(grad[[0, 2]].abs()).all()


def test_empty_batch_and_deterministic(backend):
    f = fi.make(0, 31, 7, 5, C64, backend.device).leaves()
    value = riskernels.factored_leakage(f.x, f.rho, f.y.detach(), counts(0, 5, backend.device))
    assert value.shape == (0,)
    value.sum().backward()
    assert f.x.grad.shape == (0, 31, 7) and f.rho.grad.shape == (0,)
    f = fi.make(5, 144, 21, 5, C64, backend.device)
    arguments = (*f.tensors, counts(5, 5, backend.device))
    first = riskernels.factored_leakage(*arguments)
    assert torch.equal(first, riskernels.factored_leakage(*arguments))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), r=st.integers(1, 12), k=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_properties(n, r, k, seed):
    f = fi.make(3, n, r, k, C128, seed=seed)
    sources = counts(3, k, "cpu")
    value = riskernels.factored_leakage(*f.tensors, sources, RIDGE)
    assert ((value >= 0) & (value <= 1 + 1e-12)).all()
    # More columns than rows, or nearly equal ones: the ridge alone keeps their Gram matrix regular.
    gram = torch.linalg.eigvalsh(f.y.mH @ f.y + RIDGE * torch.eye(k))
    tolerance = 1e-12 + 4 * torch.finfo(torch.float64).eps * (gram[:, -1] / gram[:, 0]).max().item()
    from_dense = riskernels.subspace_leakage(fi.dense(f.x, f.rho), f.y, sources, RIDGE)
    fi.close(value, from_dense, tolerance, floor=1.0)
    rotation = torch.linalg.qr(torch.randn(3, r, r, dtype=C128))[0]
    turned = riskernels.factored_leakage(f.x @ rotation, f.rho, f.y, sources, RIDGE)
    fi.close(turned, value, tolerance, floor=1.0)
    order = torch.randperm(3)
    permuted = riskernels.factored_leakage(*(t[order] for t in (*f.tensors, sources)), RIDGE)
    assert torch.equal(permuted, value[order])
    scaled = riskernels.factored_leakage(3 * f.x, 9 * f.rho, f.y, sources, RIDGE)
    fi.close(scaled, value, tolerance, floor=1.0)


def test_compile_once_for_every_batch():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def total(x: Tensor, rho: Tensor, steering: Tensor, sources: Tensor) -> Tensor:
        return riskernels.factored_leakage(x, rho, steering, sources).sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True, dynamic=True)
    for b in (2, 3, 5):
        f = fi.make(b, 31, 7, 5, C64, seed=b)
        leaves, sources = f.leaves(), counts(b, 5, "cpu")
        got, want = (
            torch.autograd.grad(call(leaves.x, leaves.rho, f.y, sources), (leaves.x, leaves.rho))
            for call in (compiled, total)
        )
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("in_dims", [(0, 0, 0, 0), (0, None, None, 1), (None, 1, 2, None)])
def test_vmap(in_dims):
    f = fi.make(3, 9, 4, 2, C128)
    tensors = (*f.tensors, torch.tensor([2, 1, 2]))
    stacked = [
        t if d is None else torch.stack([t, t.roll(1, 0)], d)
        for t, d in zip(tensors, in_dims, strict=True)
    ]
    want = [
        riskernels.factored_leakage(
            *(t if d is None else t.select(d, i) for t, d in zip(stacked, in_dims, strict=True))
        )
        for i in range(2)
    ]
    got = torch.vmap(riskernels.factored_leakage, in_dims)(*stacked)
    assert_close(got, torch.stack(want), 1e-13)


def test_batched_gradients():
    f = fi.make(3, 9, 4, 2, C128)
    leaf = f.leaves().x
    value = riskernels.factored_leakage(leaf, None, f.y, torch.tensor([2, 1, 2]))
    weights = torch.randn(2, 3, dtype=torch.float64)
    (batched,) = torch.autograd.grad(value, leaf, weights, is_grads_batched=True, retain_graph=True)
    for i in range(2):
        (single,) = torch.autograd.grad(value, leaf, weights[i], retain_graph=True)
        assert_close(batched[i], single, 1e-12)


def test_autocast_keeps_full_precision():
    f = fi.make(2, 31, 7, 5, C64)
    arguments = (*f.tensors, torch.tensor([5, 3]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = riskernels.factored_leakage(*arguments)
    assert torch.equal(value, riskernels.factored_leakage(*arguments))


ERRORS = [
    ({"factor": torch.zeros(6, 4, dtype=C64)}, r"factor has shape \[6, 4\], expected \[B, N, r\]"),
    ({"steering": torch.zeros(2, 6, dtype=C64)}, r"steering has shape \[2, 6\], expected \[B, N, "),
    ({"steering": torch.zeros(2, 5, 3, dtype=C64)}, r"steering has shape .*expected \[2, 6, k\]"),
    ({"steering": torch.zeros(2, 6, 0, dtype=C64)}, "N and k must be at least 1, got N=6, k=0"),
    ({"rho": torch.zeros(2, 1)}, r"rho has shape \[2, 1\], expected \[2\]"),
    ({"num_sources": torch.zeros(2)}, "num_sources has dtype torch.float32, expected torch.int64"),
    ({"num_sources": torch.zeros(3, dtype=torch.int64)}, r"num_sources has shape \[3\], expected"),
    ({"ridge": 0.0}, "ridge is 0.*, expected a finite number > 0"),
    ({"ridge": float("inf")}, "ridge is inf"),
]


@pytest.mark.parametrize("change,message", ERRORS)
def test_errors(backend, change, message):
    f = fi.make(2, 6, 4, 3, C64)
    arguments = {"factor": f.x, "rho": f.rho, "steering": f.y, "num_sources": torch.tensor([3, 2])}
    arguments = {
        name: v.to(backend.device) if isinstance(v, Tensor) else v
        for name, v in {**arguments, **change}.items()
    }
    with pytest.raises(RuntimeError, match=f"^riskernels::factored_leakage: {message}"):
        riskernels.factored_leakage(**arguments)
