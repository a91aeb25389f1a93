# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of steering_power on the block executor, against the reference in complex128.

Outputs and workspaces are blocks of their exact size, filled with NaN beforehand; AddressSanitizer
and UBSan watch every access. What the executor itself detects is tested in test_cuda_executor.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from cuda_on_cpu.harness import SHARED_LIMIT
from cuda_on_cpu.steering_operator import Plan, Points, power_backward, power_forward
from torch import Tensor

from riskernels.reference import steering_power as reference
from riskernels.testing import assert_close, tolerance

pytestmark = pytest.mark.check("cuda-executor")
C64, C128 = torch.complex64, torch.complex128
F32, F64 = torch.float32, torch.float64
SMALL = 16 * 1024
"""Bytes of a block in which neither a large tile nor all rows of a small one fit."""


def factor(b: int, n: int, k: int, dtype: torch.dtype = C64) -> Tensor:
    return torch.randn(b, n, k, dtype=C128).to(dtype)


def points(g: int, n: int, *, scenes: int | None = None, real: torch.dtype = F64) -> Points:
    """Random points in front of elements that are spread over 2.4 wavelengths."""
    shape = (g,) if scenes is None else (scenes, g)
    angles = (torch.rand(2, *shape, dtype=F64) - 0.5) * 2.4
    r = 1 / (0.05 + 1.5 * torch.rand(shape, dtype=F64))
    positions = (torch.rand(n, 3, dtype=F64) - 0.5) * 0.72
    return Points(*(t.to(real) for t in (*angles, r, positions)))


def expected(x: Tensor, at: Points, grad: Tensor) -> tuple[Tensor, Tensor]:
    wide = (x.to(C128), *at[:5])
    return (
        reference.steering_power(*wide, taper=at.taper),
        reference.steering_power_backward(grad, *wide, taper=at.taper),
    )


def check(x: Tensor, at: Points, **options: int) -> tuple[Plan, Plan]:
    """Both passes; what their plans were."""
    bound = tolerance(x.dtype)
    grad = torch.randn(x.shape[0], at.phi.shape[-1], dtype=F64)
    want, want_gradient = expected(x, at, grad)
    power, forward = power_forward(x, at, **options)
    assert_close(power, want, bound)
    gradient, backward = power_backward(grad.to(power.dtype), x, at, **options)
    assert_close(gradient, want_gradient, bound)
    return forward, backward


@pytest.mark.parametrize("dtype", [C64, C128])
@pytest.mark.parametrize("per_scene", [False, True])
@pytest.mark.parametrize("b,n,k,g", [(1, 1, 1, 1), (3, 20, 5, 70), (2, 33, 21, 9), (2, 49, 1, 65)])
def test_power_sizes(b, n, k, g, per_scene, dtype):
    """Elements, columns and points that fill no tile; every order of the threads."""
    scenes = b if per_scene else None
    at = points(g, n, scenes=scenes, real=F32 if per_scene else F64)
    check(factor(b, n, k, dtype), at._replace(taper=k == 5), seed=n)


# Columns for which, of many points and of few, a tile of this many columns a thread is the best.
SHAPES = {C64: {4: (8, 16, 24, 32, 48, 64), 1: (8, 32, 64)}, C128: {4: (8, 16, 32), 1: (8, 32)}}


