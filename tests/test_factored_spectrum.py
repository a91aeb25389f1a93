# SPDX-License-Identifier: Apache-2.0
"""factored_spectrum on every backend, against eigvalsh of the dense matrix in complex128."""

from __future__ import annotations

import itertools

import pytest
import tikhonov_inputs as ti
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import riskernels
from riskernels.testing import assert_close, tolerance

C64, C128 = torch.complex64, torch.complex128
SIZES = [
    (1, 1),
    (7, 2),
    (144, 5),
    (20, 16),
    (144, 21),
    (60, 26),
    (10, 33),
    (3, 16),
    (40, 70),
]  # N, r


def factors(
    b: int, n: int, r: int, dtype: torch.dtype = C128, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """X of unit mean energy, and rho."""
    g = torch.Generator().manual_seed(seed)
    x = ti.complex_normal(b, n, r, dtype=C128, seed=g) / (n * r) ** 0.5
    rho = torch.rand(b, dtype=torch.float64, generator=g)
    return x.to(dtype).to(device), rho.to(dtype.to_real()).to(device)


def with_spectrum(squares: Tensor, n: int, seed: int = 0) -> Tensor:
    """X [B, n, r] with these squared singular values [B, r]."""
    g = torch.Generator().manual_seed(seed)
    b, r = squares.shape
    left = torch.linalg.qr(ti.complex_normal(b, n, r, dtype=C128, seed=g))[0]
    right = torch.linalg.qr(ti.complex_normal(b, r, r, dtype=C128, seed=g))[0]
    return (left * squares.sqrt()[:, None, :]) @ right.mH


def oracle(x: Tensor, rho: Tensor | None) -> Tensor:
    """The r largest eigenvalues of the dense matrix, rho beyond the N-th; differentiable."""
    b, n, r = x.shape
    shift = torch.zeros(b, dtype=torch.float64) if rho is None else rho
    eye = torch.eye(n, dtype=x.dtype)
    found = torch.linalg.eigvalsh(x @ x.mH + shift[:, None, None] * eye).flip(-1)
    return torch.cat([found, shift[:, None].expand(b, max(r - n, 0))], -1)[:, :r]


def wide(tensor: Tensor) -> Tensor:
    """The same values in double on the CPU, as an autograd leaf."""
    plain = tensor.detach().cpu()
    return plain.to(C128 if plain.is_complex() else torch.float64).requires_grad_()


def check_values(x: Tensor, rho: Tensor | None = None) -> None:
    """Each value to its share of the largest; the vectors are orthonormal and diagonalise."""
    expected = oracle(wide(x).detach(), None if rho is None else wide(rho).detach())
    values, vectors = torch.ops.riskernels.factored_spectrum_forward(x, rho)
    assert torch.equal(values, riskernels.factored_spectrum(x, rho))
    assert values.dtype == x.dtype.to_real() and vectors.dtype == x.dtype
    assert values.is_contiguous() and vectors.is_contiguous()
    assert torch.all(values[:, 1:] <= values[:, :-1])
    bound = tolerance(x.dtype)
    largest = expected[:, :1].clamp_min(torch.finfo(torch.float64).tiny)
    assert ((values.cpu() - expected).abs() / largest).max() <= bound
    u, gram = wide(vectors), wide(x).mH @ wide(x)
    eye = torch.eye(x.shape[2], dtype=C128).expand_as(u)
    assert_close(u.mH @ u, eye, bound)
    diagonal = torch.diag_embed((u.mH @ gram @ u).diagonal(dim1=1, dim2=2))
    assert ((gram @ u - u @ diagonal).abs().amax((1, 2)) / largest[:, 0]).max() <= bound


def check_symmetric_gradient(x: Tensor, rho: Tensor) -> None:
    """The gradient of log det(R + I / 10), which does not know of single eigenvalues."""
    leaves, exact = [t.detach().requires_grad_() for t in (x, rho)], [wide(t) for t in (x, rho)]
    n, r = x.shape[1:]
    eye = torch.eye(n, dtype=C128)
    dense = torch.logdet(exact[0] @ exact[0].mH + (exact[1] + 0.1)[:, None, None] * eye).real
    weight = 1.0 + torch.rand(x.shape[0], dtype=torch.float64)
    wanted = torch.autograd.grad(dense, exact, weight)
    values = riskernels.factored_spectrum(*leaves)
    # Of the N eigenvalues, those that the result does not hold equal rho.
    logdet = (values + 0.1).log().sum(-1) + (n - r) * (leaves[1] + 0.1).log()
    got = torch.autograd.grad(logdet, leaves, weight.to(values.device, values.dtype))
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w, tolerance(x.dtype, 10.0))


