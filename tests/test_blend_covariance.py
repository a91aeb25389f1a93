# SPDX-License-Identifier: Apache-2.0
"""blend_covariance on every backend, against its definition in complex128."""

from __future__ import annotations

import pytest
import tikhonov_inputs as ti
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import riskernels
from riskernels.testing import assert_close, tolerance

OPTIONS = [
    {},
    {"beta": 0.0, "target_trace": 2.5},
    {"beta": 1.0, "loading": 0.3},
    {"beta": 0.6, "loading": 0.05, "shrinkage": 0.2, "target_trace": 7.0},
    {"shrinkage": 1.0},
]


def oracle(
    pred: Tensor,
    samp: Tensor,
    beta: float = 0.3,
    target_trace: float | None = None,
    *,
    loading: float = 0.0,
    shrinkage: float = 0.0,
) -> Tensor:
    """The definition, step by step and scene by scene; a matrix of trace <= 0 is left out."""
    n = pred.shape[-1]
    identity = torch.eye(n, dtype=pred.dtype)
    results = []
    for p, s in zip(pred, samp.detach(), strict=True):
        blend = torch.zeros_like(p)
        for share, matrix in ((1 - beta, p), (beta, s)):
            hermitian = (matrix + matrix.mH) / 2
            trace = hermitian.diagonal().sum().real
            if trace > 0:
                blend = blend + share * hermitian * (n / trace)
        mean = blend.diagonal().sum().real / n
        blend = blend + loading * mean * identity
        mean = blend.diagonal().sum().real / n
        blend = (1 - shrinkage) * blend + shrinkage * mean * identity
        trace = blend.diagonal().sum().real
        target = n if target_trace is None else target_trace
        results.append(blend * (target / trace) if trace > 0 else blend)
    return torch.stack(results)


