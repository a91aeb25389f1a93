# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the blend, the leakage and the factored operators, run by the interpreter.

Values and gradients against the definitions in complex128. As in ``test_triton_interpreter.py``,
the cases run in processes of their own: this file as a script.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import covariance_oracles as oracles
import pytest
import test_hermitian_nmse as nmse
import torch
from covariance_oracles import C64, C128, check, covariance, loadings, normal, outer, trace, wide
from test_triton_interpreter import obstacle
from torch import Tensor

import riskernels
from riskernels import library
from riskernels.testing import assert_close, tolerance

pytestmark = [
    pytest.mark.check("triton-interpreter"),
    pytest.mark.skipif(bool(obstacle()), reason=obstacle()),
]

NAN = float("nan")

BLENDS: list[tuple[tuple[Any, ...], dict[str, float]]] = [
    ((), {}),
    ((0.0, 3.0), {"loading": 0.1}),
    ((1.0,), {"shrinkage": 0.4}),
    ((0.6, None), {"loading": 0.05, "shrinkage": 0.2}),
]


def blends() -> None:
    """Sizes that fill no tile, several tiles, every option."""
    for n, dtype in ((1, C64), (7, C64), (33, C64), (17, C128)):
        for args, options in BLENDS[: 4 if n == 7 else 1]:
            pred, samp = covariance(2, n, dtype), covariance(2, n, dtype, seed=1)
            # Not Hermitian: only the Hermitian parts count.
            pred = pred + normal(2, n, n, dtype=dtype, seed=2) / 4
            check(riskernels.blend_covariance, oracles.blend, (pred, samp, *args), [0], **options)
            value = riskernels.blend_covariance(pred, samp, *args, **options)
            assert torch.equal(value, value.mH.resolve_conj())
    target = covariance(1, 20, C128)
    target = target * (20 / trace(target))
    target.diagonal(dim1=1, dim2=2)[:, 0] += 20 - trace(target)[:, 0, 0]
    value = riskernels.blend_covariance(target, covariance(1, 20, C128), 0.0)
    assert_close(value, target, 1e-15)


def blend_views() -> None:
    pred, samp = covariance(3, 9, C64), covariance(3, 9, C64, seed=1)
    pairs = [
        (pred.mT, samp.conj()),
        (pred.conj(), samp[:1].expand(3, 9, 9)),
        (torch.stack([pred, samp], -1)[..., 0], samp.mT),
        (pred[:, 1::2, 1::2], samp[:, ::2, ::2][:, :4, :4]),
    ]
    for one, two in pairs:
        check(riskernels.blend_covariance, oracles.blend, (one, two), [0], loading=0.1)
    leaf = pred.clone().requires_grad_()
    value = riskernels.blend_covariance(leaf, samp)
    for weight in (samp.mT.conj(), samp[:1].expand(3, 9, 9)):
        got = torch.autograd.grad(value, leaf, weight, retain_graph=True)[0]
        copy = weight.resolve_conj().clone(memory_format=torch.contiguous_format)
        assert torch.equal(got, torch.autograd.grad(value, leaf, copy, retain_graph=True)[0])


def blend_without_trace() -> None:
    """A matrix without a positive trace leaves the blend; NaN stays in its scene."""
    pred, samp = covariance(4, 6, C64), covariance(4, 6, C64, seed=1)
    pred[1], samp[2] = -pred[1], 0
    leaf = pred.clone().requires_grad_()
    value = riskernels.blend_covariance(leaf, samp)
    (gradient,) = torch.autograd.grad(value, leaf, samp)
    assert_close(value[1], 6 * samp[1] / trace(samp)[1], 1e-6)
    assert_close(value[2], 6 * pred[2] / trace(pred)[2], 1e-6)
    assert torch.all(gradient[1] == 0) and torch.isfinite(gradient.abs()).all()
    dirty = pred.clone()
    dirty[3, 2, 2] = NAN
    leaf = dirty.requires_grad_()
    again = riskernels.blend_covariance(leaf, samp)
    assert torch.equal(again[:3], value[:3]) and again[3].isnan().any()
    assert torch.equal(torch.autograd.grad(again, leaf, samp)[0][:3], gradient[:3])
    factor, snapshots = normal(3, 5, 2, dtype=C64), normal(3, 4, 5, dtype=C64, seed=1)
    factor[0], snapshots[1] = 0, 0
    leaf = factor.clone().requires_grad_()
    x, rho = riskernels.factored_blend(leaf, snapshots, loading=0.5)
    assert_close(trace(oracles.dense(wide(x), wide(rho)))[:, 0, 0], torch.full((3,), 5.0), 1e-6)
    assert torch.all(x[0, :, :2] == 0) and torch.all(x[1, :, 2:] == 0)
    (gradient,) = torch.autograd.grad(x, leaf, torch.ones_like(x))
    assert torch.all(gradient[0] == 0) and torch.isfinite(gradient.abs()).all()


