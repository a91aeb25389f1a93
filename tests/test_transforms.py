# SPDX-License-Identifier: Apache-2.0
"""Operators under vmap, torch.compile, export, autocast, fake tensors and forward-mode AD."""

from __future__ import annotations

import pytest
import tikhonov_inputs as ti
import torch
import torch._dynamo
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

import riskernels
from riskernels.testing import assert_close


@pytest.fixture
def inputs():
    return ti.make(3, 5, 7, 31)


def nmse_of(y, h, codes):
    """Both operators in one differentiable function."""
    covariance = riskernels.tikhonov_covariance(y, h, codes)
    return riskernels.hermitian_nmse(covariance, covariance.detach().roll(1, 1)).sum()


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, 0), (None, 1, None), (2, 0, 1)])
def test_vmap_tikhonov(in_dims):
    stacked = [
        t if d is None else torch.stack([t, 2 * t], d)
        for t, d in zip(ti.make(3, 5, 7, 31).tensors, in_dims, strict=True)
    ]
    single = [
        [t if d is None else t.select(d, k) for t, d in zip(stacked, in_dims, strict=True)]
        for k in range(2)
    ]
    for op in (riskernels.tikhonov_covariance, riskernels.tikhonov_snapshots):
        mapped = torch.vmap(op, in_dims)(*stacked)
        assert_close(mapped, torch.stack([op(*s) for s in single]), 1e-13)


def test_batched_gradients(inputs):
    """vmap over the backward operators, as autograd does for is_grads_batched."""
    leaves = inputs.leaves()
    covariance = riskernels.tikhonov_covariance(*leaves.tensors)
    snapshots = riskernels.tikhonov_snapshots(*leaves.tensors)
    target = covariance.detach().roll(1, 1)
    nmse = riskernels.hermitian_nmse(covariance, target)
    for value in (covariance, snapshots, nmse):
        weights = torch.randn(2, *value.shape).to(value.dtype)
        batched = torch.autograd.grad(
            value, leaves.tensors, weights, is_grads_batched=True, retain_graph=True
        )
        for k in range(2):
            single = torch.autograd.grad(value, leaves.tensors, weights[k], retain_graph=True)
            for m, s in zip(batched, single, strict=True):
                assert_close(m[k], s, 1e-12)


@pytest.mark.parametrize("mask_dim", ["none", "shared", "per scene", "mapped", "mapped per scene"])
def test_vmap_nmse(mask_dim):
    g = torch.Generator().manual_seed(0)
    estimate, target = (
        torch.randn(2, 3, 6, 6, dtype=torch.complex128, generator=g) for _ in range(2)
    )
    mask = {
        "none": None,
        "shared": torch.rand(6, generator=g) < 0.6,
        "per scene": torch.rand(3, 6, generator=g) < 0.6,
        "mapped": torch.rand(2, 6, generator=g) < 0.6,
        "mapped per scene": torch.rand(2, 3, 6, generator=g) < 0.6,
    }[mask_dim]
    mapped_mask = mask_dim.startswith("mapped")

    def call(e, t, m):
        return riskernels.hermitian_nmse(e, t, element_mask=m)

    got = torch.vmap(call, (0, 0, 0 if mapped_mask else None))(estimate, target, mask)
    want = [call(estimate[k], target[k], mask[k] if mapped_mask else mask) for k in range(2)]
    assert_close(got, torch.stack(want), 1e-13)


def test_vmap_over_the_last_dimension_of_a_mask():
    g = torch.Generator().manual_seed(0)
    estimate, target = (torch.randn(3, 6, 6, dtype=torch.complex128, generator=g) for _ in "ab")
    mask = torch.rand(6, 4, generator=g) < 0.6

    def call(m):
        return riskernels.hermitian_nmse(estimate, target, element_mask=m)

    want = torch.stack([call(mask[:, k]) for k in range(4)])
    assert_close(torch.vmap(call, 1)(mask), want, 1e-13)


