# SPDX-License-Identifier: Apache-2.0
"""hermitian_nmse on every backend, against its definition in complex128."""

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


def oracle(
    estimate: Tensor,
    target: Tensor,
    lam_diag: float = 0.2,
    lam_off: float = 0.8,
    eps: float = 1e-12,
    element_mask: Tensor | None = None,
) -> Tensor:
    """The definition, entry by entry of the mask."""
    b, n, _ = estimate.shape
    kept = torch.ones(b, n, dtype=torch.bool) if element_mask is None else element_mask
    kept = kept.expand(b, n)
    parts = []
    for scene in range(b):
        index = kept[scene].nonzero()[:, 0]
        t = target[scene][index][:, index]
        e = estimate[scene][index][:, index] - t
        diagonal = torch.eye(len(index), dtype=torch.bool)
        ratio = [
            e[part].abs().square().sum() / (t[part].abs().square().sum() + eps)
            for part in (diagonal, ~diagonal)
        ]
        parts.append((lam_diag * ratio[0] + lam_off * ratio[1]) / (lam_diag + lam_off))
    return torch.stack(parts)


def pair(b: int, n: int, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    estimate, target = (ti.complex_normal(b, n, n, dtype=dtype, seed=g) for _ in range(2))
    return estimate.to(device), target.to(device)


def masks(b: int, n: int, device: str) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(n)
    one = torch.rand(n, generator=g) < 0.7
    return [None, one.to(device), (torch.rand(b, n, generator=g) < 0.7).to(device)]


def check(estimate: Tensor, target: Tensor, mask: Tensor | None, **weights: float) -> None:
    wide = [t.detach().cpu().to(torch.complex128).requires_grad_() for t in (estimate, target)]
    expected = oracle(*wide, element_mask=None if mask is None else mask.cpu(), **weights)
    leaves = [t.detach().requires_grad_() for t in (estimate, target)]
    actual = riskernels.hermitian_nmse(*leaves, element_mask=mask, **weights)
    assert actual.dtype == estimate.dtype.to_real()
    assert_close(actual, expected, tolerance(estimate.dtype))
    weight = torch.randn(estimate.shape[0], dtype=torch.float64)
    wanted = torch.autograd.grad(expected, wide, weight)
    got = torch.autograd.grad(actual, leaves, weight.to(actual.device, actual.dtype))
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w, tolerance(estimate.dtype))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 16, 31, 33, 144, 257])
def test_sizes_and_masks(backend, poisoned, n, dtype):
    estimate, target = pair(2, n, dtype, backend.device)
    weights = [{}, {"lam_diag": 0.7, "lam_off": 0.0}, {"lam_diag": 0.0, "lam_off": 2.0, "eps": 0.1}]
    for mask, chosen in zip(masks(2, n, backend.device), weights, strict=True):
        check(estimate, target, mask)
        check(estimate, target, mask, **chosen)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("n", [144, 140])
def test_gradients_larger_than_the_caches(backend, poisoned, n, dtype):
    """Kernels may write them in another way than small ones, but not other numbers."""
    scenes = (9 << 20) // 2 // (n * n * dtype.itemsize) + 1
    estimate, target = pair(scenes, n, dtype, backend.device)
    check(estimate, target, None)
    check(estimate, target.mT, None)
    check(estimate, target, masks(scenes, n, backend.device)[2])
    if backend.name != "cpu":
        return
    leaves = [x.requires_grad_() for x in (estimate, target)]
    many = torch.autograd.grad(riskernels.hermitian_nmse(*leaves).sum(), leaves)
    few = [x[:2].detach().requires_grad_() for x in leaves]
    for whole, part in zip(
        many, torch.autograd.grad(riskernels.hermitian_nmse(*few).sum(), few), strict=True
    ):
        assert torch.equal(whole[:2], part)
    with torch.no_grad():
        estimate[0, 1, 1] = torch.inf
        target[1, 0, n - 1] = torch.nan
    spoiled = torch.autograd.grad(riskernels.hermitian_nmse(*leaves).sum(), leaves)
    for whole, part in zip(many, spoiled, strict=True):
        assert torch.equal(whole[2:], part[2:])


def test_strides(backend, poisoned):
    estimate, target = pair(3, 31, torch.complex64, backend.device)
    mask = masks(3, 31, backend.device)[2]
    pairs = [
        (estimate.mT, target),
        (estimate, target[:1].expand(3, 31, 31)),
        (estimate.conj(), target.mT),
        (torch.stack([estimate, target], -1)[..., 0], target.mH),
        (estimate[:, ::2, ::2], target[:, ::2, 1::2][:, :, :1].expand(3, 16, 16)),
    ]
    for e, t in pairs:
        check(e, t, None)
        check(e, t, mask[:, : e.shape[1]])
    check(estimate, target, mask.mT.contiguous().mT)