@pytest.mark.parametrize("dtype", [C64, C128])
@pytest.mark.parametrize("n,r", SIZES)
def test_sizes(backend, poisoned, n, r, dtype):
    for b in (1, 3, 9) if n * r < 2000 else (2,):
        x, rho = factors(b, n, r, dtype, backend.device)
        check_values(x)
        check_values(x, rho)
        check_symmetric_gradient(x, rho)


@pytest.mark.parametrize("dtype", [C64, C128])
def test_gradients_of_single_eigenvalues(backend, poisoned, dtype):
    squares = torch.tensor([[1.0, 0.8, 0.55, 0.3, 0.1], [2.0, 1.0, 0.7, 0.5, 0.2]])
    x = with_spectrum(squares.double(), 31).to(dtype).to(backend.device)
    rho = torch.tensor([0.3, 0.0], dtype=dtype.to_real(), device=backend.device)
    leaves, exact = [t.requires_grad_() for t in (x, rho)], [wide(t) for t in (x, rho)]
    weight = 0.5 + torch.rand(2, 5, dtype=torch.float64)
    wanted = torch.autograd.grad(oracle(*exact), exact, weight)
    values = riskernels.factored_spectrum(*leaves)
    got = torch.autograd.grad(values, leaves, weight.to(values.device, values.dtype))
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w, tolerance(dtype, 10.0))


@pytest.mark.parametrize("dtype", [C64, C128])
def test_degenerate_and_clustered(backend, dtype):
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(4, 12, dtype=torch.float64, generator=g)
    spectra = [
        torch.ones(2, 12, dtype=torch.float64),
        torch.tensor([3.0, 1.0, 1e-8]).double().repeat_interleave(4).expand(2, 12),
        1 + 1e-9 * noise,
        1 + 1e-15 * noise,
        torch.logspace(0, -18, 12, dtype=torch.float64)[None],
    ]
    for squares in spectra:
        x = with_spectrum(squares, 20).to(dtype).to(backend.device)
        check_values(x)
        rho = torch.full((len(x),), 0.5, dtype=dtype.to_real(), device=backend.device)
        check_symmetric_gradient(x, rho)


@pytest.mark.parametrize("dtype", [C64, C128])
def test_lost_rank_and_special_matrices(backend, poisoned, dtype):
    x, rho = factors(3, 30, 4, C128)
    low, _ = factors(3, 4, 21, C128, seed=1)
    check_values((x @ low).to(dtype).to(backend.device))
    repeated = x[:, :, [0, 0, 1, 1, 1, 2]].to(dtype).to(backend.device)
    check_values(repeated, rho.to(dtype.to_real()).to(backend.device))
    # Diagonal, with gaps and zeros; real; one column of many zero ones.
    diagonal = torch.diag_embed(torch.tensor([[1.0, 0.0, 3.0, 0.5, 0.0]])).to(dtype)
    check_values(diagonal.to(backend.device))
    check_values(x.real.to(dtype).to(backend.device))
    lone = torch.zeros(2, 9, 8, dtype=dtype, device=backend.device)
    lone[1, 4, 3] = 2j
    values, vectors = torch.ops.riskernels.factored_spectrum_forward(lone, None)
    wanted = torch.zeros_like(values)
    wanted[1, 0] = 4
    assert torch.equal(values, wanted)
    assert_close(vectors.mH @ vectors, torch.eye(8, dtype=C128).expand(2, 8, 8), tolerance(dtype))
    leaf = lone.requires_grad_()
    riskernels.factored_spectrum(leaf).sum().backward()
    assert_close(leaf.grad, 2 * lone, tolerance(dtype))


def test_scales(backend):
    """Far from 1 in either direction, as far as squares can be represented."""
    x, _ = factors(2, 9, 6, C128, backend.device)
    reference = riskernels.factored_spectrum(x)
    for exponent in (-450, -80, 80, 450):
        scaled = riskernels.factored_spectrum(x * 2.0**exponent)
        assert_close(scaled * 2.0 ** (-2 * exponent), reference, tolerance(C128))
    single = riskernels.factored_spectrum(x.to(C64) * 2.0**-50)
    assert_close(single * 2.0**100, reference, tolerance(C64))


