# SPDX-License-Identifier: Apache-2.0
"""subspace_leakage on every backend, against the dense projector in complex128."""

from __future__ import annotations

import pytest
import tikhonov_inputs as ti
import torch
import torch._dynamo
from torch import Tensor

import riskernels
from riskernels.testing import assert_close, tolerance


def projectors(steering: Tensor, num_sources: Tensor, ridge: float) -> list[Tensor]:
    """The N x N ridge projector of every scene."""
    result = []
    for a, count in zip(steering, num_sources.clamp(0, steering.shape[2]), strict=True):
        a = a[:, : int(count)]
        gram = a.mH @ a + ridge * torch.eye(a.shape[1], dtype=a.dtype)
        result.append(a @ torch.linalg.solve(gram, a.mH))
    return result


def oracle(cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float) -> Tensor:
    """|(I - P) R (I - P)|^2 / |R|^2, scene by scene."""
    values = []
    for r, p in zip(cov, projectors(steering, num_sources, ridge), strict=True):
        outside = torch.eye(len(r), dtype=r.dtype) - p
        values.append((outside @ r @ outside).abs().square().sum() / r.abs().square().sum())
    return torch.stack(values)


def expanded(cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float) -> Tensor:
    """The same for a Hermitian R; for others, what the operator is documented to differentiate."""
    values = []
    for r, p in zip(cov, projectors(steering, num_sources, ridge), strict=True):
        m = 2 * p - p @ p
        inside = 2 * (r.mH @ m @ r) - r.mH @ m @ r @ m
        values.append(1 - inside.diagonal().sum().real / r.abs().square().sum())
    return torch.stack(values)