def test_expanded_gradient(backend):
    estimate, target = pair(4, 31, torch.complex64, backend.device)
    leaf = estimate.requires_grad_()
    riskernels.hermitian_nmse(leaf, target).sum().backward()
    first = leaf.grad.clone()
    leaf.grad = None
    (
        riskernels.hermitian_nmse(leaf, target) * torch.ones(4, device=backend.device)
    ).sum().backward()
    assert torch.equal(first, leaf.grad)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(backend, masked):
    estimate, target = pair(2, 4, torch.complex128, backend.device)
    mask = torch.tensor([True, False, True, True], device=backend.device) if masked else None
    leaves = [estimate.requires_grad_(), target.requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda e, t: riskernels.hermitian_nmse(e, t, element_mask=mask), leaves
    )


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_opcheck(kind):
    estimate, target = pair(2, 5, torch.complex128, "cpu")
    mask = masks(2, 5, "cpu")[kind]
    leaves = (estimate.requires_grad_(), target.requires_grad_())
    ops = torch.ops.riskernels
    torch.library.opcheck(ops.hermitian_nmse, leaves, {"element_mask": mask})
    torch.library.opcheck(ops.hermitian_nmse_forward, (*leaves, mask, 0.2, 0.8, 1e-12))
    grad, sums = torch.rand(2, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    plain = [t.detach() for t in leaves]
    for need_estimate, need_target in itertools.product((False, True), repeat=2):
        torch.library.opcheck(
            ops.hermitian_nmse_backward,
            (grad, *plain, sums, mask, 0.2, 0.8, 1e-12),
            {"need_estimate": need_estimate, "need_target": need_target},
        )


def test_one_sided_gradients(backend):
    estimate, target = pair(3, 31, torch.complex64, backend.device)
    both = [estimate.clone().requires_grad_(), target.clone().requires_grad_()]
    riskernels.hermitian_nmse(*both).sum().backward()
    for index in range(2):
        pairs = [estimate.clone(), target.clone()]
        pairs[index].requires_grad_()
        riskernels.hermitian_nmse(*pairs).sum().backward()
        assert_close(pairs[index].grad, both[index].grad, 1e-6)


def test_small_errors_keep_their_digits(backend):
    """Near the optimum the error is far below the energy, and the diagonal far above the rest."""
    g = torch.Generator().manual_seed(1)
    n = 144
    target = torch.eye(n, dtype=torch.complex64) * 100 + 1e-3 * ti.complex_normal(
        2, n, n, dtype=torch.complex64, seed=g
    )
    estimate = target * (1 + 1e-3)
    check(estimate.to(backend.device), target.to(backend.device), None)


def test_masked_elements_may_hold_anything(backend, poisoned):
    estimate, target = pair(2, 31, torch.complex64, backend.device)
    mask = masks(2, 31, backend.device)[1]
    clean = [t.clone().requires_grad_() for t in (estimate, target)]
    dirty = [t.clone() for t in (estimate, target)]
    for t in dirty:
        t[:, ~mask] = float("nan")
        t[:, :, ~mask] = float("inf")
        t.requires_grad_()
    values = [riskernels.hermitian_nmse(*p, element_mask=mask) for p in (clean, dirty)]
    assert torch.equal(*values)
    for value in values:
        value.sum().backward()
    for c, d in zip(clean, dirty, strict=True):
        assert torch.equal(c.grad, d.grad)


def test_nothing_off_the_diagonal_and_no_eps(backend):
    """With one kept element and eps = 0 the off-diagonal part is 0/0; masked gradients stay 0."""
    estimate, target = pair(1, 5, torch.complex64, backend.device)
    mask = torch.tensor([False, False, True, False, False], device=backend.device)
    leaf = estimate.requires_grad_()
    riskernels.hermitian_nmse(leaf, target, eps=0.0, element_mask=mask).sum().backward()
    kept = mask[:, None] & mask
    assert torch.all(leaf.grad[0][~kept] == 0)


def test_mask_changed_before_the_backward_is_noticed(backend):
    estimate, target = pair(2, 5, torch.complex64, backend.device)
    mask = torch.ones(5, dtype=torch.bool, device=backend.device)
    value = riskernels.hermitian_nmse(estimate.requires_grad_(), target, element_mask=mask)
    mask[2] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_non_finite_input_stays_in_its_scene(backend):
    estimate, target = pair(3, 31, torch.complex64, backend.device)
    estimate[1, 3, 4] = float("nan")
    leaf = estimate.requires_grad_()
    value = riskernels.hermitian_nmse(leaf, target)
    assert torch.isfinite(value[[0, 2]]).all() and torch.isnan(value[1])
    value.sum().backward()
    assert torch.isfinite(torch.view_as_real(leaf.grad[[0, 2]])).all()


def test_empty_batch_and_deterministic(backend):
    estimate, target = pair(0, 31, torch.complex64, backend.device)
    leaf = estimate.requires_grad_()
    value = riskernels.hermitian_nmse(leaf, target)
    assert value.shape == (0,)
    value.sum().backward()
    assert leaf.grad.shape == (0, 31, 31)
    estimate, target = pair(5, 144, torch.complex64, backend.device)
    first = riskernels.hermitian_nmse(estimate, target)
    assert torch.equal(first, riskernels.hermitian_nmse(estimate, target))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    lam_diag=st.floats(0, 5),
    lam_off=st.floats(0.01, 5),
    scale=st.floats(1e-3, 1e3),
)
def test_identities(n, seed, lam_diag, lam_off, scale):
    estimate, target = pair(2, n, torch.complex128, "cpu", seed)
    # Far below any energy here: eps is what keeps the identities from being exact.
    nmse = lambda e, t: riskernels.hermitian_nmse(e, t, lam_diag, lam_off, 1e-100)  # noqa: E731
    assert torch.all(nmse(target, target) == 0)
    one = torch.ones(2, dtype=torch.float64)
    at_zero = nmse(torch.zeros_like(target), target)
    wanted = one if n > 1 else one * lam_diag / (lam_diag + lam_off)
    assert torch.allclose(at_zero, wanted, rtol=1e-12)
    value = nmse(estimate, target)
    assert torch.allclose(nmse(scale * estimate, scale * target), value, rtol=1e-12)
    assert torch.allclose(nmse(estimate.mH, target.mH), value, rtol=1e-12)
    order = torch.randperm(n)
    permuted = nmse(estimate[:, order][:, :, order], target[:, order][:, :, order])
    assert torch.allclose(permuted, value, rtol=1e-12)
    halfway = nmse((estimate + target) / 2, target)
    assert torch.allclose(halfway, value / 4, rtol=1e-12)
