# SPDX-License-Identifier: Apache-2.0
"""tikhonov_covariance on every backend, against the N-side definition in complex128."""

from __future__ import annotations

import itertools

import pytest
import tikhonov_inputs as ti
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import riskernels
from riskernels.testing import assert_close, compare, tolerance

OPTIONS = [dict(relative=r, center=c) for r, c in itertools.product((False, True), repeat=2)]
KINDS = [(False, "unit"), (False, "tapered"), (False, "varying"), (True, "unit"), (True, "varying")]
ALPHA = 1e-3


def check(inputs: ti.Inputs, alpha: float = ALPHA, **options: bool) -> None:
    """Value and all gradients against the oracle."""
    reference = inputs.oracle()
    expected = ti.covariance_oracle(reference, alpha, **options)
    leaves = inputs.leaves()
    actual = riskernels.tikhonov_covariance(*leaves.tensors, alpha, **options)
    assert torch.equal(actual, actual.mH), "not exactly Hermitian"
    assert torch.all(actual.diagonal(dim1=1, dim2=2).imag == 0)
    if options.get("center") and inputs.y.shape[1] == 1:
        assert torch.all(actual.abs() == 0), "one centred snapshot has no covariance"
        return
    # The gradient solves with S twice, the value once; M > N leaves S as ill-conditioned as
    # |Phi|^2 / alpha. The N-side oracle itself loses cond(Phi^H Phi + alpha I) eps in complex128.
    bound = tolerance(actual.dtype, ti.condition(inputs, alpha, options.get("relative", False)))
    bound = max(bound, 1e-9)
    assert_close(actual, expected, bound, "covariance")
    weight = ti.aligned_weight(expected)
    wanted = torch.autograd.grad(ti.inner(expected, weight), reference.tensors)
    got = torch.autograd.grad(
        ti.inner(actual, weight.to(actual.device, actual.dtype)), leaves.tensors
    )
    for name, g, w in zip(("y", "h", "codes"), got, wanted, strict=True):
        assert_close(g, w, 4 * bound, f"gradient to {name}")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("m,n,snapshots", ti.SIZES)
def test_sizes(backend, poisoned, m, n, snapshots, dtype):
    # Kinds and options rotate over the sizes; test_options has every combination of them.
    turn = m + n + snapshots
    for k in (turn, turn + 2):
        per_snapshot, modulus = KINDS[k % 5]
        inputs = ti.make(
            *(1 if n > 31 else 2, snapshots, m, n, dtype),
            per_snapshot=per_snapshot,
            modulus=modulus,
            device=backend.device,
            seed=turn + k,
        )
        check(inputs, **OPTIONS[(k + m) % 4])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("per_snapshot,modulus", KINDS)
def test_options(backend, poisoned, per_snapshot, modulus, options):
    inputs = ti.make(
        *(2, 5, 16, 144, torch.complex64),
        per_snapshot=per_snapshot,
        modulus=modulus,
        device=backend.device,
    )
    check(inputs, **options)


@pytest.mark.parametrize("modulus", ["unit", "varying"])
def test_default_shape_accuracy(backend, modulus):
    inputs = ti.make(64, 16, 16, 144, torch.complex64, modulus=modulus, device=backend.device)
    actual = riskernels.tikhonov_covariance(*inputs.tensors)
    expected = ti.covariance_oracle(inputs.oracle(), ALPHA)
    for b in range(64):
        assert compare(actual[b], expected[b]).relative < 2e-6


def test_noise_above_the_pivot_floor_does_not_grow(backend):
    """M > N and alpha far below the rounding of |Phi|^2: indefinite Schur complements."""
    inputs = ti.make(
        *(48, 4, 32, 7, torch.complex64), per_snapshot=True, device=backend.device, seed=3
    )
    estimates = riskernels.tikhonov_snapshots(*inputs.tensors, 1e-8)
    expected = ti.snapshots_oracle(inputs.oracle(), 1e-8)
    # What is unresolved may be wrong by c eps |Phi|^2 / alpha; growth would be by powers of that.
    assert_close(estimates, expected, 200.0, "estimates")