def factored_blends() -> None:
    op = riskernels.factored_blend
    for n, k, count, dtype in ((1, 1, 1, C64), (33, 5, 16, C64), (7, 40, 3, C64), (9, 2, 35, C128)):
        factor = normal(2, n, k, dtype=dtype)
        snapshots = normal(2, count, n, dtype=dtype, seed=1)
        for args, options in BLENDS[: 4 if n == 9 else 1]:
            inputs = (factor, snapshots, *args)
            if args[:1] != (1.0,):
                check(op, oracles.factored_blend, inputs, [0], **options)
            x, rho = (wide(v) for v in op(*inputs, **options))
            expected = oracles.blend(
                outer(wide(factor)), outer(wide(snapshots).mT) / count, *args, **options
            )
            assert_close(oracles.dense(x, rho), expected, tolerance(dtype))
    # Two bands of rows; views; a gradient that is one.
    many = normal(1, 2, 1100, dtype=C64)
    check(op, oracles.factored_blend, (many.mT, many.conj()), [0], loading=0.1)
    factor, snapshots = normal(2, 3, 8, dtype=C64), normal(2, 8, 6, dtype=C64, seed=1)
    views = (factor.mT[:, ::2].conj(), snapshots.mT[:1, :, ::2].expand(2, 6, 4))
    check(op, oracles.factored_blend, views, [0])
    leaf = views[0].detach().requires_grad_()
    x = op(leaf, views[1])[0]
    (got,) = torch.autograd.grad(x, leaf, x.detach()[:1].conj().expand_as(x), retain_graph=True)
    copy = x.detach()[:1].conj_physical().expand_as(x).contiguous()
    assert torch.equal(got, torch.autograd.grad(x, leaf, copy)[0])


def leakages() -> None:
    """Column counts that fill no group and several; every count of sources."""
    op = riskernels.subspace_leakage
    for n, k, dtype in ((1, 1, C64), (33, 5, C64), (20, 9, C64), (50, 33, C64), (7, 3, C128)):
        cov, steering = covariance(3, n, dtype), normal(3, n, k, dtype=dtype, seed=1)
        sources = torch.tensor([k + 2, k - 1, -1])
        steering[1, :, k - 1 :] = NAN
        check(op, oracles.leakage, (cov, steering, sources, 1e-2), [0])
    base, steering = covariance(3, 12, C64), normal(3, 3, 12, dtype=C64, seed=1)
    sources = torch.tensor([1, 9, 3, 9])[1::2][:1].expand(3)
    sliced = torch.stack([base] * 2, -1)[..., 1]
    for cov in (base.mT, base.conj(), base[:1].expand(3, 12, 12), sliced):
        check(op, oracles.leakage, (cov, steering.mT.conj(), sources), [0])
    # All the energy inside the span: nothing but rounding is left, and never below 0.
    inside = outer(normal(2, 20, 2, dtype=C64))
    value = op(inside, normal(2, 20, 2, dtype=C64), torch.tensor([2, 2]))
    assert torch.all((value >= 0) & (value < 1e-5))


def leakage_limits() -> None:
    """No covariance, equal steering vectors, NaN in one scene, steering that wants a gradient."""
    cov, steering = covariance(3, 8, C64), normal(3, 8, 2, dtype=C64, seed=1)
    steering[2, :, 1] = steering[2, :, 0]
    cov[0] = 0
    sources = torch.tensor([2, 2, 2])
    leaf = cov.clone().requires_grad_()
    value = riskernels.subspace_leakage(leaf, steering, sources, 1e-30)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert value[0] == 0 and torch.all(gradient[0] == 0)
    expected = oracles.leakage(wide(cov[2:]), wide(steering[2:, :, :1]), torch.tensor([1]), 1e-30)
    assert_close(value[2:], expected, 1e-5)
    assert torch.isfinite(gradient.abs()).all()
    dirty = steering.clone()
    dirty[1, 3, 0] = NAN
    again = riskernels.subspace_leakage(cov, dirty, sources, 1e-30)
    assert torch.equal(again[[0, 2]], value[[0, 2]]) and again[1].isnan()
    x = normal(2, 8, 3, dtype=C64).requires_grad_()
    x.data[0] = 0
    got = riskernels.factored_leakage(x, None, steering[:2], sources[:2])
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert got[0] == 0 and torch.all(gradient[0] == 0)
    got = riskernels.factored_leakage(x, None, dirty[:2], sources[:2])
    assert got[0] == 0 and got[1].isnan()
    with pytest.raises(RuntimeError, match=r"steering\.detach\(\)"):
        riskernels.subspace_leakage(cov, steering.requires_grad_(), sources)


