# SPDX-License-Identifier: Apache-2.0
"""Triton kernels run by Triton's interpreter on the CPU, against the oracles in complex128.

The interpreter must be chosen before the kernels are imported, so every case runs in a process of
its own: this file, as a script with the name of a case.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import test_hermitian_nmse as nmse
import test_tikhonov_covariance as covariance
import test_tikhonov_snapshots as snapshots
import tikhonov_inputs as ti
import torch

import riskernels
from riskernels import library
from riskernels.testing import assert_close, compare


def obstacle() -> str:
    """Why the interpreter cannot run here; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (PyPI has it for Linux on x86-64 only)"
    found = {name: importlib.metadata.version(name) for name in ("triton", "numpy")}
    numbers = {name: tuple(map(int, text.split(".")[:2])) for name, text in found.items()}
    if numbers["triton"] < (3, 7) and numbers["numpy"] >= (2, 4):
        return f"the interpreter of triton {found['triton']} needs numpy < 2.4: {found['numpy']}"
    return ""


pytestmark = [
    pytest.mark.check("triton-interpreter"),
    pytest.mark.skipif(bool(obstacle()), reason=obstacle()),
]

C64, C128 = torch.complex64, torch.complex128
CPU = SimpleNamespace(name="triton", device="cpu")
"""What the tests of the operators take for the backend fixture."""


def shared_channel() -> None:
    """One factorisation for all snapshots, and one for each; sizes that fill no block."""
    covariance.check(ti.make(2, 5, 7, 31, C64, modulus="tapered"), relative=True, center=True)
    covariance.check(ti.make(1, 3, 7, 18, C64, modulus="varying"), relative=True)
    covariance.check(ti.make(1, 3, 5, 9, C128, modulus="varying"), center=True)
    snapshots.check(ti.make(1, 5, 3, 33, C64))
    snapshots.check(ti.make(1, 2, 7, 5, C128, modulus="varying"), relative=True)


def one_channel_per_snapshot() -> None:
    inputs = ti.make(2, 3, 7, 31, C64, per_snapshot=True, modulus="varying")
    covariance.check(inputs, relative=True, center=True)
    covariance.check(ti.make(1, 2, 3, 5, C128, per_snapshot=True))
    inputs = ti.make(1, 2, 7, 17, C64, per_snapshot=True, modulus="varying")
    snapshots.check(inputs, relative=True)


def large_sizes() -> None:
    """Several groups and blocks of snapshots, of elements and of antennas."""
    covariance.check(ti.make(1, 16, 16, 50, C128))  # four tiles along an edge of R
    covariance.check(ti.make(1, 20, 3, 40, C64, modulus="tapered"), center=True)  # two
    snapshots.check(ti.make(1, 1, 33, 31, C64))
    covariance.check(ti.make(1, 2, 2, 144, C64))  # five


def beyond_a_program() -> None:
    """M = 70 takes the composite solve."""
    covariance.check(ti.make(2, 3, 70, 20, C64, modulus="varying"), relative=True)
    covariance.check(ti.make(1, 2, 70, 9, C64, per_snapshot=True), center=True)
    snapshots.check(ti.make(1, 2, 70, 9, C128))
    inputs = ti.make(1, 2, 70, 9, C64)
    leaf = inputs.y.requires_grad_()
    riskernels.tikhonov_snapshots(*inputs.tensors).abs().sum().backward()
    assert torch.isfinite(leaf.grad.abs()).all()


def single_sizes() -> None:
    for dtype in (C64, C128):
        covariance.check(ti.make(1, 1, 1, 1, dtype), relative=True)
        covariance.check(ti.make(1, 1, 1, 1, dtype, per_snapshot=True), center=True)
        snapshots.check(ti.make(2, 1, 1, 3, dtype))
    covariance.test_empty_batch(CPU)
    nmse.test_empty_batch_and_deterministic(CPU)


def views() -> None:
    """Transposed, sliced, expanded, conjugated and negated inputs and gradients."""
    base = ti.make(2, 3, 5, 7, C64)
    inputs = ti.Inputs(
        base.y.mT.contiguous().mT.conj(),
        base.h[:1].mT.contiguous().mT.expand(2, 5, 7),
        torch.stack([base.codes, base.codes], -1)[..., 0],
    )
    covariance.check(inputs)
    inputs = ti.Inputs(
        base.y.conj().imag * 1j, base.h[:, None].expand(2, 3, 5, 7), base.codes.conj()
    )
    covariance.check(inputs, relative=True)
    leaves = base.leaves()
    value = riskernels.tikhonov_covariance(*leaves.tensors)
    for weight in (value.detach().mT.conj(), value.detach()[:1].expand(2, 7, 7)):
        got = torch.autograd.grad(value, leaves.tensors, weight, retain_graph=True)
        copy = weight.resolve_conj().clone(memory_format=torch.contiguous_format)
        want = torch.autograd.grad(value, leaves.tensors, copy, retain_graph=True)
        for g, w in zip(got, want, strict=True):
            assert_close(g, w, 1e-6)
    nmse.test_strides(CPU, None)


def only_requested_gradients() -> None:
    def gradients(indices: tuple[int, ...]) -> list[torch.Tensor]:
        inputs = ti.make(1, 2, 3, 5, C128)
        leaves = [inputs.tensors[i].requires_grad_() for i in indices]
        value = riskernels.tikhonov_covariance(*inputs.tensors, relative=True)
        return list(torch.autograd.grad(value.abs().sum(), leaves))

    together = gradients((0, 1, 2))
    for index in range(3):
        assert_close(gradients((index,))[0], together[index], 1e-14)
    nmse.test_one_sided_gradients(CPU)


