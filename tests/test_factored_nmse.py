# SPDX-License-Identifier: Apache-2.0
"""factored_nmse on every backend, against the dense definition in complex128."""

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


def oracle(
    f: fi.Factors,
    lam_diag: float = 0.2,
    lam_off: float = 0.8,
    eps: float = 1e-12,
    mask: Tensor | None = None,
) -> Tensor:
    """The definition on N x N matrices, with masked rows taken out of the factors."""
    b, n, _ = f.x.shape
    kept = torch.ones(b, n, dtype=torch.bool) if mask is None else mask.cpu().expand(b, n)
    parts = []
    for scene in range(b):
        x, y = (t[scene][kept[scene]] for t in (f.x, f.y))
        target = y @ y.mH
        error = x @ x.mH + f.rho[scene] * torch.eye(len(x), dtype=x.dtype) - target
        diagonal = torch.eye(len(x), dtype=torch.bool)
        ratio = [
            error[part].abs().square().sum() / (target[part].abs().square().sum() + eps)
            for part in (diagonal, ~diagonal)
        ]
        parts.append((lam_diag * ratio[0] + lam_off * ratio[1]) / (lam_diag + lam_off))
    return torch.stack(parts)


def masks(b: int, n: int, device: str) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(n)
    one = torch.rand(n, generator=g) < 0.7
    return [None, one.to(device), (torch.rand(b, n, generator=g) < 0.7).to(device)]


def check(f: fi.Factors, mask: Tensor | None = None, **weights: float) -> None:
    wide, leaves = f.wide(), f.leaves()
    expected = oracle(wide, mask=mask, **weights)
    actual = riskernels.factored_nmse(*leaves.tensors, element_mask=mask, **weights)
    assert actual.dtype == f.x.dtype.to_real()
    bound = tolerance(f.x.dtype)
    assert_close(actual, expected, bound)
    weight = torch.randn(f.x.shape[0], dtype=torch.float64)
    wanted = torch.autograd.grad(expected, wide.tensors, weight)
    got = torch.autograd.grad(actual, leaves.tensors, weight.to(actual.device, actual.dtype))
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w, bound)


@pytest.mark.parametrize("dtype", [C64, C128])
@pytest.mark.parametrize("n,r,k", fi.SIZES)
def test_sizes_and_masks(backend, poisoned, n, r, k, dtype):
    f = fi.make(2, n, r, k, dtype, backend.device)
    weights = [{}, {"lam_diag": 0.7, "lam_off": 0.0}, {"lam_diag": 0.0, "lam_off": 2.0, "eps": 0.1}]
    for mask, chosen in zip(masks(2, n, backend.device), weights, strict=True):
        check(f, mask)
        check(f, mask, **chosen)


@pytest.mark.parametrize("dtype", [C64, C128])
def test_layouts(backend, poisoned, dtype):
    f = fi.make(3, 62, 11, 5, dtype, backend.device)
    for layout in fi.layouts(f).values():
        n = layout.x.shape[1]
        check(layout)
        check(layout, masks(3, n, backend.device)[2])
    check(f, masks(3, 62, backend.device)[2].mT.contiguous().mT)


def test_without_rho(backend):
    f = fi.make(3, 31, 7, 5, C64, backend.device)
    f.rho.zero_()
    with_zeros, without = f.leaves(), f.leaves()
    value = riskernels.factored_nmse(*with_zeros.tensors)
    same = riskernels.factored_nmse(without.x, None, without.y)
    assert torch.equal(value, same)
    value.sum().backward()
    same.sum().backward()
    assert torch.equal(with_zeros.x.grad, without.x.grad)
    assert torch.equal(with_zeros.y.grad, without.y.grad)


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
def test_small_errors_keep_their_digits(backend, size):
    """To 1e-5 relative down to an NMSE of 1e-6 and below it, in complex64."""
    f = fi.make(3, 144, 21, 5, C64, backend.device)
    x = size * f.x
    x[:, :, :5] += f.y
    f = fi.Factors(x, 1e-3 * size * f.rho, f.y)
    actual, expected = riskernels.factored_nmse(*f.tensors), oracle(f.wide())
    assert expected.max() < 4 * size**2
    wide = f.wide()
    with riskernels.use_backend("reference"):
        from_dense = riskernels.hermitian_nmse(fi.dense(wide.x, wide.rho), fi.dense(wide.y))
    for a, e, d in zip(actual, expected, from_dense, strict=True):
        assert_close(a, e, 1e-5)
        assert_close(a, d, 1e-5)