def make(
    b: int, n: int, k: int, dtype: torch.dtype, device: str, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """A Hermitian cov with most of its energy in the span of the steering vectors."""
    g = torch.Generator().manual_seed(seed)
    steering = ti.complex_normal(b, n, k, dtype=torch.complex128, seed=g) / n**0.5
    noise = ti.complex_normal(b, n, n, dtype=torch.complex128, seed=g) / n
    cov = steering @ steering.mH + noise + noise.mH
    num_sources = (torch.arange(b) + k) % (k + 2)
    return cov.to(dtype).to(device), steering.to(dtype).to(device), num_sources.to(device)


def limit_of(dtype: torch.dtype, steering: Tensor, ridge: float) -> float:
    """The basis comes from systems of this condition, which every backend solves in double."""
    largest = float((steering.abs().square().sum((1, 2)) + ridge).max()) if len(steering) else 1.0
    return max(tolerance(dtype), tolerance(torch.complex128, largest / ridge))


def check(cov: Tensor, steering: Tensor, num_sources: Tensor, ridge: float = 1e-2) -> None:
    """Errors of the value are absolute, and those of the gradient relative to 1/|R|."""
    wide = cov.detach().cpu().to(torch.complex128).requires_grad_()
    constants = (steering.detach().cpu().to(torch.complex128), num_sources.cpu(), ridge)
    limit = limit_of(cov.dtype, constants[0], ridge)
    leaf = cov.detach().requires_grad_()
    actual = riskernels.subspace_leakage(leaf, steering, num_sources, ridge)
    expected = expanded(wide, *constants)
    assert actual.dtype == cov.dtype.to_real()
    error = float((actual.detach().cpu() - expected.detach()).abs().max())
    assert error <= limit, f"leakage: error {error:.2e}, limit {limit:.2e}"
    if torch.equal(cov, cov.mH):
        dense = oracle(wide, *constants).detach()
        assert float((actual.detach().cpu() - dense).abs().max()) <= limit
    weight = torch.rand(len(cov), dtype=torch.float64) + 0.5
    (want,) = torch.autograd.grad(expected, wide, weight)
    (got,) = torch.autograd.grad(actual, leaf, weight.to(actual))
    assert got.is_contiguous()
    norm = wide.detach().abs().square().sum((1, 2)).sqrt()[:, None, None]
    error = float(((got.cpu() - want) * norm).abs().square().sum((1, 2)).sqrt().max())
    assert error <= 4 * limit, f"gradient: error {error:.2e}, limit {4 * limit:.2e}"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("k", [1, 5, 7])
@pytest.mark.parametrize("n", [1, 7, 8, 16, 31, 33, 144, 257])
def test_sizes(backend, poisoned, n, k, dtype):
    check(*make(7 if n < 100 else 2, n, k, dtype, backend.device))


@pytest.mark.parametrize("n", [16, 31])
def test_strides(backend, poisoned, n):
    """For any matrix, not only Hermitian ones."""
    cov, steering, num_sources = make(3, n, 2, torch.complex64, backend.device)
    g = torch.Generator().manual_seed(1)
    noise = ti.complex_normal(3, n, n, dtype=torch.complex64, seed=g).to(backend.device)
    cov = cov + noise / n
    both = torch.stack([cov, cov.mT], -1)
    big = torch.zeros(3, 2 * n, 2 * n, dtype=cov.dtype, device=cov.device)
    big[:, 1::2, ::2] = cov
    wide = torch.cat([steering, steering], 1)
    cases = [
        (cov, steering, num_sources),
        (cov.mT, steering.mT.contiguous().mT, num_sources),
        (cov.mH, steering.conj(), num_sources),
        (cov.conj(), wide[:, ::2].conj(), num_sources.flip(0)),
        (both[..., 0], wide[:, n:], torch.stack([num_sources, num_sources], 1)[:, 1]),
        (big[:, 1::2, ::2], steering[:1].expand(3, n, 2), num_sources[:1].expand(3)),
        (cov[:1].expand(3, n, n), steering, num_sources),
        (noise[:, :, :1].expand(3, n, n), steering, num_sources),
    ]
    for case in cases:
        check(*case)


def test_masked_columns_may_hold_anything(backend, poisoned):
    cov, steering, _ = make(5, 31, 5, torch.complex64, backend.device)
    num_sources = torch.tensor([0, 2, 5, 9, -3], device=backend.device)
    clean = [cov.clone().requires_grad_(), steering.clone()]
    dirty = [cov.clone().requires_grad_(), steering.clone()]
    for scene, count in enumerate([0, 2, 5, 5, 0]):
        dirty[1][scene, :, count:] = float("nan")
    values = [riskernels.subspace_leakage(*t, num_sources) for t in (clean, dirty)]
    assert torch.equal(*values)
    assert torch.all(values[0][[0, 4]] == 1)
    for value in values:
        value.sum().backward()
    assert torch.equal(clean[0].grad, dirty[0].grad)
    check(cov, steering, num_sources)


def test_nearly_dependent_columns(backend):
    """A ridge below the rounding errors of the Gram matrix must not let them grow."""
    for dtype in (torch.complex64, torch.complex128):
        cov, steering, _ = make(3, 31, 5, dtype, backend.device)
        steering[:, :, 1] = steering[:, :, 0]
        steering[:, :, 4] = steering[:, :, 2] + steering[:, :, 3]
        num_sources = torch.full((3,), 5, device=backend.device)
        inside = steering @ steering.mH
        leaf = inside.requires_grad_()
        value = riskernels.subspace_leakage(leaf, steering, num_sources, 1e-25)
        value.sum().backward()
        assert float(value.detach().abs().max()) <= 1e-5
        assert torch.isfinite(torch.view_as_real(leaf.grad)).all()
        # The span decides, not how often its vectors are listed.
        distinct = steering[:, :, [0, 2, 3]]
        three = torch.full((3,), 3, device=backend.device)
        got = riskernels.subspace_leakage(cov, steering, num_sources, 1e-8)
        want = riskernels.subspace_leakage(cov, distinct, three, 1e-8)
        assert torch.allclose(got, want, atol=1e-5)


def test_zero_covariance(backend, poisoned):
    cov, steering, num_sources = make(3, 9, 5, torch.complex64, backend.device)
    cov[1] = 0
    leaf = cov.requires_grad_()
    value = riskernels.subspace_leakage(leaf, steering, num_sources)
    assert value[1] == 0 and torch.all(value[[0, 2]] > 0)
    value.sum().backward()
    assert torch.all(leaf.grad[1] == 0) and torch.all(leaf.grad[0].abs().sum() > 0)


@pytest.mark.parametrize("hermitian", [False, True])
def test_gradcheck(backend, hermitian):
    cov, steering, num_sources = make(3, 5, 3, torch.complex128, backend.device)
    if not hermitian:
        cov = cov + cov[:, :1] * 0.3j
    assert torch.autograd.gradcheck(
        lambda r: riskernels.subspace_leakage(r, steering, num_sources, 1e-2), cov.requires_grad_()
    )


def test_opcheck():
    cov, steering, num_sources = make(2, 5, 3, torch.complex128, "cpu")
    ops = torch.ops.riskernels
    arguments = (cov.requires_grad_(), steering, num_sources)
    torch.library.opcheck(ops.subspace_leakage, arguments)
    torch.library.opcheck(ops.subspace_leakage_forward, (*arguments, 1e-3))
    state = ops.subspace_leakage_forward(cov.detach(), steering, num_sources, 1e-3)
    grad = torch.rand(2, dtype=torch.float64)
    torch.library.opcheck(ops.subspace_leakage_backward, (grad, cov.detach(), *state))


def test_steering_is_a_constant(backend):
    cov, steering, num_sources = make(2, 5, 3, torch.complex64, backend.device)
    steering.requires_grad_()
    for matrix in (cov, cov.clone().requires_grad_()):
        with pytest.raises(RuntimeError, match=r"subspace_leakage: .*pass steering\.detach\(\)"):
            riskernels.subspace_leakage(matrix, steering, num_sources)
    with torch.no_grad():
        value = riskernels.subspace_leakage(cov, steering, num_sources)
    assert torch.equal(value, riskernels.subspace_leakage(cov, steering.detach(), num_sources))


def test_non_finite_input_stays_in_its_scene(backend):
    cov, steering, _ = make(4, 31, 5, torch.complex64, backend.device)
    num_sources = torch.full((4,), 5, device=backend.device)
    cov[1, 3, 4] = float("nan")
    steering[2, 5, 1] = float("inf")
    leaf = cov.requires_grad_()
    value = riskernels.subspace_leakage(leaf, steering, num_sources)
    assert torch.isfinite(value[[0, 3]]).all() and torch.isnan(value[[1, 2]]).all()
    value.sum().backward()
    assert torch.isfinite(torch.view_as_real(leaf.grad[[0, 3]])).all()
    assert not torch.isfinite(torch.view_as_real(leaf.grad[1])).any()


def test_empty_batch_and_deterministic(backend):
    cov, steering, num_sources = make(0, 31, 5, torch.complex64, backend.device)
    leaf = cov.requires_grad_()
    value = riskernels.subspace_leakage(leaf, steering, num_sources)
    assert value.shape == (0,)
    value.sum().backward()
    assert leaf.grad.shape == (0, 31, 31)
    inputs = make(5, 144, 5, torch.complex64, backend.device)
    values = [riskernels.subspace_leakage(*inputs) for _ in range(2)]
    assert torch.equal(*values)


C64 = torch.complex64


def zeros(*shape: int, dtype: torch.dtype = C64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


CASES = [
    ({"cov": zeros(4, 4)}, r"cov has shape \[4, 4\], expected \[B, N, N\]"),
    ({"cov": zeros(2, 4, 5)}, r"cov has shape \[2, 4, 5\]"),
    ({"cov": zeros(2, 4, 4).real}, "cov has dtype torch.float32, expected complex64 or"),
    ({"steering": zeros(2, 4, 3, dtype=torch.complex128)}, "steering has dtype torch.complex128"),
    ({"steering": zeros(2, 5, 3)}, r"steering has shape \[2, 5, 3\], expected \[2, 4, K\] as"),
    ({"steering": zeros(2, 4)}, r"steering has shape \[2, 4\]"),
    ({"steering": zeros(2, 4, 0)}, "N and K must be at least 1, got N=4, K=0"),
    ({"num_sources": torch.ones(2)}, "num_sources has dtype torch.float32, expected torch.int64"),
    ({"num_sources": torch.ones(3, dtype=torch.int64)}, r"num_sources has shape \[3\], expected"),
    ({"ridge": 0.0}, "ridge is 0.*, expected a finite number > 0"),
    ({"ridge": float("nan")}, "ridge is nan"),
    ({"ridge": float("inf")}, "ridge is inf"),
]


@pytest.mark.parametrize("change,message", CASES)
def test_errors(backend, change, message):
    arguments = {
        "cov": zeros(2, 4, 4),
        "steering": zeros(2, 4, 3),
        "num_sources": torch.tensor([1, 3]),
        **change,
    }
    arguments = {
        k: v.to(backend.device) if isinstance(v, Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=f"^riskernels::subspace_leakage: {message}"):
        riskernels.subspace_leakage(**arguments)


def test_errors_of_the_backward(backend):
    cov, steering, num_sources = make(2, 4, 3, C64, backend.device)
    ops = torch.ops.riskernels
    state = ops.subspace_leakage_forward(cov, steering, num_sources, 1e-3)
    good = [torch.ones(2, device=backend.device), cov, *state]
    bad = [
        (0, good[0].double(), r"grad has dtype torch\.float64, expected torch\.float32"),
        (2, good[2][:1], r"leakage has shape \[1\], expected \[2\]"),
        (4, steering[:, :3], r"basis has shape \[2, 3, 3\], expected \[2, 4, K\] as cov"),
        (5, steering, r"projected has shape \[2, 4, 3\], expected \[2, 3, 4\]"),
    ]
    for index, value, message in bad:
        arguments = [value if i == index else x for i, x in enumerate(good)]
        with pytest.raises(RuntimeError, match=f"subspace_leakage_backward: {message}"):
            ops.subspace_leakage_backward(*arguments)


def test_compile_once_for_every_batch():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def loss(cov, steering, num_sources):
        return riskernels.subspace_leakage(cov, steering, num_sources).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for b in (2, 3, 5):
        cov, *constants = make(b, 6, 3, torch.complex128, "cpu", seed=b)
        leaf = cov.requires_grad_()
        got, want = (torch.autograd.grad(f(leaf, *constants), leaf)[0] for f in (compiled, loss))
        assert_close(got, want, 1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 2, 1), (3, 0, None)])
def test_vmap(backend, in_dims):
    sets = [make(3, 6, 4, torch.complex128, backend.device, seed=k) for k in range(2)]
    stacked = [
        sets[0][i] if d is None else torch.stack([s[i] for s in sets], d)
        for i, d in enumerate(in_dims)
    ]
    got = torch.vmap(riskernels.subspace_leakage, in_dims)(*stacked)
    for k in range(2):
        single = [t if d is None else t.select(d, k) for t, d in zip(stacked, in_dims, strict=True)]
        assert_close(got[k], riskernels.subspace_leakage(*single), 1e-13)


def test_batched_and_second_derivatives(backend):
    cov, *constants = make(3, 6, 4, torch.complex128, backend.device)
    value = riskernels.subspace_leakage(cov.requires_grad_(), *constants)
    weights = torch.randn(2, 3, dtype=torch.float64, device=backend.device)
    (batched,) = torch.autograd.grad(value, cov, weights, is_grads_batched=True, retain_graph=True)
    for k in range(2):
        (single,) = torch.autograd.grad(value, cov, weights[k], retain_graph=True)
        assert_close(batched[k], single, 1e-13)
    (grad,) = torch.autograd.grad(value.sum(), cov, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.abs().sum().backward()


def test_autocast_keeps_full_precision():
    cov, steering, num_sources = make(2, 6, 3, C64, "cpu")
    plain = riskernels.subspace_leakage(cov, steering, num_sources)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(riskernels.subspace_leakage(cov, steering, num_sources), plain)
        half = [t.to(torch.complex32) for t in (cov, steering)]
        assert riskernels.subspace_leakage(*half, num_sources).dtype == torch.float32