def hard_values() -> None:
    """Non-finite input, dead channels, tiny loadings, indefinite rounding errors."""
    inputs = ti.make(3, 2, 3, 5, C64)
    for dead in ("y", "h", "codes"):
        dirty = ti.Inputs(*(t.clone() for t in inputs.tensors))
        getattr(dirty, dead)[1].view(-1)[1] = float("nan")
        clean, value = (riskernels.tikhonov_covariance(*x.tensors) for x in (inputs, dirty))
        assert torch.equal(value[[0, 2]], clean[[0, 2]])
        assert not torch.isfinite(torch.view_as_real(value[1])).all()
    for relative in (False, True):
        value = riskernels.tikhonov_covariance(
            1e3 * inputs.y, 0 * inputs.h, inputs.codes, relative=relative
        )
        assert torch.all(value == 0)
    small = ti.Inputs(inputs.y * 1e-17, inputs.h * 1e-16, inputs.codes)
    value = riskernels.tikhonov_snapshots(*small.tensors, 1e-7, relative=True)
    expected = riskernels.tikhonov_snapshots(*inputs.tensors, 1e-7, relative=True)
    assert_close(value * 10, expected, 1e-4)
    # Here alpha is far below the rounding of |Phi|^2. With the floor the error stays as large as
    # the estimate, as in the reference; without it, it is a thousand times larger.
    inputs = ti.make(1, 2, 12, 3, C64)
    steep = ti.Inputs(inputs.y, 1e4 * inputs.h, inputs.codes)
    value = riskernels.tikhonov_snapshots(*steep.tensors, 1e-3)
    assert compare(value, ti.snapshots_oracle(steep.oracle(), 1e-3)).relative < 10


def bands_and_masks() -> None:
    """The NMSE over its sizes, and over scenes that are summed in bands."""
    for n, dtype in ((1, C64), (7, C128), (31, C64), (33, C128), (144, C64)):
        nmse.test_sizes_and_masks(CPU, None, n, dtype)
    nmse.check(*nmse.pair(1, 257, C64, "cpu"), nmse.masks(1, 257, "cpu")[1])
    nmse.test_small_errors_keep_their_digits(CPU)
    nmse.test_masked_elements_may_hold_anything(CPU, None)
    nmse.test_nothing_off_the_diagonal_and_no_eps(CPU)
    nmse.test_non_finite_input_stays_in_its_scene(CPU)


def refusals() -> None:
    """The messages of the reference, and a device that nothing was compiled for."""
    from riskernels.triton_kernels import _launch

    y, h, codes = ti.make(1, 2, 3, 5, C64).tensors
    calls = [
        (lambda: riskernels.tikhonov_covariance(y, h[:, :2], codes), "sizes disagree"),
        (lambda: riskernels.tikhonov_snapshots(y, h, codes, -1.0), "alpha is -1"),
        (lambda: riskernels.hermitian_nmse(h, h), r"expected \[B, N, N\]"),
    ]
    for call, message in calls:
        with pytest.raises(RuntimeError, match=message):
            call()
    _launch.DEVICES.discard("cpu")
    with pytest.raises(RuntimeError, match="run on CUDA tensors, got one on cpu"):
        riskernels.tikhonov_snapshots(y, h, codes)
    _launch.DEVICES.add("cpu")


CASES = {
    f.__name__: f
    for f in (
        shared_channel,
        one_channel_per_snapshot,
        large_sizes,
        beyond_a_program,
        single_sizes,
        views,
        only_requested_gradients,
        hard_values,
        bands_and_masks,
        refusals,
    )
}
GROUPS = [
    ["shared_channel", "one_channel_per_snapshot", "beyond_a_program", "large_sizes"],
    ["single_sizes", "only_requested_gradients", "hard_values"],
    ["views", "bands_and_masks", "refusals"],
]


def main(*cases: str) -> None:
    torch.set_num_threads(1)
    # Uninitialised memory holds NaN, so an output or a workspace that is not written shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with library.use_backend("triton"):
        for case in cases:
            CASES[case]()
            print(case)


@pytest.mark.lasts(40)
@pytest.mark.parametrize("cases", GROUPS, ids=lambda cases: cases[0])
def test_interpreted(cases):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RISKERNELS_")}
    result = subprocess.run(
        [sys.executable, __file__, *cases],
        env={**environment, "TRITON_INTERPRET": "1", "RISKERNELS_REQUIRE": "triton"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == cases


def test_triton_is_imported_by_the_first_call():
    """Importing riskernels stays cheap, and says why Triton is not available where it is not."""
    code = """
import sys, torch, riskernels
status = riskernels.library.backend_status()["triton"]
print("triton" in sys.modules, status.available, status.reason)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RISKERNELS_")}
    for interpret, available in (("1", True), ("0", torch.version.cuda is not None)):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "TRITON_INTERPRET": interpret},
            capture_output=True,
            text=True,
            check=True,
        )
        reason = "" if available else f"torch {torch.__version__} is a build without CUDA"
        assert result.stdout.strip() == f"False {available} {reason}".strip()


def test_every_case_is_run():
    assert sorted(case for group in GROUPS for case in group) == sorted(CASES)


if __name__ == "__main__":
    main(*sys.argv[1:])
