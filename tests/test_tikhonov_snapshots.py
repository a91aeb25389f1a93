# SPDX-License-Identifier: Apache-2.0
"""tikhonov_snapshots on every backend, against the N-side definition in complex128."""

from __future__ import annotations

import pytest
import tikhonov_inputs as ti
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import riskernels
from riskernels.testing import assert_close, tolerance

KINDS = [(False, "unit"), (False, "tapered"), (False, "varying"), (True, "unit"), (True, "varying")]
ALPHA = 1e-3


def check(inputs: ti.Inputs, alpha: float = ALPHA, relative: bool = False) -> None:
    """Value and all gradients against the oracle."""
    reference = inputs.oracle()
    expected = ti.snapshots_oracle(reference, alpha, relative)
    leaves = inputs.leaves()
    actual = riskernels.tikhonov_snapshots(*leaves.tensors, alpha, relative=relative)
    # The N-side oracle itself loses cond(Phi^H Phi + alpha I) eps in complex128.
    bound = max(tolerance(actual.dtype, ti.condition(inputs, alpha, relative)), 1e-9)
    assert_close(actual, expected, bound, "snapshots")
    weight = ti.aligned_weight(expected)
    wanted = torch.autograd.grad(ti.inner(expected, weight), reference.tensors)
    got = torch.autograd.grad(
        ti.inner(actual, weight.to(actual.device, actual.dtype)), leaves.tensors
    )
    for name, g, w in zip(("y", "h", "codes"), got, wanted, strict=True):
        assert_close(g, w, 4 * bound, f"gradient to {name}")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("m,n,snapshots", ti.SIZES[::2])
def test_sizes(backend, poisoned, m, n, snapshots, dtype):
    per_snapshot, modulus = KINDS[(m + n + snapshots) % 5]
    inputs = ti.make(
        *(1 if n > 31 else 2, snapshots, m, n, dtype),
        per_snapshot=per_snapshot,
        modulus=modulus,
        device=backend.device,
        seed=m * n + snapshots,
    )
    check(inputs, relative=bool((m + snapshots) % 2))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("per_snapshot,modulus", KINDS)
def test_kinds(backend, poisoned, per_snapshot, modulus, relative):
    inputs = ti.make(
        *(3, 5, 16, 31, torch.complex64),
        per_snapshot=per_snapshot,
        modulus=modulus,
        device=backend.device,
    )
    check(inputs, relative=relative)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("per_snapshot", [False, True])
def test_gradcheck_and_opcheck(backend, per_snapshot, relative):
    inputs = ti.make(
        2, 3, 3, 4, per_snapshot=per_snapshot, modulus="varying", device=backend.device
    )
    leaves = inputs.leaves()
    assert torch.autograd.gradcheck(
        lambda *x: riskernels.tikhonov_snapshots(*x, 0.1, relative=relative), leaves.tensors
    )


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("per_snapshot", [False, True])
def test_opcheck(per_snapshot, relative):
    leaves = ti.make(2, 3, 4, 6, per_snapshot=per_snapshot, modulus="varying").leaves()
    op = torch.ops.riskernels.tikhonov_snapshots
    torch.library.opcheck(op, leaves.tensors, {"relative": relative})
    grad = torch.randn(2, 3, 6, dtype=torch.complex128)
    torch.library.opcheck(
        torch.ops.riskernels.tikhonov_snapshots_backward,
        (grad, *(t.detach() for t in leaves.tensors), 0.1),
        {"relative": relative, "need_h": False},
    )


def test_factor_of_the_covariance(backend):
    inputs = ti.make(2, 16, 16, 144, torch.complex64, device=backend.device)
    a = riskernels.tikhonov_snapshots(*inputs.tensors)
    assert_close(a.mT @ a.conj() / 16, riskernels.tikhonov_covariance(*inputs.tensors), 1e-6)


def test_noncontiguous_gradient(backend, poisoned):
    leaves = ti.make(3, 5, 7, 31, torch.complex64, device=backend.device).leaves()
    value = riskernels.tikhonov_snapshots(*leaves.tensors)
    weight = torch.randn(31, 5, 3, dtype=torch.complex64, device=backend.device).permute(2, 1, 0)
    for view in (weight, weight.conj(), weight[:1].expand(3, 5, 31)):
        got = torch.autograd.grad(value, leaves.tensors, view, retain_graph=True)
        copy = view.resolve_conj().clone(memory_format=torch.contiguous_format)
        want = torch.autograd.grad(value, leaves.tensors, copy, retain_graph=True)
        for g, w in zip(got, want, strict=True):
            assert_close(g, w, 1e-6)


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 20),
    n=st.integers(1, 60),
    snapshots=st.integers(1, 9),
    alpha=st.floats(1e-6, 10),
    seed=st.integers(0, 2**31),
)
def test_push_through_forms_agree(m, n, snapshots, alpha, seed):
    inputs = ti.make(2, snapshots, m, n, modulus="varying", seed=seed)
    value = riskernels.tikhonov_snapshots(*inputs.tensors, alpha)
    bound = 1e-14 * n * (1 + 1 / alpha) * ti.condition(inputs, alpha)
    assert_close(value, ti.snapshots_oracle(inputs, alpha), max(bound, 1e-12))