def factored_leakages() -> None:
    op = riskernels.factored_leakage
    for n, r, k, dtype in ((1, 1, 1, C64), (18, 17, 3, C64), (50, 3, 33, C64), (30, 3, 17, C128)):
        x, steering = normal(3, n, r, dtype=dtype), normal(3, n, k, dtype=dtype, seed=1)
        sources = torch.tensor([k + 2, k - 1, -1])
        steering[1, :, k - 1 :] = NAN
        inputs = (x, loadings(3, dtype), steering, sources, 1e-2)
        check(op, oracles.factored_leakage, inputs, [0, 1])
    x, steering = normal(2, 2, 70, dtype=C64), normal(2, 3, 70, dtype=C64, seed=1)
    inputs = (x.mT.conj(), None, steering[:1].mT.conj().expand(2, 70, 3), torch.tensor([3, 2]))
    check(op, oracles.factored_leakage, inputs, [0])
    x, rho = normal(2, 9, 2, dtype=C64).requires_grad_(), loadings(2, C64).requires_grad_()
    truth = normal(2, 9, 2, dtype=C64, seed=1), torch.tensor([2, 1])
    together = torch.autograd.grad(op(x, rho, *truth).sum(), [x, rho])
    for index, (one, two) in enumerate(((x, rho.detach()), (x.detach(), rho))):
        leaf = (one, two)[index]
        alone = torch.autograd.grad(op(one, two, *truth).sum(), leaf)[0]
        assert torch.equal(alone, together[index])


def factored_nmses() -> None:
    op = riskernels.factored_nmse
    weights = [{}, {"lam_diag": 0.7, "lam_off": 0.0}, {"lam_diag": 0.0, "lam_off": 2.0, "eps": 0.1}]
    for n, r, k, dtype in ((2, 1, 1, C64), (18, 30, 5, C64), (7, 3, 2, C128)):
        x, y = normal(2, n, r, dtype=dtype), normal(2, n, k, dtype=dtype, seed=1)
        for mask, chosen in zip(nmse.masks(2, n, "cpu"), weights, strict=True):
            if mask is None or int(mask.sum(-1).min()) > 1:
                inputs = (x, loadings(2, dtype), y)
                check(op, oracles.factored_nmse, inputs, [0, 1, 2], element_mask=mask, **chosen)
    # Several bands, no loading, views.
    x, y = normal(2, 3, 70, dtype=C64), normal(2, 2, 70, dtype=C64, seed=1)
    mask = nmse.masks(2, 70, "cpu")[2].mT.contiguous().mT
    views = (x.mT.conj(), None, y[:1].conj().mT.expand(2, 70, 2))
    check(op, oracles.factored_nmse, views, [0, 2], element_mask=mask)
    # Masked elements may hold anything.
    x, y = x.mT.clone(), y.mT.clone()
    clean = op(x, None, y, element_mask=mask)
    x[~mask], y[~mask] = NAN, torch.inf
    leaves = x.requires_grad_(), loadings(2, C64).requires_grad_(), y.requires_grad_()
    assert torch.equal(op(x, None, y, element_mask=mask), clean)
    value = op(*leaves, element_mask=mask)
    gradients = torch.autograd.grad(value.sum(), leaves)
    assert all(torch.isfinite(g.abs()).all() for g in gradients)
    assert torch.all(gradients[0][~mask] == 0) and torch.all(gradients[2][~mask] == 0)
    for index in range(3):
        alone = [leaf if i == index else leaf.detach() for i, leaf in enumerate(leaves)]
        (got,) = torch.autograd.grad(op(*alone, element_mask=mask).sum(), alone[index])
        assert_close(got, gradients[index], 1e-6)