def test_identical_factors_are_exact(backend):
    f = fi.make(2, 144, 5, 5, C64, backend.device)
    value = riskernels.factored_nmse(f.y, None, f.y)
    assert (value < 1e-14).all()
    zero = riskernels.factored_nmse(torch.zeros_like(f.x), None, f.y)
    assert_close(zero, torch.ones(2), 1e-6)


@pytest.mark.parametrize("with_rho,masked", [(False, False), (True, False), (True, True)])
def test_gradcheck(backend, with_rho, masked):
    f = fi.make(2, 4, 3, 2, C128, backend.device)
    mask = torch.tensor([True, False, True, True], device=backend.device) if masked else None
    leaves = f.leaves()
    inputs = leaves.tensors if with_rho else (leaves.x, None, leaves.y)
    assert torch.autograd.gradcheck(
        lambda x, rho, y: riskernels.factored_nmse(x, rho, y, element_mask=mask), inputs
    )


def test_opcheck():
    f = fi.make(2, 5, 3, 2, C128)
    mask = masks(2, 5, "cpu")[2]
    leaves, ops = f.leaves().tensors, torch.ops.riskernels
    torch.library.opcheck(ops.factored_nmse, leaves, {"element_mask": mask})
    torch.library.opcheck(ops.factored_nmse_forward, (*leaves, mask, 0.2, 0.8, 1e-12))
    _, sums, gram = ops.factored_nmse_forward(*f.tensors, mask, 0.2, 0.8, 1e-12)
    grad = torch.rand(2, dtype=torch.float64)
    for needs in ((True, True, True), (False, True, False), (True, False, False)):
        torch.library.opcheck(
            ops.factored_nmse_backward,
            (grad, *f.tensors, sums, gram, mask, 0.2, 0.8, 1e-12),
            dict(zip(("need_factor", "need_rho", "need_target"), needs, strict=True)),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_one_sided_gradients(backend):
    f = fi.make(3, 31, 7, 5, C64, backend.device)
    every = f.leaves()
    riskernels.factored_nmse(*every.tensors).sum().backward()
    for index in range(3):
        inputs = [t.clone() for t in f.tensors]
        inputs[index].requires_grad_()
        riskernels.factored_nmse(*inputs).sum().backward()
        assert torch.equal(inputs[index].grad, every.tensors[index].grad)


@pytest.mark.parametrize("transposed", [False, True])
def test_masked_elements_may_hold_anything(backend, poisoned, transposed):
    f = fi.make(2, 31, 7, 5, C64, backend.device)
    mask = masks(2, 31, backend.device)[1]
    dirty = fi.Factors(f.x.clone(), f.rho, f.y.clone())
    dirty.x[:, ~mask] = float("nan")
    dirty.y[:, ~mask] = float("inf")
    if transposed:
        f, dirty = fi.layouts(f)["transposed"], fi.layouts(dirty)["transposed"]
    leaves = [f.leaves(), dirty.leaves()]
    values = [riskernels.factored_nmse(*p.tensors, element_mask=mask) for p in leaves]
    assert torch.equal(*values)
    for value in values:
        value.sum().backward()
    for c, d in zip(*(p.tensors for p in leaves), strict=True):
        assert torch.equal(c.grad, d.grad)
    assert (leaves[1].x.grad[:, ~mask] == 0).all() and (leaves[1].y.grad[:, ~mask] == 0).all()


def test_a_single_element_and_no_eps(backend):
    """With one kept element and eps = 0 the off-diagonal part is 0/0; gradients are as dense."""
    f = fi.make(1, 5, 3, 2, C128, backend.device)
    mask = torch.tensor([False, False, True, False, False], device=backend.device)
    options = {"lam_off": 0.0, "eps": 0.0, "element_mask": mask}
    leaves, again = f.leaves(), f.leaves()
    riskernels.factored_nmse(*leaves.tensors, **options).sum().backward()
    matrices = fi.dense(again.x, again.rho), fi.dense(again.y)
    riskernels.hermitian_nmse(*matrices, **options).sum().backward()
    for a, b in zip(leaves.tensors, again.tensors, strict=True):
        assert_close(a.grad, b.grad, 1e-12)


def test_non_finite_input_stays_in_its_scene(backend):
    f = fi.make(3, 31, 7, 5, C64, backend.device)
    for index in range(3):
        leaves = fi.Factors(*(t.clone() for t in f.tensors))
        leaves.tensors[index][1] = float("nan")
        leaves = leaves.leaves()
        value = riskernels.factored_nmse(*leaves.tensors)
        assert torch.isfinite(value[[0, 2]]).all() and torch.isnan(value[1])
        value.sum().backward()
        for leaf in leaves.tensors:
            assert torch.isfinite(leaf.grad[[0, 2]].abs()).all()


def test_empty_batch_and_deterministic(backend):
    f = fi.make(0, 31, 7, 5, C64, backend.device).leaves()
    value = riskernels.factored_nmse(*f.tensors)
    assert value.shape == (0,)
    value.sum().backward()
    assert f.x.grad.shape == (0, 31, 7)
    f = fi.make(5, 144, 21, 5, C64, backend.device)
    first = riskernels.factored_nmse(*f.tensors)
    assert torch.equal(first, riskernels.factored_nmse(*f.tensors))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    r=st.integers(1, 12),
    k=st.integers(1, 7),
    seed=st.integers(0, 2**31),
    lam_diag=st.floats(0, 5),
    lam_off=st.floats(0.01, 5),
)
def test_properties(n, r, k, seed, lam_diag, lam_off):
    f = fi.make(3, n, r, k, C128, seed=seed)
    nmse = lambda *t: riskernels.factored_nmse(*t, lam_diag, lam_off)  # noqa: E731
    value = nmse(*f.tensors)
    assert_close(value, riskernels.hermitian_nmse(
        fi.dense(f.x, f.rho), fi.dense(f.y), lam_diag, lam_off), 1e-10)  # fmt: skip
    rotations = [torch.linalg.qr(torch.randn(3, c, c, dtype=C128))[0] for c in (r, k)]
    assert_close(nmse(f.x @ rotations[0], f.rho, f.y @ rotations[1]), value, 1e-10)
    order = torch.randperm(3)
    assert torch.equal(nmse(*(t[order] for t in f.tensors)), value[order])
    rows = torch.randperm(n)
    assert_close(nmse(f.x[:, rows], f.rho, f.y[:, rows]), value, 1e-10)