def test_strides(backend, poisoned):
    base, rho = factors(3, 12, 10, C64, backend.device)
    stacked = torch.stack([base, base.flip(1)], -1)
    for x in (
        base.mT,
        base.conj(),
        base.mH,
        base[:1].expand(3, 12, 10),
        base[:, :1].expand(3, 12, 10),
        stacked[..., 1],
        base[:, ::3, 1::2],
        -base.imag * 1j,
    ):
        check_values(x, rho)
        check_symmetric_gradient(x, rho)
    check_values(base, rho[:1].expand(3))
    check_values(base[:2], torch.stack([rho, rho], -1).flatten()[1:4:2])


def test_gradients_of_any_strides(backend):
    x, rho = factors(3, 12, 5, C64, backend.device)
    leaves = [x.requires_grad_(), rho.requires_grad_()]
    values = riskernels.factored_spectrum(*leaves)
    for weight in (torch.rand(5, 3).mT, torch.rand(1, 5).expand(3, 5), torch.rand(1).expand(3, 5)):
        weight = weight.to(backend.device)
        got = torch.autograd.grad(values, leaves, weight, retain_graph=True)
        want = torch.autograd.grad(values, leaves, weight.clone(), retain_graph=True)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    vectors = torch.ops.riskernels.factored_spectrum_forward(x.detach(), None)[1]
    backward = torch.ops.riskernels.factored_spectrum_backward
    plain, odd = (backward(weight, x.detach(), v) for v in (vectors, vectors.mT.contiguous().mT))
    assert all(torch.equal(p, o) for p, o in zip(plain, odd, strict=True))


def test_requested_gradients_only(backend):
    x, rho = factors(3, 12, 5, C128, backend.device)
    both = [x.clone().requires_grad_(), rho.clone().requires_grad_()]
    riskernels.factored_spectrum(*both).square().sum().backward()
    for index in range(2):
        one = [x.clone(), rho.clone()]
        one[index].requires_grad_()
        riskernels.factored_spectrum(*one).square().sum().backward()
        assert torch.equal(one[index].grad, both[index].grad)
        assert one[1 - index].grad is None


def test_non_finite_input_stays_in_its_scene(backend):
    clean, rho = factors(9, 12, 6, C64, backend.device)
    dirty, dirty_rho = clean.clone(), rho.clone()
    for scene, bad in ((1, torch.nan), (4, torch.inf), (8, complex(0.0, -torch.inf))):
        dirty[scene, scene, 3] = bad
    dirty_rho[6] = torch.nan
    lost = torch.zeros(9, dtype=torch.bool, device=backend.device)
    lost[[1, 4, 6, 8]] = True
    value = riskernels.factored_spectrum(dirty.requires_grad_(), dirty_rho)
    assert torch.equal(value.isnan(), lost[:, None].expand(9, 6))
    leaf = clean.requires_grad_()
    expected = riskernels.factored_spectrum(leaf, rho)
    assert torch.equal(value[~lost], expected[~lost])
    value.sum().backward()
    expected.sum().backward()
    assert torch.equal(dirty.grad[~lost], leaf.grad[~lost])
    assert dirty.grad[[1, 4, 8]].real.isnan().all()


def test_empty_batch_and_same_bits(backend):
    x, rho = factors(0, 12, 5, C64, backend.device)
    leaf = x.requires_grad_()
    value = riskernels.factored_spectrum(leaf, rho)
    value.sum().backward()
    assert value.shape == (0, 5) and leaf.grad.shape == (0, 12, 5)
    x, rho = factors(11, 30, 21, C64, backend.device)
    first = torch.ops.riskernels.factored_spectrum_forward(x, rho)
    again = torch.ops.riskernels.factored_spectrum_forward(x, rho)
    # A scene does not depend on those that are decomposed beside it.
    alone = torch.ops.riskernels.factored_spectrum_forward(x[7:8], rho[7:8])
    for f, a, lone in zip(first, again, alone, strict=True):
        assert torch.equal(f, a)
        if backend.name != "reference":
            assert torch.equal(f[7:8], lone)


