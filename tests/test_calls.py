# SPDX-License-Identifier: Apache-2.0
"""Plain eager calls, which take less of torch's way to an operator, and all others."""

from __future__ import annotations

import contextlib

import pytest
import simd_outputs
import tikhonov_inputs as ti
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import riskernels
from riskernels import library
from riskernels.ops import _calls


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators whose rule is applied without torch's way to it."""
    names: list[str] = []

    def recorded(op, apply):
        def call(*args):
            names.append(op.removeprefix("riskernels::"))
            return apply(*args)

        return call

    for op, apply in dict(_calls._rules).items():
        monkeypatch.setitem(_calls._rules, op, recorded(op, apply))
    return names


def test_both_ways_give_the_same(taken):
    """To the last bit, outputs and gradients of every operator and option."""
    want = simd_outputs.outputs()
    forward = {op for op in library.operators() if not op.endswith("_backward")}
    assert set(taken) == forward
    taken.clear()
    # Autocast, which leaves these dtypes as they are, takes torch's own way.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = simd_outputs.outputs()
    assert not taken
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert torch.equal(value, want[name]), name


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(contextlib.nullcontext, id="plain"),
        pytest.param(lambda: riskernels.use_backend("reference"), id="backend"),
        pytest.param(
            lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
            id="hooks",
        ),
    ],
)
def test_a_plain_call_in_a_context(taken, context):
    leaves = ti.make(3, 5, 7, 31).leaves()
    with context():
        value = riskernels.tikhonov_covariance(*leaves.tensors, relative=True)
        got = torch.autograd.grad(value.abs().square().sum(), leaves.tensors)
    assert taken == ["tikhonov_covariance"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = riskernels.tikhonov_covariance(*leaves.tensors, relative=True)
        want = torch.autograd.grad(expected.abs().square().sum(), leaves.tensors)
    for x, y in zip((value, *got), (expected, *want), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


def test_fake_tensors_and_checkpoints(taken):
    inputs = ti.make(3, 5, 7, 31)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in inputs.tensors]
        value = riskernels.tikhonov_covariance(*fakes)
        gradients = torch.autograd.grad(value.abs().sum(), fakes)
    assert [g.shape for g in gradients] == [t.shape for t in inputs.tensors]
    leaves = inputs.leaves().tensors
    again = checkpoint(riskernels.tikhonov_covariance, *leaves, use_reentrant=False)
    want = riskernels.tikhonov_covariance(*leaves)
    assert torch.equal(again, want)
    (got,) = torch.autograd.grad(again.abs().sum(), leaves[:1])
    assert torch.equal(got, torch.autograd.grad(want.abs().sum(), leaves[:1])[0])
    assert set(taken) == {"tikhonov_covariance"}


def test_what_a_transform_leaves_behind(taken):
    """A tensor of a transform that has ended is the plain one that it wrapped."""
    y, h, codes = ti.make(3, 5, 7, 31).tensors

    def left_by_transform(value):
        left = []

        def function(scale):
            left.append(value * scale)
            return left[0].abs().sum()

        torch.func.grad(function)(torch.tensor(2.0, dtype=torch.float64))
        return left[0]

    want = riskernels.tikhonov_covariance(2 * y, h, codes)
    got = riskernels.tikhonov_covariance(left_by_transform(y), h, codes)
    assert torch.equal(got, want) and not got.requires_grad
    leaf = y.clone().requires_grad_()
    got = riskernels.tikhonov_covariance(left_by_transform(leaf), h, codes)
    (slope,) = torch.autograd.grad(got.abs().sum(), leaf)
    want = riskernels.tikhonov_covariance(2 * leaf, h, codes)
    assert torch.equal(slope, torch.autograd.grad(want.abs().sum(), leaf)[0])
    assert taken == ["tikhonov_covariance"]


def test_numbers_in_tensors(taken):
    """They may change before the backward."""
    leaves = ti.make(3, 5, 7, 31).leaves().tensors
    alpha = torch.tensor(0.1, dtype=torch.float64)
    value = riskernels.tikhonov_covariance(*leaves, alpha)
    alpha.fill_(100.0)
    got = torch.autograd.grad(value.abs().sum(), leaves)
    assert not taken
    value = riskernels.tikhonov_covariance(*leaves, 0.1)
    for x, y in zip(got, torch.autograd.grad(value.abs().sum(), leaves), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(RuntimeError, match=r"tikhonov_covariance\(\)"):
        riskernels.tikhonov_covariance(*leaves, relative=torch.ones(2))


def test_gradients_to_one_input_alone(taken):
    inputs = ti.make(3, 5, 7, 31).tensors
    every = [t.clone().requires_grad_() for t in inputs]
    want = torch.autograd.grad(riskernels.tikhonov_covariance(*every).abs().sum(), every)
    for i in range(3):
        some = [t.clone().requires_grad_(k == i) for k, t in enumerate(inputs)]
        value = riskernels.tikhonov_covariance(*some)
        (got,) = torch.autograd.grad(value.abs().sum(), some[i])
        torch.testing.assert_close(got, want[i], rtol=1e-12, atol=1e-12)
    assert taken == ["tikhonov_covariance"] * 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traces_can_be_saved(tmp_path, taken):
    inputs = ti.make(3, 5, 7, 31)
    traced = torch.jit.trace(
        lambda y, h, codes: riskernels.tikhonov_covariance(y, h, codes),
        inputs.leaves().tensors,
    )
    path = str(tmp_path / "trace.pt")
    torch.jit.save(traced, path)
    again = torch.jit.load(path)
    assert torch.equal(again(*inputs.tensors), riskernels.tikhonov_covariance(*inputs.tensors))
    assert not taken