def small_errors() -> None:
    """An NMSE of 1e-6 and its gradient; one element, where nothing is off the diagonal."""
    op = riskernels.factored_nmse
    y = normal(1, 40, 4, dtype=C64)
    x = y + 1e-3 * normal(1, 40, 4, dtype=C64, seed=1)
    rho = 1e-4 * loadings(1, C64)
    value, expected = op(x, rho, y), oracles.factored_nmse(wide(x), wide(rho), wide(y))
    assert torch.all(expected < 1e-5)
    assert_close(value, expected, 1e-5)
    check(op, oracles.factored_nmse, (x, rho, y), [0, 1, 2])
    assert torch.all(op(y, None, y) < 1e-12)
    for n, mask in ((1, None), (6, torch.tensor([False, True] + 4 * [False]))):
        x, y = normal(2, n, 3, dtype=C64), normal(2, n, 2, dtype=C64, seed=1)
        inputs = (x, loadings(2, C64), y)
        check(op, oracles.factored_nmse, inputs, [0, 1, 2], element_mask=mask)
    dirty = normal(3, 8, 2, dtype=C64)
    clean = op(dirty, None, dirty + 1)
    dirty[1, 2, 0] = NAN
    again = op(dirty, None, dirty + 1)
    assert torch.equal(again[[0, 2]], clean[[0, 2]]) and again[1].isnan()


def empty_batches() -> None:
    def factor(columns: int) -> Tensor:
        return torch.zeros(0, 5, columns, dtype=C64, requires_grad=True)

    rho = torch.zeros(0, requires_grad=True)
    sources = torch.zeros(0, dtype=torch.int64)
    square, steering = factor(5), factor(3).detach()
    calls: list[tuple[Any, list[Tensor]]] = [
        (riskernels.blend_covariance(square, square.detach()), [square]),
        (riskernels.subspace_leakage(square, steering, sources), [square]),
    ]
    x = factor(2)
    blended = riskernels.factored_blend(x, torch.zeros(0, 4, 5, dtype=C64))
    assert blended[0].shape == (0, 5, 6) and blended[1].shape == (0,)
    calls += [
        (blended[0], [x]),
        (riskernels.factored_leakage(x, rho, steering, sources), [x, rho]),
        (riskernels.factored_nmse(x, rho, y := factor(3)), [x, rho, y]),
    ]
    for value, leaves in calls:
        gradients = torch.autograd.grad(value.abs().sum(), leaves)
        assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]


def refusals() -> None:
    """The messages of the reference, and a device that nothing was compiled for."""
    from riskernels.triton_kernels import _launch

    square, x, sources = covariance(1, 4, C64), normal(1, 4, 2, dtype=C64), torch.tensor([1])
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: riskernels.blend_covariance(square, square, 1.5), "beta is 1.5"),
        (lambda: riskernels.subspace_leakage(square, x, sources, 0.0), "ridge is 0"),
        (lambda: riskernels.factored_blend(x, x), "snapshots has shape"),
        (lambda: riskernels.factored_nmse(x, None, x.real), "target_factor has dtype"),
        (lambda: riskernels.factored_leakage(x, None, x, sources.float()), "num_sources has dtype"),
    ]
    for call, message in calls:
        with pytest.raises(RuntimeError, match=message):
            call()
    _launch.DEVICES.discard("cpu")
    for call in (
        lambda: riskernels.blend_covariance(square, square),
        lambda: riskernels.subspace_leakage(square, x, sources),
        lambda: riskernels.factored_blend(x, x.mT),
        lambda: riskernels.factored_nmse(x, None, x),
        lambda: riskernels.factored_leakage(x, None, x, sources),
    ):
        with pytest.raises(RuntimeError, match="run on CUDA tensors, got one on cpu"):
            call()
    _launch.DEVICES.add("cpu")


GROUPS = [
    [blends, blend_views, blend_without_trace, factored_blends, leakages],
    [leakage_limits, factored_leakages, factored_nmses, small_errors, empty_batches, refusals],
]
CASES = {case.__name__: case for group in GROUPS for case in group}


def main(*cases: str) -> None:
    torch.set_num_threads(1)
    # Uninitialised memory holds NaN, so an output or a workspace that is not written shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with library.use_backend("triton"):
        for case in cases:
            CASES[case]()
            print(case)


@pytest.mark.lasts(30)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0].__name__)
def test_interpreted(group):
    cases = [case.__name__ for case in group]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RISKERNELS_")}
    result = subprocess.run(
        [sys.executable, __file__, *cases],
        env={**environment, "TRITON_INTERPRET": "1", "RISKERNELS_REQUIRE": "triton"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == cases


if __name__ == "__main__":
    main(*sys.argv[1:])