@pytest.mark.parametrize(
    "dtype,own_points,k",
    [(dtype, p, k) for dtype, by in SHAPES.items() for p, columns in by.items() for k in columns],
)
def test_power_every_tile(dtype, own_points, k):
    """On a device that any call fills, so that only the work counts."""
    g = 63 if own_points == 4 else 5
    plans = check(factor(2, 18, k, dtype), points(g, 18, scenes=2), multiprocessors=1)
    assert {(plan.own_points, plan.own_columns) for plan in plans} == {(own_points, k // 8)}


def test_power_columns_beyond_a_tile():
    """Windows of the columns, with a steering tile that is kept and one that is made again."""
    x, at = factor(2, 35, 130), points(17, 35, scenes=2)
    kept, _ = check(x, at, multiprocessors=1)
    assert kept.windows > 1 and kept.group == kept.windows and kept.kept
    again, backward = check(x, at, multiprocessors=1, shared_limit=SMALL)
    assert again.windows > 1 and not again.kept and backward.windows > 1


def test_power_many_scenes_share_their_points():
    """Several scenes to a tile, the last tile with fewer; several tiles to a block."""
    x, at = factor(29, 17, 5), points(63, 17)
    forward, backward = check(x, at, multiprocessors=1)
    assert all(plan.scenes > 1 and 29 % plan.scenes > 0 for plan in (forward, backward))
    expanded = at._replace(**{name: getattr(at, name).expand(29, 63) for name in at._fields[:3]})
    assert check(x, expanded, multiprocessors=1) == (forward, backward)
    at = points(900, 17)
    power, forward = power_forward(x, at, multiprocessors=1)
    assert forward.scenes > 1 and forward.group > 1 and forward.kept
    want, _ = expected(x, at, torch.zeros(29, 900, dtype=F64))
    assert_close(power, want, tolerance(C64))


@pytest.mark.parametrize("scenes,multiprocessors,several", [(5, 1, False), (1, 132, True)])
def test_power_parts_of_the_points(scenes, multiprocessors, several):
    """One block for all points, and several whose sums are added up."""
    x, at = factor(scenes, 20, 3), points(200, 20, scenes=scenes)
    _, backward = check(x, at, multiprocessors=multiprocessors)
    assert (backward.parts > 1) == several
    assert backward.parts * backward.part_tiles * 16 * backward.own_points >= 200


def test_power_of_more_elements_than_the_table():
    """Elements in several pieces, through both passes and over several tiles of points."""
    check(factor(1, 1000, 2), points(66, 1000), multiprocessors=1)


def test_power_strides():
    base, at = factor(2, 24, 6), points(9, 24, scenes=2)
    stacked = torch.stack([base, base], -1)
    for x in (base.mT.contiguous().mT, base[:1].expand(2, 24, 6), stacked[..., 1], base[:, ::3]):
        check(x, at._replace(positions=at.positions[: x.shape[1]]))
    transposed = {name: getattr(at, name).mT.contiguous().mT for name in at._fields[:4]}
    check(base, at._replace(**transposed))
    check(base, at._replace(positions=at.positions.float()))
    one = torch.stack([at.phi, at.phi], -1)[..., 0]
    check(base, at._replace(phi=one, theta=one * 0.5))
    for grad in (torch.rand(9, 2).mT, torch.rand(1).expand(2, 9)):
        strided, plain = (power_backward(value, base, at)[0] for value in (grad, grad.clone()))
        assert torch.equal(strided, plain)


@pytest.mark.parametrize("dtype", [C64, C128])
def test_power_far_near_and_large_angles(dtype):
    """Plane waves, points between the elements, angles and phases of many turns."""
    x, at = factor(1, 30, 2, dtype), points(12, 30)
    r = at.r.clone()
    r[:4], r[4:8] = math.inf, 1e-3
    check(x, at._replace(r=r))
    check(x, at._replace(phi=at.phi + 2000 * math.pi, theta=at.theta - 30 * math.pi))
    # Steering vectors have unit length, whatever became of their phases.
    power, _ = power_forward(x, at._replace(positions=at.positions * 3e7))
    assert torch.all(power <= (1 + tolerance(dtype)) * x.abs().square().sum())


@pytest.mark.parametrize("per_scene", [False, True])
def test_power_nan_stays_where_it_is(per_scene):
    """In its scene's row, or at its point."""
    clean, at = factor(4, 20, 3), points(40, 20, scenes=4 if per_scene else None)
    dirty = clean.clone()
    dirty[1, 3, 1], dirty[2, 0, 0] = torch.nan, torch.inf
    grad, lost = torch.rand(4, 40), torch.tensor([False, True, True, False])
    want = power_forward(clean, at)[0]
    got, gradient = power_forward(dirty, at)[0], power_backward(grad, dirty, at)[0]
    assert torch.equal(got[~lost], want[~lost]) and not torch.isfinite(got[lost]).any()
    assert torch.equal(gradient[~lost], power_backward(grad, clean, at)[0][~lost])
    assert not torch.isfinite(gradient[1, :, 1].abs()).any()
    r = at.r.clone()
    r[..., 7], r[..., 20], r[..., 33] = 0.0, -1.0, torch.nan
    got = power_forward(clean, at._replace(r=r))[0]
    bad = torch.zeros(40, dtype=torch.bool)
    bad[[7, 20, 33]] = True
    assert got[:, bad].isnan().all() and torch.equal(got[:, ~bad], want[:, ~bad])


def test_power_orders_agree():
    """Blocks, warps and lanes in other orders: the same bits."""
    x, at = factor(3, 20, 5), points(150, 20)
    grad = torch.rand(3, 150)
    first = power_forward(x, at, seed=1)[0], power_backward(grad, x, at, seed=1)[0]
    for seed in (2, 3):
        again = power_forward(x, at, seed=seed)[0], power_backward(grad, x, at, seed=seed)[0]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_power_of_nothing():
    x, at, none = factor(2, 6, 3), points(5, 6), points(0, 6)
    assert power_forward(x, none)[0].shape == (2, 0)
    assert power_forward(x[:0], at)[0].shape == (0, 5)
    assert torch.equal(power_backward(torch.empty(2, 0), x, none)[0], torch.zeros_like(x))
    assert power_backward(torch.empty(0, 5), x[:0], at)[0].shape == (0, 6, 3)


@pytest.mark.parametrize(
    "b,k,g,shared_limit",
    [(5, 5, 66, SHARED_LIMIT), (1, 70, 9, SHARED_LIMIT), (1, 70, 9, SMALL), (5, 3, 66, SMALL)],
)
def test_power_no_data_races(b, k, g, shared_limit):
    """No two threads touch the same byte without a barrier between them; see races.hpp."""
    options = dict(races=True, shared_limit=shared_limit, multiprocessors=1)
    x, at = factor(b, 50, k), points(g, 50, scenes=b if k == 3 else None)
    # A race raises harness.ExecutorError.
    power, _ = power_forward(x, at, **options)
    gradient, plan = power_backward(power, x, at, **options)
    assert torch.isfinite(power).all() and torch.isfinite(gradient.abs()).all()
    # The last goes over its part of the gradient for one tile of points after the other.
    assert k != 3 or (plan.parts == 1 and plan.part_tiles > 1)