def test_codes_of_unit_modulus_up_to_their_rounding_share_a_factorisation(backend):
    """Phases through float32 leave a few ulp of modulus; the value must not depend on the path."""
    inputs = ti.make(8, 16, 16, 144, torch.complex64, device=backend.device)
    ulp = 1 + 3 * torch.finfo(torch.float32).eps * torch.randn(8, 16, 144)
    codes = (inputs.codes.cpu() * ulp).to(inputs.codes)
    value = riskernels.tikhonov_covariance(inputs.y, inputs.h, codes)
    expected = ti.covariance_oracle(ti.Inputs(inputs.y, inputs.h, codes).oracle(), ALPHA)
    assert compare(value, expected).relative < 2e-6


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("per_snapshot", [False, True])
def test_gradcheck(backend, per_snapshot, options):
    leaves = ti.make(
        2, 3, 3, 4, per_snapshot=per_snapshot, modulus="varying", device=backend.device
    ).leaves()
    assert torch.autograd.gradcheck(
        lambda *x: riskernels.tikhonov_covariance(*x, 0.1, **options), leaves.tensors
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("per_snapshot", [False, True])
def test_opcheck(per_snapshot, options):
    leaves = ti.make(2, 3, 4, 6, per_snapshot=per_snapshot, modulus="varying").leaves()
    op = torch.ops.riskernels.tikhonov_covariance
    torch.library.opcheck(op, leaves.tensors, options)
    torch.library.opcheck(op, (*leaves.tensors, 0.1), options)
    grad = torch.randn(2, 6, 6, dtype=torch.complex128)
    plain = [t.detach() for t in leaves.tensors]
    for needs in itertools.product((False, True), repeat=3):
        flags = dict(zip(("need_y", "need_h", "need_codes"), needs, strict=True))
        torch.library.opcheck(
            torch.ops.riskernels.tikhonov_covariance_backward,
            (grad, *plain, 0.1),
            {**options, **flags},
        )


def test_only_requested_gradients(backend):
    """A codebook learns through codes alone."""
    full = ti.make(2, 5, 7, 31, device=backend.device).leaves()
    riskernels.tikhonov_covariance(*full.tensors).abs().sum().backward()
    for index in range(3):
        alone = ti.make(2, 5, 7, 31, device=backend.device)
        leaf = alone.tensors[index].requires_grad_()
        riskernels.tikhonov_covariance(*alone.tensors).abs().sum().backward()
        assert_close(leaf.grad, full.tensors[index].grad, 1e-13)


def test_strides(backend, poisoned):
    """Expanded, transposed, sliced and conjugated views give what their copies give."""
    base = ti.make(3, 5, 7, 31, torch.complex64, device=backend.device)
    expanded = ti.Inputs(
        base.y[:1].expand(3, 5, 7), base.h[:1].expand(3, 7, 31), base.codes[:1].expand(3, 5, 31)
    )
    odd = ti.Inputs(
        base.y.mT.contiguous().mT,
        base.h.mT.contiguous().mT,
        torch.stack([base.codes, base.codes], -1)[..., 0],
    )
    conjugated = ti.Inputs(base.y.conj(), base.h.conj(), base.codes.conj())
    negated = ti.Inputs(base.y.conj().imag * 1j, base.h, base.codes)
    one_channel = ti.Inputs(base.y, base.h[:, None].expand(3, 5, 7, 31), base.codes)
    for inputs in (expanded, odd, conjugated, negated, one_channel):
        copies = ti.Inputs(*(t.clone().contiguous().resolve_conj() for t in inputs.tensors))
        assert_close(
            riskernels.tikhonov_covariance(*inputs.tensors),
            riskernels.tikhonov_covariance(*copies.tensors),
            1e-6,
        )
        check(inputs)
    leaves = base.leaves()
    value = riskernels.tikhonov_covariance(*leaves.tensors)
    for weight in (value.detach().mT, value.detach()[:1].expand(3, 31, 31), value.detach().conj()):
        got = torch.autograd.grad(ti.inner(value, weight), leaves.tensors, retain_graph=True)
        want = torch.autograd.grad(
            ti.inner(value, weight.clone().contiguous()), leaves.tensors, retain_graph=True
        )
        for g, w in zip(got, want, strict=True):
            assert_close(g, w, 1e-6)


def test_empty_batch(backend):
    leaves = ti.make(0, 5, 7, 31, torch.complex64, device=backend.device).leaves()
    value = riskernels.tikhonov_covariance(*leaves.tensors)
    assert value.shape == (0, 31, 31)
    value.abs().sum().backward()
    assert leaves.h.grad.shape == (0, 7, 31)


@pytest.mark.parametrize("dead", ["y", "h", "codes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_stays_in_its_scene(backend, dead, value):
    inputs = ti.make(3, 5, 7, 31, torch.complex64, device=backend.device)
    clean = riskernels.tikhonov_covariance(*inputs.tensors)
    getattr(inputs, dead)[1].view(-1)[3] = value
    dirty = riskernels.tikhonov_covariance(*inputs.tensors)
    assert torch.equal(dirty[[0, 2]], clean[[0, 2]])
    assert not torch.isfinite(torch.view_as_real(dirty[1])).all()


def test_zero_channel_gives_zero(backend):
    """alpha relative to a dead channel is 0; the estimate is 0, not NaN."""
    inputs = ti.make(2, 5, 7, 31, torch.complex64, device=backend.device)
    inputs.h[0] = 0
    for relative in (False, True):
        value = riskernels.tikhonov_covariance(*inputs.tensors, relative=relative)
        assert torch.all(value[0] == 0) and torch.isfinite(value.abs()).all()


def test_tiny_relative_loading_does_not_underflow(backend):
    """alpha |Phi|^2 / N below the smallest float is not taken for a dead channel."""
    inputs = ti.make(2, 5, 7, 31, torch.complex64, device=backend.device)
    small = ti.Inputs(inputs.y * 1e-17, inputs.h * 1e-16, inputs.codes)
    value = riskernels.tikhonov_snapshots(*small.tensors, 1e-7, relative=True)
    expected = riskernels.tikhonov_snapshots(*inputs.tensors, 1e-7, relative=True)
    assert_close(value * 10, expected, 1e-4)


def test_rank_deficient_gram_stays_finite(backend):
    """In float32 S loses definiteness below alpha ~ eps |Phi|^2; the pivot floor keeps it whole."""
    inputs = ti.make(4, 5, 33, 7, torch.complex64, device=backend.device)
    value = riskernels.tikhonov_covariance(inputs.y, 1e3 * inputs.h, inputs.codes, 1e-3)
    assert torch.isfinite(torch.view_as_real(value)).all()


def test_deterministic_over_runs_and_threads(backend):
    inputs = ti.make(7, 16, 16, 144, torch.complex64, device=backend.device)
    first = riskernels.tikhonov_covariance(*inputs.tensors)
    assert torch.equal(first, riskernels.tikhonov_covariance(*inputs.tensors))
    if backend.name != "cpu":
        return
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(first, riskernels.tikhonov_covariance(*inputs.tensors))
    finally:
        torch.set_num_threads(threads)


def test_learnable_alpha_by_scaling(backend):
    """The docstring's recipe: alpha = s^2 through y / s and h / s."""
    inputs = ti.make(2, 5, 7, 31, device=backend.device)
    s = torch.tensor(0.3, dtype=torch.float64, device=backend.device, requires_grad=True)
    value = riskernels.tikhonov_covariance(inputs.y / s, inputs.h / s, inputs.codes, 1.0)
    assert_close(value, riskernels.tikhonov_covariance(*inputs.tensors, 0.09), 1e-12)
    value.abs().square().sum().backward()
    step = 1e-6
    losses = [
        riskernels.tikhonov_covariance(*inputs.tensors, (0.3 + d) ** 2).abs().square().sum()
        for d in (-step, step)
    ]
    assert torch.allclose(s.grad, (losses[1] - losses[0]) / (2 * step), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 4),
    snapshots=st.integers(1, 9),
    m=st.integers(1, 20),
    n=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    relative=st.booleans(),
    center=st.booleans(),
    scale=st.floats(0.01, 100),
)
def test_properties(b, snapshots, m, n, seed, relative, center, scale):
    inputs = ti.make(b, snapshots, m, n, modulus="varying", seed=seed)
    options = dict(relative=relative, center=center)
    value = riskernels.tikhonov_covariance(*inputs.tensors, ALPHA, **options)
    assert torch.equal(value, value.mH)
    eigenvalues = torch.linalg.eigvalsh(value)
    top = eigenvalues[:, -1:].clamp_min(1e-300)
    assert torch.all(eigenvalues >= -1e-12 * top), "not positive semidefinite"
    rank = min(n, snapshots - center)
    assert torch.all((eigenvalues > 1e-12 * top).sum(1) <= rank)
    # Quadratic in y, equivariant to the order of the scenes, invariant to that of the snapshots.
    scaled = riskernels.tikhonov_covariance(
        scale * inputs.y, inputs.h, inputs.codes, ALPHA, **options
    )
    assert torch.allclose(scaled, scale**2 * value, rtol=1e-10, atol=1e-12 * float(top.max()))
    order = torch.randperm(b)
    permuted = riskernels.tikhonov_covariance(*(t[order] for t in inputs.tensors), ALPHA, **options)
    assert torch.equal(permuted, value[order])
    shuffled = torch.randperm(snapshots)
    same = riskernels.tikhonov_covariance(
        inputs.y[:, shuffled], inputs.h, inputs.codes[:, shuffled], ALPHA, **options
    )
    assert torch.allclose(same, value, rtol=1e-9, atol=1e-11 * float(top.max()))


def test_expectation_for_random_channels():
    """E[R_samp] is proportional to (M/N) R + (1 - M/N) (tr R / N) I over random unitary rows."""
    m, n, snapshots, scenes = 4, 8, 4, 40000
    g = torch.Generator().manual_seed(3)
    unitary = torch.linalg.qr(torch.randn(scenes, n, m, dtype=torch.complex128, generator=g))[0]
    h = unitary.mH
    direction = torch.randn(n, dtype=torch.complex128, generator=g)
    truth = torch.outer(direction, direction.conj())
    truth = truth * n / truth.diagonal().real.sum()
    symbols = torch.randn(scenes, snapshots, 1, dtype=torch.complex128, generator=g)
    x = symbols * direction * (n**0.5 / direction.norm())
    codes = torch.ones(scenes, snapshots, n, dtype=torch.complex128)
    y = (h.unsqueeze(1) @ x.unsqueeze(-1)).squeeze(-1)
    mean = riskernels.tikhonov_covariance(y, h, codes, 1e-9).mean(0)
    # A Haar projector P of rank m has E[P R P] = p R + q (tr R) I with the two moments below.
    d = n * (n**2 - 1)
    p, q = (m**2 * n - m) / d, (m * n - m**2) / d
    expected = p * truth + q * n * torch.eye(n, dtype=torch.complex128)
    assert compare(mean, expected).relative < 0.02