def test_gradcheck(backend):
    squares = torch.tensor([[1.0, 0.6, 0.3], [2.0, 1.0, 0.5]]).double()
    x = with_spectrum(squares, 5).to(backend.device).requires_grad_()
    rho = torch.tensor([0.2, 0.4], dtype=torch.float64, device=backend.device).requires_grad_()
    assert torch.autograd.gradcheck(riskernels.factored_spectrum, (x, rho))
    assert torch.autograd.gradcheck(riskernels.factored_spectrum, (x,))


def test_opcheck():
    x, rho = factors(2, 5, 3)
    leaves = (x.requires_grad_(), rho.requires_grad_())
    ops = torch.ops.riskernels
    torch.library.opcheck(ops.factored_spectrum, leaves)
    for shift in (leaves[1], None):
        torch.library.opcheck(ops.factored_spectrum_forward, (leaves[0], shift))
    vectors = ops.factored_spectrum_forward(x.detach(), None)[1]
    grad = torch.rand(2, 3, dtype=torch.float64)
    for need_factor, need_rho in itertools.product((False, True), repeat=2):
        torch.library.opcheck(
            ops.factored_spectrum_backward,
            (grad, x.detach(), vectors),
            {"need_factor": need_factor, "need_rho": need_rho},
        )


def test_vmap(backend):
    x, rho = factors(6, 7, 4, C128, backend.device)
    mapped = torch.vmap(riskernels.factored_spectrum)(x.view(2, 3, 7, 4), rho.view(2, 3))
    assert_close(mapped.flatten(0, 1), riskernels.factored_spectrum(x, rho), 1e-14)
    shared = torch.vmap(riskernels.factored_spectrum, (0, None))(x.view(2, 3, 7, 4), rho[:3])
    assert_close(shared[1], riskernels.factored_spectrum(x[3:], rho[:3]), 1e-14)
    leaves = [x.requires_grad_(), rho.requires_grad_()]
    value = riskernels.factored_spectrum(*leaves)
    weights = torch.rand(3, 6, 4, dtype=torch.float64, device=backend.device)
    many = torch.autograd.grad(value, leaves, weights, retain_graph=True, is_grads_batched=True)
    for k, weight in enumerate(weights):
        one = torch.autograd.grad(value, leaves, weight, retain_graph=True)
        for m, o in zip(many, one, strict=True):
            assert_close(m[k], o, 1e-14)


def test_refusals(backend):
    x, rho = factors(2, 5, 3, C64, backend.device)
    grad, vectors = torch.rand(2, 3, device=backend.device), x[:, :3]
    spectrum = riskernels.factored_spectrum
    backward = torch.ops.riskernels.factored_spectrum_backward
    calls = [
        (lambda: spectrum(x.real), "factor has dtype torch.float32, expected complex64"),
        (lambda: spectrum(x[0]), r"factor has shape \[5, 3\], expected \[B, N, r\]"),
        (lambda: spectrum(x[:, :0]), "N and r must be at least 1, got N=0, r=3"),
        (lambda: spectrum(x, rho.double()), "rho has dtype torch.float64, expected torch.float32"),
        (lambda: spectrum(x, rho[:1]), r"rho has shape \[1\], expected \[2\]"),
        (lambda: backward(grad[:, :2], x, vectors), r"grad has shape \[2, 2\], expected \[2, 3\]"),
        (lambda: backward(grad, x, x), r"vectors has shape \[2, 5, 3\], expected \[2, 3, 3\]"),
    ]
    for call, message in calls:
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        leaf = x.clone().requires_grad_()
        value = spectrum(leaf).square().sum()
        (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
        slope.abs().sum().backward()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 30), r=st.integers(1, 24), b=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_identities(n, r, b, seed):
    x, rho = factors(b, n, r, C128, seed=seed)
    values = riskernels.factored_spectrum(x, rho)
    energy = x.abs().square().sum((1, 2))
    assert torch.allclose(values.sum(-1), energy + r * rho, rtol=1e-12)
    assert torch.all(values[:, n:] == rho[:, None]) and torch.all(values >= rho[:, None])
    left = torch.linalg.qr(torch.randn(b, n, n, dtype=C128))[0]
    right = torch.linalg.qr(torch.randn(b, r, r, dtype=C128))[0]
    turned = riskernels.factored_spectrum(left @ x @ right, rho)
    assert torch.allclose(turned, values, rtol=1e-12, atol=1e-12)
    if r < n:
        assert torch.allclose(riskernels.factored_spectrum(x.mH)[:, :r], values - rho[:, None])
