# SPDX-License-Identifier: Apache-2.0
"""Bad input is refused by name, with the same words by every backend."""

from __future__ import annotations

import pytest
import torch

import riskernels
from riskernels import library

C64, F32 = torch.complex64, torch.float32


def tikhonov(b=2, snapshots=3, m=4, n=6, dtype=C64):
    return {
        "y": torch.randn(b, snapshots, m, dtype=dtype),
        "h": torch.randn(b, m, n, dtype=dtype),
        "codes": torch.randn(b, snapshots, n, dtype=dtype),
        "alpha": 1e-3,
    }


TIKHONOV_CASES = [
    ({"y": torch.zeros(3, 4, dtype=C64)}, r"y has shape \[3, 4\], expected \[B, L, M\]"),
    ({"h": torch.zeros(4, 6, dtype=C64)}, r"h has shape \[4, 6\], expected \[B, M, N\] or"),
    ({"codes": torch.zeros(3, 6, dtype=C64)}, r"codes has shape \[3, 6\], expected \[B, L, N\]"),
    ({"h": torch.zeros(2, 5, 6, dtype=C64)}, r"sizes disagree: y \[2, 3, 4\], h \[2, 5, 6\]"),
    ({"h": torch.zeros(1, 4, 6, dtype=C64)}, "sizes disagree"),
    ({"h": torch.zeros(2, 2, 4, 6, dtype=C64)}, "sizes disagree"),
    ({"codes": torch.zeros(2, 4, 6, dtype=C64)}, "sizes disagree"),
    ({"codes": torch.zeros(2, 3, 7, dtype=C64)}, "sizes disagree"),
    ({"y": torch.zeros(2, 3, 4, dtype=F32)}, "y has dtype torch.float32, expected complex64 or"),
    ({"h": torch.zeros(2, 4, 6, dtype=torch.complex128)}, "h has dtype torch.complex128, expected"),
    ({"codes": torch.zeros(2, 3, 6, dtype=torch.int64)}, "codes has dtype torch.int64, expected"),
    ({"alpha": 0.0}, "alpha is 0.*, expected a finite number > 0"),
    ({"alpha": -1.0}, "alpha is -1.*, expected a finite number > 0"),
    ({"alpha": float("nan")}, "alpha is nan"),
    ({"alpha": float("inf")}, "alpha is inf"),
    ({"alpha": 1e-60}, "alpha is 1e-60"),
    ({"alpha": 1e39}, r"alpha is 1e\+39"),
]


@pytest.mark.parametrize("op", ["tikhonov_covariance", "tikhonov_snapshots"])
@pytest.mark.parametrize("change,message", TIKHONOV_CASES)
def test_tikhonov(backend, op, change, message):
    arguments = {
        k: v.to(backend.device) if isinstance(v, torch.Tensor) else v
        for k, v in {**tikhonov(), **change}.items()
    }
    with pytest.raises(RuntimeError, match=f"^riskernels::{op}: .*{message}"):
        getattr(riskernels, op)(**arguments)


@pytest.mark.parametrize("size", ["snapshots", "m", "n"])
def test_empty_dimensions(backend, size):
    arguments = {
        k: v.to(backend.device) if isinstance(v, torch.Tensor) else v
        for k, v in tikhonov(**{size: 0}).items()
    }
    with pytest.raises(RuntimeError, match="L, M and N must be at least 1"):
        riskernels.tikhonov_covariance(**arguments)


@pytest.mark.parametrize("name", ["y", "h", "codes"])
def test_mixed_devices(name):
    arguments = tikhonov()
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(RuntimeError, match=r"riskernels::tikhonov_covariance: \w+ is on"):
        riskernels.tikhonov_covariance(**arguments)


def matrix(*shape, dtype=C64):
    return torch.randn(*shape).to(dtype)


NMSE_CASES = [
    ({"estimate": matrix(4, 4)}, r"estimate has shape \[4, 4\], expected \[B, N, N\]"),
    ({"estimate": matrix(2, 4, 5)}, r"estimate has shape \[2, 4, 5\]"),
    ({"target": matrix(2, 5, 5)}, r"target has shape \[2, 5, 5\], expected \[2, 4, 4\]"),
    ({"target": matrix(1, 4, 4)}, r"target has shape \[1, 4, 4\]"),
    ({"estimate": matrix(2, 4, 4, dtype=F32)}, "estimate has dtype torch.float32"),
    ({"target": matrix(2, 4, 4, dtype=torch.complex128)}, "target has dtype torch.complex128"),
    ({"lam_diag": -0.1}, "lam_diag is -0.1"),
    ({"lam_off": float("nan")}, "lam_off is nan"),
    ({"eps": -1e-9}, "eps is -1e-09"),
    (
        {"lam_diag": 0.0, "lam_off": 0.0},
        "lam_diag . lam_off is 0, expected at least one weight > 0",
    ),
    ({"element_mask": torch.ones(4)}, "element_mask has dtype torch.float32, expected torch.bool"),
    ({"element_mask": torch.ones(5, dtype=torch.bool)}, r"element_mask has shape \[5\]"),
    ({"element_mask": torch.ones(3, 4, dtype=torch.bool)}, r"element_mask has shape \[3, 4\]"),
]


@pytest.mark.parametrize("change,message", NMSE_CASES)
def test_nmse(backend, change, message):
    arguments = {"estimate": matrix(2, 4, 4), "target": matrix(2, 4, 4), **change}
    arguments = {
        k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=f"^riskernels::hermitian_nmse: {message}"):
        riskernels.hermitian_nmse(**arguments)


def test_backward_operators_check_the_gradient(backend):
    y, h, codes = (tikhonov()[k].to(backend.device) for k in ("y", "h", "codes"))
    ops = torch.ops.riskernels
    with pytest.raises(RuntimeError, match=r"grad has shape \[2, 6\], expected \[2, 6, 6\]"):
        ops.tikhonov_covariance_backward(y[:, 0, :1].expand(2, 6), y, h, codes, 1e-3,
                                         relative=False, center=False)  # fmt: skip
    with pytest.raises(RuntimeError, match=r"grad has shape"):
        ops.tikhonov_snapshots_backward(y, y, h, codes, 1e-3, relative=False)
    e = matrix(2, 4, 4).to(backend.device)
    sums = torch.zeros(2, 4, device=backend.device)
    with pytest.raises(
        RuntimeError, match=r"grad has dtype torch\.float64, expected torch\.float32"
    ):
        ops.hermitian_nmse_backward(sums[:, 0].double(), e, e, sums, None, 0.2, 0.8, 1e-12)
    with pytest.raises(RuntimeError, match=r"sums has shape \[2\], expected \[2, 4\]"):
        ops.hermitian_nmse_backward(sums[:, 0], e, e, sums[:, 0], None, 0.2, 0.8, 1e-12)


def test_wrong_types_are_refused():
    arguments = tikhonov()
    with pytest.raises((RuntimeError, TypeError)):
        riskernels.tikhonov_covariance(arguments["y"], arguments["h"], "codes")
    with pytest.raises((RuntimeError, TypeError)):
        riskernels.tikhonov_covariance(**{**arguments, "alpha": "0.1"})


def test_use_backend_errors():
    with pytest.raises(ValueError, match="unknown backend 'gpu', expected one of"):
        riskernels.use_backend("gpu").__enter__()
    for name, status in library.backend_status().items():
        if not status.available:
            with pytest.raises(RuntimeError, match=f"backend '{name}' is not available: "):
                riskernels.use_backend(name).__enter__()
