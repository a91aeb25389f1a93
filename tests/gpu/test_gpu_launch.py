# SPDX-License-Identifier: Apache-2.0
"""Streams, devices, graphs, compilation, determinism and large offsets on a CUDA device."""

from __future__ import annotations

import pytest
import torch
from covariance_cases import CASES as COVARIANCE_CASES
from operator_cases import CASES as OPERATOR_CASES
from operator_cases import OperatorCase, forward_and_backward, in_precision, weight_of

import riskernels
from riskernels.testing import assert_close, tolerance

CASES = [*OPERATOR_CASES, *COVARIANCE_CASES]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor], what: str = "") -> None:
    for index, (g, w) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(g, w), f"{what} output {index} differs"


@each_case
def test_cuda_agrees_with_the_reference(gpu_backend, case):
    inputs = [in_precision(value, torch.complex128) for value in case.inputs()]
    with riskernels.use_backend("reference"):
        want = forward_and_backward(case.function(), inputs)
    weight = weight_of(want[0]).to(want[0].dtype)
    narrow = [in_precision(value, case.dtype) for value in inputs]
    got = forward_and_backward(case.function(), narrow, in_precision(weight, case.dtype))
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, tolerance(case.dtype, 100.0))


@each_case
def test_graph_replay_equals_eager(gpu_backend, case):
    """Forward and backward captured as one graph, replayed with other inputs."""
    function = case.function()
    static = case.inputs(seed=0)
    weight = weight_of(function(*static))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward_and_backward(function, static, weight)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(function, static, weight)
    for seed in (1, 2):
        fresh = case.inputs(seed=seed)
        for held, value in zip(static, fresh, strict=True):
            held.copy_(value)
        for value in captured:
            value.fill_(float("nan"))
        graph.replay()
        assert_same(captured, forward_and_backward(function, fresh, weight), f"seed {seed}")


@each_case
def test_bitwise_the_same_on_every_run(gpu_backend, case):
    function, inputs = case.function(), case.inputs()
    first = forward_and_backward(function, inputs)
    for run in range(20):
        assert_same(forward_and_backward(function, inputs), first, f"run {run}")


@each_case
def test_current_stream(gpu_backend, case):
    """The kernels wait for what their stream does first, and not for the default stream."""
    function, inputs = case.function(), case.inputs()
    want = forward_and_backward(function, inputs)
    late = [torch.full_like(value, float("nan")) for value in inputs]
    weight = weight_of(want[0])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for held, value in zip(late, inputs, strict=True):
            held.copy_(value)
        got = forward_and_backward(function, late, weight)
    stream.synchronize()
    assert_same(got, want)


@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_compile_once_for_every_batch(op):
    """fullgraph with dynamic B, on whichever backend serves the device."""
    case = next(case for case in CASES if case.op == op)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(case.function(), fullgraph=True, dynamic=True)
    for b in (2, 3, 5, 8):
        inputs = case.inputs(seed=b, b=b)
        got = forward_and_backward(compiled, inputs)
        assert_same(got, forward_and_backward(case.function(), inputs), f"B={b}")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@each_case
def test_second_device(gpu_backend, case):
    """The tensors' device counts, not the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    inputs = case.inputs()
    want = forward_and_backward(case.function(), inputs)
    got = forward_and_backward(case.function("cuda:1"), [v.to("cuda:1") for v in inputs])
    assert all(value.device == torch.device("cuda:1") for value in got)
    assert torch.cuda.current_device() == 0
    assert_same([value.to("cuda:0") for value in got], want)


def test_devices_that_differ():
    y, h, codes = OPERATOR_CASES[0].inputs()
    with pytest.raises(RuntimeError, match="h is on cpu, expected cuda:0 as the first argument"):
        riskernels.tikhonov_covariance(y, h.cpu(), codes)
    with pytest.raises(RuntimeError, match="h is on cuda:0, expected cpu as the first argument"):
        riskernels.tikhonov_covariance(y.cpu(), h, codes)
    a = torch.zeros(1, 4, 4, dtype=torch.complex64, device="cuda")
    mask = torch.ones(4, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="element_mask is on cpu, expected cuda:0"):
        riskernels.hermitian_nmse(a, a, element_mask=mask)


def test_a_call_does_not_wait(gpu_backend):
    """No operator synchronises the host, forward or backward."""
    for case in CASES:
        function, inputs = case.function(), case.inputs()
        forward_and_backward(function, inputs)
        weight = weight_of(function(*inputs))
        # A call that waits raises RuntimeError.
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = forward_and_backward(function, inputs, weight)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_same(got, forward_and_backward(function, inputs, weight))


def needs_bytes(wanted: int) -> None:
    free = torch.cuda.mem_get_info()[0]
    if free < wanted:
        pytest.skip(f"{wanted / 2**30:.0f} GiB of device memory needed, {free / 2**30:.0f} free")


def test_offsets_beyond_32_bits(gpu_backend):
    """B N N > 2^31: the last scenes are those of a small batch."""
    n, scenes = 1024, 2**31 // 1024**2 + 3
    needs_bytes(6 * 8 * scenes * n * n // 2)
    case = OperatorCase("tikhonov_covariance", (3, 2, 4, n))
    last = case.inputs()
    shape = OperatorCase("tikhonov_covariance", (1, 2, 4, n)).inputs(seed=5)
    inputs = [x.expand(scenes - 3, *x.shape[1:]) for x in shape]
    inputs = [torch.cat([x, y]) for x, y in zip(inputs, last, strict=True)]
    leaves = [x.requires_grad_() for x in inputs]
    value = riskernels.tikhonov_covariance(*leaves)
    small = [x.detach().requires_grad_() for x in last]
    small_value = riskernels.tikhonov_covariance(*small)
    assert_close(value[-3:], small_value, 1e-6, "covariance")
    got = torch.autograd.grad(value, leaves, value.detach())
    want = torch.autograd.grad(small_value, small, small_value.detach())
    for g, w in zip(got, want, strict=True):
        assert_close(g[-3:], w, 1e-5, "gradient")
    del got, leaves, inputs
    estimate = value.detach()
    del value
    target = small_value.detach().roll(1, 1)[:1].expand(scenes, n, n)
    nmse = riskernels.hermitian_nmse(estimate, target)
    assert_close(nmse[-3:], riskernels.hermitian_nmse(small_value.detach(), target[:3]), 1e-6)
    leaf = estimate.requires_grad_()
    (gradient,) = torch.autograd.grad(riskernels.hermitian_nmse(leaf, target).sum(), leaf)
    leaf_small = small_value.detach().requires_grad_()
    total = riskernels.hermitian_nmse(leaf_small, target[:3]).sum()
    assert_close(gradient[-3:], torch.autograd.grad(total, leaf_small)[0], 1e-6)


def test_points_beyond_32_bits(gpu_backend):
    """B G > 2^31: every point is the same one, so every power of a scene is."""
    points = 2**30 + 100
    needs_bytes(3 * 4 * 2 * points)
    x = torch.randn(2, 3, 2, dtype=torch.complex64, device="cuda")
    phi, theta, r = torch.tensor([[0.3], [-0.2], [3.0]], device="cuda").expand(3, points)
    positions = torch.rand(3, 3, device="cuda")
    power = riskernels.steering_power(x, phi, theta, r, positions, 0.3)
    assert torch.equal(power, power[:, :1].expand_as(power))
    few = riskernels.steering_power(x, phi[:5], theta[:5], r[:5], positions, 0.3)
    assert_close(power[:, -5:], few, 1e-6)
