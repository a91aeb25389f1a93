# SPDX-License-Identifier: Apache-2.0
"""The comparison helper notices what it is there to notice."""

from __future__ import annotations

import pytest
import torch

from riskernels.testing import assert_close, compare, tolerance


def test_exact_and_scaled_and_turned():
    x = torch.randn(5, 5, dtype=torch.complex64)
    assert compare(x, x).relative == 0
    scaled = compare(1.1 * x, x)
    assert abs(scaled.bias - 0.1) < 1e-6 and abs(scaled.cosine - 1) < 1e-6
    turned = compare(1j * x, x)
    assert abs(turned.bias) < 1e-6 and abs(turned.cosine) < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_fails(bad):
    x = torch.ones(3)
    y = torch.tensor([1.0, bad, 1.0])
    with pytest.raises(AssertionError, match="finite False"):
        assert_close(y, x, 1e9)
    with pytest.raises(AssertionError):
        assert_close(x, y, 1e9)


def test_tolerance_is_a_bound():
    x = torch.ones(4, dtype=torch.float64)
    assert_close(x * (1 + 1e-6), x, 2e-6)
    with pytest.raises(AssertionError, match=r"relative error 1\.0"):
        assert_close(x * (1 + 1e-6), x, 5e-7)
    with pytest.raises(AssertionError, match="shape"):
        assert_close(x[:2], x, 1)
    assert tolerance(torch.complex64, 10) > tolerance(torch.complex64) > tolerance(torch.complex128)


def test_zero_reference_uses_the_absolute_norm():
    zero = torch.zeros(3)
    assert_close(zero, zero, 0.0)
    with pytest.raises(AssertionError):
        assert_close(zero + 1e-3, zero, 1e-4)