def test_compile_once_for_every_batch(inputs):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(nmse_of, fullgraph=True, dynamic=True)
    for b in (2, 3, 5, 8):
        leaves = ti.make(b, 5, 7, 31, seed=b).leaves()
        value = compiled(*leaves.tensors)
        got = torch.autograd.grad(value, leaves.tensors)
        eager = nmse_of(*leaves.tensors)
        want = torch.autograd.grad(eager, leaves.tensors)
        assert_close(value, eager, 1e-13)
        for x, y in zip(got, want, strict=True):
            assert_close(x, y, 1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compile_of_conjugated_views(inputs):
    """Lazy conjugation inside a compiled graph, on the first and on later calls."""
    torch._dynamo.reset()

    def call(y, h, codes):
        return riskernels.tikhonov_covariance(y.conj(), h.mT.contiguous().mT, codes.conj())

    for name in ("reference", "cpu"):
        with riskernels.use_backend("reference"):
            want = call(*inputs.tensors)
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            assert_close(compiled(*inputs.tensors), want, 1e-9, name)


def test_export(inputs):
    class Model(torch.nn.Module):
        def forward(self, y, h, codes):
            return riskernels.tikhonov_covariance(y, h, codes, center=True)

    b = torch.export.Dim("b", min=2)
    program = torch.export.export(
        Model(), inputs.tensors, dynamic_shapes={"y": {0: b}, "h": {0: b}, "codes": {0: b}}
    )
    other = ti.make(6, 5, 7, 31, seed=9)
    assert_close(program.module()(*other.tensors), Model()(*other.tensors), 1e-13)


def test_fake_shapes():
    y, h, codes = (t.to("meta") for t in ti.make(3, 5, 7, 31, torch.complex64).tensors)
    covariance = riskernels.tikhonov_covariance(y, h, codes)
    assert covariance.shape == (3, 31, 31) and covariance.dtype == torch.complex64
    assert riskernels.tikhonov_snapshots(y, h, codes).shape == (3, 5, 31)
    value = riskernels.hermitian_nmse(covariance, covariance)
    assert value.shape == (3,) and value.dtype == torch.float32


def test_autocast_keeps_full_precision():
    inputs = ti.make(3, 5, 7, 31, torch.complex64)
    plain = riskernels.tikhonov_covariance(*inputs.tensors)
    plain_nmse = riskernels.hermitian_nmse(plain, plain.mT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(riskernels.tikhonov_covariance(*inputs.tensors), plain)
        assert torch.equal(riskernels.hermitian_nmse(plain, plain.mT), plain_nmse)
        half = [t.to(torch.complex32) for t in inputs.tensors]
        widened = riskernels.tikhonov_covariance(*half)
    assert widened.dtype == torch.complex64
    expected = riskernels.tikhonov_covariance(*(t.to(torch.complex64) for t in half))
    assert torch.equal(widened, expected)
    with pytest.raises(RuntimeError, match=r"dtype torch\.complex32"):
        riskernels.tikhonov_covariance(*half)


def test_forward_mode_raises(inputs):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs.y, torch.ones_like(inputs.y))
        for y, h in ((dual, inputs.h), (dual, inputs.leaves().h)):
            with pytest.raises(RuntimeError, match="forward-mode derivatives are not available"):
                riskernels.tikhonov_covariance(y, h, inputs.codes)
        covariance = forward_ad.make_dual(torch.eye(4)[None] + 0j, torch.ones(1, 4, 4) + 0j)
        with pytest.raises(RuntimeError, match="forward-mode derivatives are not available"):
            riskernels.hermitian_nmse(covariance, covariance)


def test_forward_over_reverse_raises(inputs):
    """A tangent that meets a backward operator is not dropped either."""
    grad = torch.randn(3, 31, 31, dtype=torch.complex128)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(grad, torch.ones_like(grad))
        with pytest.raises(RuntimeError, match="forward-mode derivatives are not available"):
            torch.ops.riskernels.tikhonov_covariance_backward(
                dual, *inputs.tensors, 1e-3, relative=False, center=False
            )


def test_second_derivatives_raise(inputs):
    leaves = inputs.leaves()
    (grad,) = torch.autograd.grad(nmse_of(*leaves.tensors), leaves.codes, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.abs().sum().backward()


def test_inference_mode_and_no_grad(inputs):
    want = riskernels.tikhonov_covariance(*inputs.tensors)
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            got = riskernels.tikhonov_covariance(*inputs.leaves().tensors)
        assert torch.equal(got, want) and not got.requires_grad


def _scaled(weight, function, args, kwargs):
    """The call with its first argument multiplied, which makes it differentiable."""
    return function(args[0] * weight, *args[1:], **(kwargs or {}))


@pytest.mark.parametrize("op", ["tikhonov_covariance", "tikhonov_snapshots"])
def test_torch_functions_keep_gradients(inputs, op):
    """What overrides torch functions may make an argument differentiable inside the call."""
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    function = getattr(riskernels, op)
    overload = getattr(torch.ops.riskernels, op).default

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is not overload:
                return func(*args, **(kwargs or {}))
            return _scaled(weight, func, args, kwargs)

    class Weighted:
        """Stands for a tensor, as the parameters of some libraries do."""

        def __init__(self, value):
            self.value = value

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return _scaled(weight, func, (args[0].value, *args[1:]), kwargs)

    y, h, codes = inputs.tensors
    want = function(y * weight, h, codes)
    (slope,) = torch.autograd.grad(want.abs().square().sum(), weight)
    with Mode():
        of_mode = function(y, h, codes)
    for got in (of_mode, function(Weighted(y), h, codes)):
        assert_close(got, want, 1e-13)
        (found,) = torch.autograd.grad(got.abs().square().sum(), weight)
        assert_close(found, slope, 1e-12)