def pair(b: int, n: int, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Matrices that are not Hermitian, of positive trace."""
    g = torch.Generator().manual_seed(seed)
    identity = torch.eye(n, dtype=dtype)
    pred, samp = (ti.complex_normal(b, n, n, dtype=dtype, seed=g) + 4 * identity for _ in range(2))
    return pred.to(device), samp.to(device)


def energy(matrix: Tensor) -> float:
    """|matrix| over its trace: by how much normalising amplifies rounding errors."""
    trace = matrix.diagonal(dim1=1, dim2=2).real.sum(-1).abs()
    return float((matrix.abs().square().sum((1, 2)).sqrt() / trace).max())


def check(pred: Tensor, samp: Tensor, grad: Tensor | None = None, **options: float | None) -> None:
    wide = [t.detach().cpu().to(torch.complex128) for t in (pred, samp)]
    leaf = wide[0].requires_grad_()
    expected = oracle(leaf, wide[1], **options)
    tested = pred.detach().requires_grad_()
    actual = riskernels.blend_covariance(tested, samp, **options)
    assert actual.dtype == pred.dtype and actual.is_contiguous()
    assert torch.equal(actual, actual.mH)
    assert_close(actual, expected, tolerance(pred.dtype))
    weight = ti.aligned_weight(expected).to(actual) if grad is None else grad
    (got,) = torch.autograd.grad(actual, tested, weight)
    (want,) = torch.autograd.grad(
        expected, leaf, weight.cpu().to(torch.complex128), allow_unused=True
    )
    want = torch.zeros_like(leaf) if want is None else want
    # With beta = 1 the gradient is exactly 0; where N = 1 it cancels.
    scale = float(weight.norm()) * max(1.0, energy(pred.detach()))
    error = float((got.cpu() - want).norm())
    limit = tolerance(pred.dtype) * max(float(want.norm()), scale / pred.shape[1])
    assert error <= limit, f"gradient: error {error:.2e}, limit {limit:.2e}"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("n", [1, 3, 7, 8, 16, 31, 33, 144, 257])
def test_sizes_and_options(backend, poisoned, n, dtype):
    pred, samp = pair(3 if n < 100 else 1, n, dtype, backend.device)
    for options in OPTIONS:
        check(pred, samp, **options)


@pytest.mark.parametrize("n", [8, 31])
def test_strides(backend, poisoned, n):
    pred, samp = pair(3, n, torch.complex64, backend.device)
    other, grad = pair(3, n, torch.complex64, backend.device, seed=1)
    both = torch.stack([pred, samp], -1)
    big = torch.zeros(3, 2 * n, 2 * n, dtype=pred.dtype, device=pred.device)
    big[:, 1::2, ::2] = pred
    cases = [
        (pred.mT, samp, grad),
        (pred, samp.mT, grad.mT),
        (pred.mT, samp.mT, grad.mH),
        (pred.conj(), samp.mH, grad.conj()),
        (pred, samp[:1].expand(3, n, n), grad[:1].expand(3, n, n)),
        (both[..., 0], both[..., 1].mT, grad[:, :, :1].expand(3, n, n)),
        (big[:, 1::2, ::2], big[:, 1::2, ::2].mT, grad[:1, :1, :1].expand(3, n, n)),
        (other[:, :, :1].expand(3, n, n) + samp, samp, grad),
    ]
    for p, s, g in cases:
        check(p, s, g, loading=0.1)


def test_trace_that_is_not_positive(backend, poisoned):
    """Such a matrix is left out, its share goes to the other, and no gradient reaches it."""
    pred, samp = pair(4, 9, torch.complex64, backend.device)
    eye = torch.eye(9, device=backend.device)
    pred[1] -= 9 * eye
    samp[2] -= 9 * eye
    pred[3] = 0
    samp[3] = 0
    check(pred, samp, loading=0.2, shrinkage=0.1)
    leaf = pred.requires_grad_()
    value = riskernels.blend_covariance(leaf, samp)
    assert torch.all(value[3] == 0)
    value.backward(torch.full_like(value, float("inf")))
    assert torch.all(leaf.grad[[1, 3]] == 0)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(backend, options):
    pred, samp = pair(2, 5, torch.complex128, backend.device)
    assert torch.autograd.gradcheck(
        lambda p: riskernels.blend_covariance(p, samp, **options), pred.requires_grad_()
    )


@pytest.mark.parametrize("options", [{}, OPTIONS[3]])
def test_opcheck(options):
    pred, samp = pair(2, 5, torch.complex128, "cpu")
    ops = torch.ops.riskernels
    torch.library.opcheck(ops.blend_covariance, (pred.requires_grad_(), samp), options)
    arguments = (samp, pred.detach(), samp, 0.3, options.get("target_trace"), 0.1, 0.2)
    torch.library.opcheck(ops.blend_covariance_backward, arguments)


def test_samp_is_a_constant(backend):
    pred, samp = pair(2, 9, torch.complex64, backend.device)
    pred.requires_grad_()
    samp.requires_grad_()
    value = riskernels.blend_covariance(pred, samp)
    grads = torch.autograd.grad(value, (pred, samp), torch.ones_like(value), allow_unused=True)
    assert grads[0] is not None and grads[1] is None
    assert riskernels.blend_covariance(pred.detach(), samp.detach()).grad_fn is None


def test_non_finite_input_stays_in_its_scene(backend):
    pred, samp = pair(4, 31, torch.complex64, backend.device)
    pred[1, 3, 4] = float("nan")
    samp[2, 5, 5] = float("inf")
    leaf = pred.requires_grad_()
    value = riskernels.blend_covariance(leaf, samp)
    value.backward(torch.ones_like(value))
    for tensor in (value, leaf.grad):
        finite = torch.isfinite(torch.view_as_real(tensor.detach())).flatten(1).all(1)
        assert finite[0] and finite[3] and not finite[1]
    assert not torch.isfinite(torch.view_as_real(value[2].detach())).all()


@pytest.mark.parametrize("n", [3, 31, 300])
@pytest.mark.parametrize("element", [0, -1])
def test_a_broken_imaginary_part_on_the_diagonal_shows(backend, n, element):
    """The imaginary part cancels in the Hermitian part, unless it is no number."""
    pred, samp = pair(1, n, torch.complex64, backend.device)
    pred[0, element, element] = complex(1.0, float("nan"))
    assert riskernels.blend_covariance(pred, samp)[0, element, element].isnan()
    identity = torch.eye(n, dtype=torch.complex64, device=backend.device)[None]
    leaf = identity.clone().requires_grad_()
    riskernels.blend_covariance(leaf, samp).backward(pred)
    assert leaf.grad[0, element, element].isnan()


def test_empty_batch_and_deterministic(backend):
    pred, samp = pair(0, 31, torch.complex64, backend.device)
    leaf = pred.requires_grad_()
    value = riskernels.blend_covariance(leaf, samp)
    assert value.shape == (0, 31, 31)
    value.backward(torch.ones_like(value))
    assert leaf.grad.shape == (0, 31, 31)
    pred, samp = pair(5, 144, torch.complex64, backend.device)
    values = [riskernels.blend_covariance(pred, samp) for _ in range(2)]
    assert torch.equal(*values)


CASES = [
    ({"pred": torch.zeros(4, 4) + 0j}, r"pred has shape \[4, 4\], expected \[B, N, N\]"),
    ({"pred": torch.zeros(2, 4, 5) + 0j}, r"pred has shape \[2, 4, 5\]"),
    ({"samp": torch.zeros(1, 4, 4) + 0j}, r"samp has shape \[1, 4, 4\], expected \[2, 4, 4\] as"),
    ({"pred": torch.zeros(2, 4, 4)}, "pred has dtype torch.float32, expected complex64 or"),
    ({"samp": torch.zeros(2, 4, 4, dtype=torch.complex128)}, "samp has dtype torch.complex128"),
    (dict.fromkeys(("pred", "samp"), torch.zeros(2, 0, 0) + 0j), "N must be at least 1, got N=0"),
    ({"beta": 1.5}, "beta is 1.5, expected a number from 0 to 1"),
    ({"beta": float("nan")}, "beta is nan"),
    ({"shrinkage": -0.25}, "shrinkage is -0.25, expected a number from 0 to 1"),
    ({"loading": -1.0}, "loading is -1.*, expected a finite number >= 0"),
    ({"loading": float("inf")}, "loading is inf"),
    ({"target_trace": 0.0}, "target_trace is 0.*, expected a finite number > 0 or None for N"),
    ({"target_trace": float("nan")}, "target_trace is nan"),
]


@pytest.mark.parametrize("change,message", CASES)
def test_errors(backend, change, message):
    arguments = {"pred": torch.zeros(2, 4, 4) + 0j, "samp": torch.zeros(2, 4, 4) + 0j, **change}
    arguments = {
        k: v.to(backend.device) if isinstance(v, Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=f"^riskernels::blend_covariance: {message}"):
        riskernels.blend_covariance(**arguments)


def test_errors_of_the_backward(backend):
    pred, samp = pair(2, 4, torch.complex64, backend.device)
    backward = torch.ops.riskernels.blend_covariance_backward
    with pytest.raises(RuntimeError, match=r"grad has shape \[2, 4, 2\], expected \[2, 4, 4\]"):
        backward(pred[:, :, :2], pred, samp, 0.3, None, 0.0, 0.0)
    with pytest.raises(RuntimeError, match=r"grad has dtype torch\.complex128"):
        backward(pred.to(torch.complex128), pred, samp, 0.3, None, 0.0, 0.0)
    with pytest.raises(RuntimeError, match="blend_covariance_backward: beta is 2"):
        backward(pred, pred, samp, 2.0, None, 0.0, 0.0)


def test_compile_once_for_every_batch():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def loss(pred, samp):
        return riskernels.blend_covariance(pred, samp, 0.3, loading=0.1).abs().square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for b in (2, 3, 5):
        pred, samp = pair(b, 6, torch.complex128, "cpu", seed=b)
        leaf = pred.requires_grad_()
        got, want = (torch.autograd.grad(f(leaf, samp), leaf)[0] for f in (compiled, loss))
        assert_close(got, want, 1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 1), (3, 0)])
def test_vmap(backend, in_dims):
    tensors = pair(3, 6, torch.complex128, backend.device)
    stacked = [
        t if d is None else torch.stack([t, t.mH + t], d)
        for t, d in zip(tensors, in_dims, strict=True)
    ]
    got = torch.vmap(riskernels.blend_covariance, in_dims)(*stacked)
    for k in range(2):
        single = [t if d is None else t.select(d, k) for t, d in zip(stacked, in_dims, strict=True)]
        assert_close(got[k], riskernels.blend_covariance(*single), 1e-13)


def test_batched_gradients(backend):
    pred, samp = pair(3, 6, torch.complex128, backend.device)
    value = riskernels.blend_covariance(pred.requires_grad_(), samp)
    weights = torch.randn(2, *value.shape, dtype=value.dtype, device=value.device)
    (batched,) = torch.autograd.grad(value, pred, weights, is_grads_batched=True, retain_graph=True)
    for k in range(2):
        (single,) = torch.autograd.grad(value, pred, weights[k], retain_graph=True)
        assert_close(batched[k], single, 1e-13)


def test_autocast_keeps_full_precision():
    pred, samp = pair(2, 6, torch.complex64, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = riskernels.blend_covariance(pred, samp)
        assert riskernels.blend_covariance(
            *(t.to(torch.complex32) for t in (pred, samp))
        ).dtype == (torch.complex64)
    assert torch.equal(value, riskernels.blend_covariance(pred, samp))


def test_second_derivatives_raise(backend):
    pred, samp = pair(2, 6, torch.complex128, backend.device)
    value = riskernels.blend_covariance(pred.requires_grad_(), samp).abs().square().sum()
    (grad,) = torch.autograd.grad(value, pred, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.abs().sum().backward()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("n", [5, 64, 144])
def test_normalised_covariance_passes_through(backend, n, dtype):
    """Bit by bit, with beta = 0, from either triangle."""
    pred, samp = pair(2, n, dtype, backend.device)
    pred = pred + pred.mH
    # Diagonal entries whose sum is N without rounding.
    ones = torch.ones(n, device=backend.device)
    ones[: n // 2 * 2 : 2] += 0.25
    ones[1 : n // 2 * 2 : 2] -= 0.25
    pred.diagonal(dim1=1, dim2=2).copy_(ones.expand(2, n))
    assert torch.equal(riskernels.blend_covariance(pred, samp, 0.0), pred)
    assert torch.equal(riskernels.blend_covariance(pred.mT, samp.mT, 0.0), pred.mT)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 24),
    seed=st.integers(0, 2**31),
    beta=st.floats(0, 1),
    trace=st.floats(0.01, 1e3),
    loading=st.floats(0, 2),
    shrinkage=st.floats(0, 1),
    exponent=st.integers(-20, 20),
)
def test_identities(n, seed, beta, trace, loading, shrinkage, exponent):
    factors = pair(2, n, torch.complex128, "cpu", seed)
    pred, samp = (f @ f.mH for f in factors)
    options = {"loading": loading, "shrinkage": shrinkage}

    def blend(p, s, share=beta):
        return riskernels.blend_covariance(p, s, share, trace, **options)

    value = blend(pred, samp)
    assert torch.equal(value, value.mH)
    assert torch.all(value.diagonal(dim1=1, dim2=2).imag == 0)
    traces = value.diagonal(dim1=1, dim2=2).real.sum(-1)
    assert torch.allclose(traces, torch.full_like(traces, trace), rtol=1e-12)
    # A power of two scales without rounding.
    assert torch.equal(blend(pred * 2.0**exponent, samp), value)
    assert torch.equal(blend(pred, samp * 2.0**exponent), value)
    assert torch.allclose(blend(pred.mH, samp), value, rtol=1e-12, atol=1e-12 * trace)
    assert torch.allclose(blend(samp, pred, 1 - beta), value, rtol=1e-9, atol=1e-12 * trace)
    # An anti-Hermitian part does not count.
    skew = factors[0] - factors[0].mH
    assert torch.allclose(blend(pred + skew, samp), value, rtol=1e-9, atol=1e-11 * trace)