def test_compile_once_for_every_batch():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def total(x: Tensor, rho: Tensor, y: Tensor) -> Tensor:
        return riskernels.factored_nmse(x, rho, y).sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True, dynamic=True)
    for b in (2, 3, 5):
        f = fi.make(b, 31, 7, 5, C64, seed=b).leaves()
        got = torch.autograd.grad(compiled(*f.tensors), f.tensors)
        want = torch.autograd.grad(total(*f.tensors), f.tensors)
        for x, y in zip(got, want, strict=True):
            assert torch.equal(x, y)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, 1), (None, 1, None), (3, 0, None)])
def test_vmap(in_dims):
    f = fi.make(3, 9, 4, 2, C128)
    stacked = [
        t if d is None else torch.stack([t, 2 * t], d)
        for t, d in zip(f.tensors, in_dims, strict=True)
    ]
    mask = torch.rand(3, 2, 9) < 0.7

    def call(x: Tensor, rho: Tensor, y: Tensor, m: Tensor) -> Tensor:
        return riskernels.factored_nmse(x, rho, y, element_mask=m)

    want = [
        call(
            *(t if d is None else t.select(d, i) for t, d in zip(stacked, in_dims, strict=True)),
            mask[:, i],
        )
        for i in range(2)
    ]
    assert_close(torch.vmap(call, (*in_dims, 1))(*stacked, mask), torch.stack(want), 1e-13)
    without = torch.vmap(lambda x: riskernels.factored_nmse(x, None, f.y))(
        torch.stack([f.x, 2 * f.x])
    )
    assert_close(without[1], riskernels.factored_nmse(2 * f.x, None, f.y), 1e-13)


