# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of both Tikhonov operators on the block executor, against the complex128 reference.

Outputs and workspaces are blocks of their exact size, filled with NaN beforehand; AddressSanitizer
and UBSan watch every access. What the executor itself detects is tested in test_cuda_executor.py.
"""

from __future__ import annotations

import itertools

import pytest
import tikhonov_inputs as ti
import torch
from cuda_on_cpu import operators
from torch import Tensor

from riskernels.reference import tikhonov_covariance as covariance_reference
from riskernels.reference import tikhonov_snapshots as snapshots_reference
from riskernels.testing import assert_close, compare, tolerance

pytestmark = pytest.mark.check("cuda-executor")
DTYPES = [torch.complex64, torch.complex128]
OPERATORS = ["tikhonov_covariance", "tikhonov_snapshots"]
OPTIONS = [dict(relative=r, center=c) for r, c in itertools.product((False, True), repeat=2)]
KINDS = [(False, "unit"), (False, "tapered"), (False, "varying"), (True, "unit"), (True, "varying")]
ALPHA = 1e-3
NAMES = ("y", "h", "codes")
# The fused kernels have a scene in one block, up to 32 antennas; the staged ones take the rest.
FUSED_AND_STAGED = pytest.mark.parametrize("m", [7, 33])
# Devices for which the plans differ: a scene to a block, a scene to several blocks, too little
# shared memory to fuse the backward, too little to fuse anything.
DEVICES = [
    dict(multiprocessors=1),
    dict(multiprocessors=132),
    dict(multiprocessors=4, shared_limit=64 * 1024),
    dict(multiprocessors=132, shared_limit=48 * 1024),
]


def reference(
    operator: str, inputs: ti.Inputs, alpha: float, relative: bool, center: bool
) -> Tensor:
    wide = inputs.oracle()
    with torch.no_grad():
        if operator == "tikhonov_snapshots":
            return snapshots_reference.tikhonov_snapshots(*wide.tensors, alpha, relative=relative)
        return covariance_reference.tikhonov_covariance(
            *wide.tensors, alpha, relative=relative, center=center
        )


def reference_gradients(
    operator: str, grad: Tensor, inputs: ti.Inputs, alpha: float, relative: bool, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = inputs.oracle()
    with torch.no_grad():
        if operator == "tikhonov_snapshots":
            return snapshots_reference.tikhonov_snapshots_backward(
                grad, *wide.tensors, alpha, relative=relative
            )
        return covariance_reference.tikhonov_covariance_backward(
            grad, *wide.tensors, alpha, relative=relative, center=center
        )


def check(
    operator: str,
    inputs: ti.Inputs,
    alpha: float = ALPHA,
    *,
    relative: bool = False,
    center: bool = False,
    **device: int,
) -> None:
    """Value and all gradients."""
    dtype = inputs.y.dtype
    center = center and operator == "tikhonov_covariance"
    expected = reference(operator, inputs, alpha, relative, center)
    actual = operators.tikhonov_forward(operator, inputs.tensors, alpha, relative, center, **device)
    if operator == "tikhonov_covariance":
        assert torch.equal(actual, actual.mH), "not exactly Hermitian"
        assert torch.all(actual.diagonal(dim1=1, dim2=2).imag == 0)
    if center and inputs.y.shape[1] == 1:
        assert torch.all(actual.abs() == 0), "one centred snapshot has no covariance"
        return
    bound = tolerance(dtype, ti.condition(inputs, alpha, relative))
    assert_close(actual, expected, bound, operator)
    grad = ti.aligned_weight(expected)
    wanted = reference_gradients(operator, grad, inputs, alpha, relative, center)
    got = operators.tikhonov_backward(
        operator, grad.to(dtype), inputs.tensors, alpha, relative, center, **device
    )
    # The gradient solves with S twice, the value once.
    for name, g, w in zip(NAMES, got, wanted, strict=True):
        assert_close(g, w, 4 * bound, f"gradient to {name}")


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m,n,snapshots", ti.SIZES)
def test_sizes(m, n, snapshots, dtype, operator):
    # Kinds and options rotate over the sizes; test_options has every combination of them.
    turn = m + n + snapshots + (dtype == torch.complex64)
    per_snapshot, modulus = KINDS[turn % 5]
    inputs = ti.make(
        *(1 if n > 31 else 2, snapshots, m, n, dtype),
        per_snapshot=per_snapshot,
        modulus=modulus,
        seed=turn,
    )
    check(operator, inputs, seed=turn, **OPTIONS[(turn + m) % 4])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("per_snapshot,modulus", KINDS)
def test_options(per_snapshot, modulus, options, operator):
    # Fewer snapshots than are factored together, and more.
    snapshots = 3 if options["center"] else 6
    inputs = ti.make(
        *(2, snapshots, 16, 50, torch.complex64), per_snapshot=per_snapshot, modulus=modulus, seed=5
    )
    check(operator, inputs, **options)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("per_snapshot,modulus", KINDS)
def test_default_shape(per_snapshot, modulus, operator):
    """L = 16, M = 16, N = 144 in complex64: within 2e-6 of complex128."""
    inputs = ti.make(
        *(1, 16, 16, 144, torch.complex64), per_snapshot=per_snapshot, modulus=modulus, seed=1
    )
    check(operator, inputs)
    actual = operators.tikhonov_forward(operator, inputs.tensors, ALPHA)
    assert compare(actual, reference(operator, inputs, ALPHA, False, False)).relative < 2e-6


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m,n", [(64, 31), (64, 150), (128, 40), (130, 33)])
def test_many_antennas(m, n, dtype, operator):
    """More antennas than lanes of a warp."""
    turn = m + n + (dtype == torch.complex64)
    per_snapshot, modulus = KINDS[turn % 5]
    inputs = ti.make(1, 3, m, n, dtype, per_snapshot=per_snapshot, modulus=modulus, seed=turn)
    check(operator, inputs, **OPTIONS[turn % 4])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("per_snapshot,modulus", [KINDS[0], KINDS[2], KINDS[4]])
def test_devices(per_snapshot, modulus, device, operator):
    inputs = ti.make(
        *(2, 20, 12, 150, torch.complex64), per_snapshot=per_snapshot, modulus=modulus, seed=3
    )
    check(operator, inputs, relative=per_snapshot, center=True, **device)


@pytest.mark.parametrize("operator", OPERATORS)
@FUSED_AND_STAGED
@pytest.mark.parametrize("per_snapshot", [False, True])
def test_only_requested_gradients(per_snapshot, m, operator):
    """Each subset of the gradients has the bits that it has among all of them."""
    inputs = ti.make(1, 5, m, 31, torch.complex64, per_snapshot=per_snapshot, modulus="varying")
    expected = reference(operator, inputs, ALPHA, False, False)
    grad = ti.aligned_weight(expected).to(torch.complex64)
    full = operators.tikhonov_backward(operator, grad, inputs.tensors, ALPHA)
    for need in itertools.product((False, True), repeat=3):
        got = operators.tikhonov_backward(operator, grad, inputs.tensors, ALPHA, need=need)
        for g, f, needed in zip(got, full, need, strict=True):
            assert torch.equal(g, f) if needed else g is None


@pytest.mark.parametrize("operator", OPERATORS)
@FUSED_AND_STAGED
@pytest.mark.parametrize("per_snapshot,modulus", [KINDS[0], KINDS[2], KINDS[4]])
def test_orders_agree(per_snapshot, modulus, m, operator):
    """Blocks, warps and lanes in other orders: the same bits."""
    inputs = ti.make(
        *(2, 6, m, 40, torch.complex64), per_snapshot=per_snapshot, modulus=modulus, seed=7
    )
    options = (ALPHA, per_snapshot, operator == "tikhonov_covariance")
    first = operators.tikhonov_forward(operator, inputs.tensors, *options, seed=1)
    grad = ti.aligned_weight(first.to(torch.complex128)).to(torch.complex64)
    gradients = operators.tikhonov_backward(operator, grad, inputs.tensors, *options, seed=1)
    for seed in range(2, 5):
        again = operators.tikhonov_forward(operator, inputs.tensors, *options, seed=seed)
        assert torch.equal(again, first)
        more = operators.tikhonov_backward(operator, grad, inputs.tensors, *options, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(more, gradients, strict=True))


def within_nan(tensor: Tensor) -> Tensor:
    """The same values inside a larger array of NaN, every stride longer than it need be."""
    shape = [2 * size + 3 for size in tensor.shape]
    base = torch.full(shape, torch.nan, dtype=tensor.dtype)
    view = base[tuple(slice(1, 1 + 2 * size, 2) for size in tensor.shape)]
    view.copy_(tensor)
    return view


@pytest.mark.parametrize("operator", OPERATORS)
@FUSED_AND_STAGED
def test_strides(m, operator):
    """Expanded, transposed, sliced and unaligned views give what their copies give."""
    base = ti.make(2, 5, m, 24, torch.complex64, modulus="varying")
    per_snapshot = ti.make(2, 5, m, 24, torch.complex64, per_snapshot=True)
    cases = [
        ti.Inputs(
            base.y[:1].expand(2, 5, m), base.h[:1].expand(2, m, 24), base.codes[:1].expand(2, 5, 24)
        ),
        ti.Inputs(*(t.mT.contiguous().mT for t in base.tensors)),
        ti.Inputs(*(within_nan(t) for t in base.tensors)),
        ti.Inputs(base.y[:, 1:, 1:], base.h[:, 1:, 1:], base.codes[:, 1:, 1:]),
        ti.Inputs(base.y, base.h[:, None].expand(2, 5, m, 24), base.codes),
        ti.Inputs(*(within_nan(t) for t in per_snapshot.tensors)),
        ti.Inputs(
            base.y,
            per_snapshot.h.transpose(1, 3).contiguous().transpose(1, 3),
            base.codes[:, :1].expand(2, 5, 24),
        ),
    ]
    views = [within_nan, lambda grad: grad.mT.contiguous().mT, lambda grad: grad]
    for case, inputs in enumerate(cases):
        copies = ti.Inputs(
            *(t.clone(memory_format=torch.contiguous_format) for t in inputs.tensors)
        )
        value = operators.tikhonov_forward(operator, inputs.tensors, ALPHA)
        assert torch.equal(value, operators.tikhonov_forward(operator, copies.tensors, ALPHA))
        grad = ti.aligned_weight(value.to(torch.complex128)).to(torch.complex64)
        wanted = operators.tikhonov_backward(operator, grad, copies.tensors, ALPHA)
        got = operators.tikhonov_backward(operator, views[case % 3](grad), inputs.tensors, ALPHA)
        assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))
    # An incoming gradient that is one number, as of a sum.
    value = operators.tikhonov_forward(operator, base.tensors, ALPHA)
    one = torch.ones(1, dtype=torch.complex64).expand(value.shape)
    got = operators.tikhonov_backward(operator, one, base.tensors, ALPHA)
    wanted = operators.tikhonov_backward(operator, one.contiguous(), base.tensors, ALPHA)
    assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize("operator", OPERATORS)
@FUSED_AND_STAGED
def test_empty_batch(m, operator):
    inputs = ti.make(0, 3, m, 5, torch.complex64)
    value = operators.tikhonov_forward(operator, inputs.tensors, ALPHA)
    assert value.shape[0] == 0
    gradients = operators.tikhonov_backward(operator, value, inputs.tensors, ALPHA)
    assert [g.shape for g in gradients] == [t.shape for t in inputs.tensors]


@pytest.mark.parametrize("operator", OPERATORS)
@FUSED_AND_STAGED
@pytest.mark.parametrize("per_snapshot", [False, True])
def test_nan_stays_in_its_scene(per_snapshot, m, operator):
    inputs = ti.make(3, 3, m, 31, torch.complex64, per_snapshot=per_snapshot)
    clean = operators.tikhonov_forward(operator, inputs.tensors, ALPHA)
    grad = ti.aligned_weight(clean.to(torch.complex128)).to(torch.complex64)
    gradients = operators.tikhonov_backward(operator, grad, inputs.tensors, ALPHA)
    for tensor in inputs.tensors:
        tensor[1].flatten()[3] = torch.nan
    value = operators.tikhonov_forward(operator, inputs.tensors, ALPHA)
    assert torch.isnan(value[1].abs()).any()
    got = operators.tikhonov_backward(operator, grad, inputs.tensors, ALPHA)
    for a, b in zip((value, *got), (clean, *gradients), strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])


@pytest.mark.parametrize("operator", OPERATORS)
@FUSED_AND_STAGED
@pytest.mark.parametrize("relative", [False, True])
def test_singular_channels(relative, m, operator):
    """Channels of rank 1 and 0, M > N, tiny alpha: finite in float32, and 0 where H is 0."""
    inputs = ti.make(3, 3, m + 13, 8, torch.complex64)
    inputs.h[1] = inputs.h[1, :, :1] * inputs.h[1, :1, :]
    inputs.h[2] = 0
    options = (1e-12, relative)
    value = operators.tikhonov_forward(operator, inputs.tensors, *options)
    assert torch.isfinite(value.abs()).all()
    assert torch.all(value[2] == 0)
    grad = torch.ones_like(value)
    gradients = operators.tikhonov_backward(operator, grad, inputs.tensors, *options)
    assert all(torch.isfinite(g.abs()).all() for g in gradients)


@pytest.mark.parametrize("m", [32, 40])
@pytest.mark.parametrize("per_snapshot", [False, True])
def test_noise_above_the_pivot_floor_does_not_grow(per_snapshot, m):
    inputs = ti.make(12, 4, m, 7, torch.complex64, per_snapshot=per_snapshot, seed=3)
    value = operators.tikhonov_forward("tikhonov_snapshots", inputs.tensors, 1e-8)
    assert_close(value, ti.snapshots_oracle(inputs.oracle(), 1e-8), 200.0, "estimates")


@pytest.mark.parametrize("operator", OPERATORS)
@FUSED_AND_STAGED
@pytest.mark.parametrize("per_snapshot,modulus", [KINDS[0], KINDS[2], KINDS[4]])
def test_no_data_races(per_snapshot, modulus, m, operator):
    """No two threads touch the same byte without a barrier between them; see races.hpp."""
    inputs = ti.make(
        *(2, 5, m, 40, torch.complex64), per_snapshot=per_snapshot, modulus=modulus, seed=9
    )
    for center, multiprocessors in ((False, 1), (operator == "tikhonov_covariance", 132)):
        options = (ALPHA, True, center)
        device = dict(races=True, multiprocessors=multiprocessors)
        # A race raises harness.ExecutorError.
        value = operators.tikhonov_forward(operator, inputs.tensors, *options, **device)
        grad = ti.aligned_weight(value.to(torch.complex128)).to(torch.complex64)
        gradients = operators.tikhonov_backward(operator, grad, inputs.tensors, *options, **device)
        assert all(torch.isfinite(x.abs()).all() for x in (value, *gradients))
