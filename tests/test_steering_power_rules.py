# SPDX-License-Identifier: Apache-2.0
"""steering_power under autograd's and torch's transformations, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from steering_inputs import C64, WAVELENGTH, case
from torch import Tensor

import riskernels
from riskernels.testing import assert_close


def test_opcheck(backend):
    ops = torch.ops.riskernels
    for own_points in (False, True):
        factor, *points = case(2, 5, 3, 4, device=backend.device, own_points=own_points)
        grad = torch.rand(2, 4, dtype=torch.float64, device=backend.device)
        torch.library.opcheck(
            ops.steering_power, (factor.requires_grad_(), *points, WAVELENGTH), {"taper": True}
        )
        torch.library.opcheck(
            ops.steering_power_backward, (grad, factor.detach(), *points, WAVELENGTH)
        )


@pytest.mark.lasts(12)
def test_compile_with_dynamic_sizes():
    def loss(x: Tensor, phi: Tensor, theta: Tensor, r: Tensor, positions: Tensor) -> Tensor:
        return riskernels.steering_power(2 * x, phi, theta, r, positions, WAVELENGTH).log().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for b, n, k, g in ((2, 6, 3, 10), (4, 9, 2, 7)):
        factor, *points = case(b, n, k, g)
        leaves = [factor.clone().requires_grad_() for _ in range(2)]
        values = [f(x, *points) for f, x in zip((loss, compiled), leaves, strict=True)]
        for value in values:
            value.backward()
        assert_close(values[1], values[0], 1e-12)
        assert_close(leaves[1].grad, leaves[0].grad, 1e-12)


def test_vmap(backend):
    factor, phi, theta, r, positions = case(6, 7, 4, 9, device=backend.device, own_points=True)
    power = riskernels.steering_power
    stacked = factor.view(2, 3, 7, 4)
    own = [t.view(2, 3, 9) for t in (phi, theta, r)]
    whole = power(factor, phi, theta, r, positions, WAVELENGTH)

    def mapped(dims, *args):
        return torch.vmap(lambda *t: power(*t, positions, WAVELENGTH), dims)(*args)

    assert_close(mapped((0, 0, 0, 0), stacked, *own).flatten(0, 1), whole, 1e-13)
    for shared in ([t[0] for t in (phi, theta, r)], [t[:3] for t in (phi, theta, r)]):
        wanted = [power(x, *shared, positions, WAVELENGTH) for x in stacked]
        assert_close(mapped((0, None, None, None), stacked, *shared), torch.stack(wanted), 1e-13)
    each = [t[:2] for t in (phi, theta, r)]
    wanted = [power(stacked[0], *(t[i] for t in each), positions, WAVELENGTH) for i in range(2)]
    assert_close(mapped((None, 0, 0, 0), stacked[0], *each), torch.stack(wanted), 1e-13)
    with pytest.raises(RuntimeError, match="positions is mapped by vmap"):
        torch.vmap(lambda p: power(factor, phi, theta, r, p, WAVELENGTH))(positions[None])

    # What a single call refuses, in the same words.
    wanted = r"steering_power: theta has shape \[6, 9\], expected \[9\] as phi"
    with pytest.raises(RuntimeError, match=wanted):
        power(factor, phi[0], theta, r, positions, WAVELENGTH)
    with pytest.raises(RuntimeError, match=wanted):
        torch.vmap(lambda x: power(x, phi[0], theta, r, positions, WAVELENGTH))(factor[None])

    leaf = factor.requires_grad_()
    value = power(leaf, phi, theta, r, positions, WAVELENGTH)
    weights = torch.rand(3, 6, 9, dtype=torch.float64, device=backend.device)
    (many,) = torch.autograd.grad(value, leaf, weights, retain_graph=True, is_grads_batched=True)
    for k, weight in enumerate(weights):
        (one,) = torch.autograd.grad(value, leaf, weight, retain_graph=True)
        assert_close(many[k], one, 1e-13)


def test_refusals(backend):
    factor, phi, theta, r, positions = case(2, 5, 3, 4, C64, backend.device)
    power, backward = riskernels.steering_power, torch.ops.riskernels.steering_power_backward
    grad = torch.rand(2, 4, device=backend.device)
    w = WAVELENGTH
    calls = [
        (lambda: power(factor.real, phi, theta, r, positions, w), "factor has dtype torch.float32"),
        (lambda: power(factor[0], phi, theta, r, positions, w), r"factor has shape \[5, 3\], exp"),
        (lambda: power(factor[:, :0], phi, theta, r, positions, w), "N and k must be at least 1"),
        (
            lambda: power(factor, phi.long(), theta, r, positions, w),
            "phi has dtype torch.int64, expected torch.float32 or torch.float64",
        ),
        (
            lambda: power(factor, phi, theta.float(), r, positions, w),
            "theta has dtype torch.float32, expected torch.float64 as phi",
        ),
        (
            lambda: power(factor, phi, theta, r[:3], positions, w),
            r"r has shape \[3\], expected \[4\] as phi",
        ),
        (
            lambda: power(factor, *(t.expand(3, 4) for t in (phi, theta, r)), positions, w),
            r"phi has shape \[3, 4\], expected \[G\] or \[2, G\]",
        ),
        (
            lambda: power(factor, phi, theta, r, positions[:4], w),
            r"positions has shape \[4, 3\], expected \[5, 3\]",
        ),
        (lambda: power(factor, phi, theta, r, positions.half(), w), "positions has dtype torch.fl"),
        (lambda: power(factor, phi, theta, r, positions, 0.0), "wavelength is 0, expected a fin"),
        (lambda: power(factor, phi, theta, r, positions, math.inf), "wavelength is inf"),
        (
            lambda: backward(grad[:1], factor, phi, theta, r, positions, w),
            r"grad has shape \[1, 4\], expected \[2, 4\]",
        ),
        (
            lambda: backward(grad.double(), factor, phi, theta, r, positions, w),
            "grad has dtype torch.float64, expected torch.float32",
        ),
    ]
    for call, message in calls:
        with pytest.raises(RuntimeError, match=f"riskernels::steering_power.*: {message}"):
            call()


def test_constants_that_require_grad_are_refused(backend):
    factor, *points = case(2, 5, 3, 4, device=backend.device)
    for index, name in enumerate(("phi", "theta", "r", "positions")):
        given_points = [t.clone() for t in points]
        given_points[index].requires_grad_()
        with pytest.raises(RuntimeError, match=f"steering_power: {name} requires grad"):
            riskernels.steering_power(factor, *given_points, WAVELENGTH)
    leaf = factor.requires_grad_()
    value = riskernels.steering_power(leaf, *points, WAVELENGTH).sum()
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        slope.abs().sum().backward()


def test_mixed_devices():
    factor, phi, theta, r, positions = case(2, 5, 3, 4)
    with pytest.raises(RuntimeError, match=r"steering_power: \w+ is on"):
        riskernels.steering_power(factor, phi.to("meta"), theta, r, positions, WAVELENGTH)
