# SPDX-License-Identifier: Apache-2.0
"""Algebraic properties of subspace_leakage on random subspaces."""

from __future__ import annotations

import tikhonov_inputs as ti
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import riskernels


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 24),
    k=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-6, 1e6),
)
def test_identities(n, k, seed, scale):
    g = torch.Generator().manual_seed(seed)
    dtype = torch.complex128
    unitary = torch.linalg.qr(ti.complex_normal(n, n, dtype=dtype, seed=g))[0]
    rank = min(k, n - 1)
    steering = unitary[None, :, :rank] * (0.5 + torch.rand(rank, generator=g).double())
    mixing = ti.complex_normal(1, rank, rank, dtype=dtype, seed=g)
    rest = unitary[None, :, rank:]
    outer = ti.complex_normal(1, n - rank, n - rank, dtype=dtype, seed=g)
    inside = steering @ (mixing @ mixing.mH) @ steering.mH
    outside = rest @ (outer @ outer.mH) @ rest.mH
    count = torch.tensor([rank])
    leak = lambda r, a=steering, ridge=1e-10: float(  # noqa: E731
        riskernels.subspace_leakage(r, a, count, ridge)
    )
    assert leak(inside) <= 1e-13
    assert abs(leak(outside) - 1) <= 1e-13
    # The ridge shrinks the projection, monotonically.
    values = [leak(inside, ridge=r) for r in (1e-3, 1e-1, 1e1)]
    assert 0 <= values[0] <= values[1] <= values[2] <= 1
    mixed = inside + outside
    value = leak(mixed)
    assert 0 <= value <= 1
    wanted = float(outside.abs().square().sum() / mixed.abs().square().sum())
    assert abs(value - wanted) <= 1e-8
    assert abs(leak(scale * mixed) - value) <= 1e-12
    rotation = torch.linalg.qr(ti.complex_normal(n, n, dtype=dtype, seed=g))[0]
    assert abs(leak(rotation @ mixed @ rotation.mH, rotation @ steering) - value) <= 1e-12
    order = torch.randperm(rank, generator=g)
    assert abs(leak(mixed, steering[:, :, order]) - value) <= 1e-12
    assert abs(leak(mixed.mH) - value) <= 1e-12