def test_batched_gradients():
    f = fi.make(3, 9, 4, 2, C128).leaves()
    value = riskernels.factored_nmse(*f.tensors, element_mask=torch.rand(3, 9) < 0.7)
    weights = torch.randn(2, 3, dtype=torch.float64)
    batched = torch.autograd.grad(
        value, f.tensors, weights, is_grads_batched=True, retain_graph=True
    )
    for i in range(2):
        single = torch.autograd.grad(value, f.tensors, weights[i], retain_graph=True)
        for m, s in zip(batched, single, strict=True):
            assert_close(m[i], s, 1e-12)


def test_autocast_keeps_full_precision():
    f = fi.make(2, 31, 7, 5, C64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = riskernels.factored_nmse(*f.tensors)
    assert torch.equal(value, riskernels.factored_nmse(*f.tensors))


ERRORS = [
    ({"factor": torch.zeros(6, 4, dtype=C64)}, r"factor has shape \[6, 4\], expected \[B, N, r\]"),
    ({"factor": torch.zeros(2, 6, 0, dtype=C64)}, "N and r must be at least 1, got N=6, r=0"),
    ({"factor": torch.zeros(2, 6, 4)}, "factor has dtype torch.float32, expected complex64 or"),
    (
        {"target_factor": torch.zeros(2, 5, 3, dtype=C64)},
        r"target_factor has shape \[2, 5, 3\], expected \[2, 6, k\]",
    ),
    ({"target_factor": torch.zeros(2, 6, 0, dtype=C64)}, "N and k must be at least 1"),
    ({"target_factor": torch.zeros(2, 6, 3, dtype=C128)}, "target_factor has dtype torch.complex"),
    ({"rho": torch.zeros(3)}, r"rho has shape \[3\], expected \[2\]"),
    ({"rho": torch.zeros(2, dtype=torch.float64)}, "rho has dtype torch.float64, expected torch.f"),
    ({"lam_diag": -0.1}, "lam_diag is -0.1, expected a finite number >= 0"),
    ({"eps": float("nan")}, "eps is nan"),
    ({"lam_diag": 0.0, "lam_off": 0.0}, "lam_diag . lam_off is 0, expected at least one"),
    ({"element_mask": torch.ones(6)}, "element_mask has dtype torch.float32, expected torch.bool"),
    ({"element_mask": torch.ones(5, dtype=torch.bool)}, r"element_mask has shape \[5\], expected"),
]


@pytest.mark.parametrize("change,message", ERRORS)
def test_errors(backend, change, message):
    f = fi.make(2, 6, 4, 3, C64)
    arguments = {"factor": f.x, "rho": f.rho, "target_factor": f.y, **change}
    arguments = {
        name: v.to(backend.device) if isinstance(v, Tensor) else v for name, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=f"^riskernels::factored_nmse: {message}"):
        riskernels.factored_nmse(**arguments)


def test_backward_checks_what_the_forward_kept(backend):
    f = fi.make(2, 6, 4, 3, C64, backend.device)
    ops, weights = torch.ops.riskernels, (None, 0.2, 0.8, 1e-12)
    value, sums, gram = ops.factored_nmse_forward(*f.tensors, *weights)
    cases = [
        ((value.double(), sums, gram), "grad has dtype torch.float64, expected torch.float32"),
        ((value, sums.float(), gram), "sums has dtype torch.float32, expected torch.float64"),
        ((value, sums, gram[:, 1:]), r"gram has shape \[2, 6, 7\], expected \[2, 7, 7\]"),
    ]
    for (grad, kept_sums, kept_gram), message in cases:
        with pytest.raises(RuntimeError, match=f"^riskernels::factored_nmse_backward: {message}"):
            ops.factored_nmse_backward(grad, *f.tensors, kept_sums, kept_gram, *weights)
