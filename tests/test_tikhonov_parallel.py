# SPDX-License-Identifier: Apache-2.0
"""The covariance is bitwise the same for any number of threads, also where the tiles of a scene are
shared out among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import riskernels


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(scenes: int, elements: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(scenes + elements)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    return normal(scenes, 16, 8), normal(scenes, 8, elements), normal(scenes, 16, elements)


# 144 elements: whole tiles; 149: ragged ones; 31: too little work to share.
@pytest.mark.parametrize("elements", [31, 144, 149])
@pytest.mark.parametrize("scenes", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("options", [{}, {"center": True, "relative": True}], ids=str)
def test_threads_do_not_change_a_bit(
    threads: None, elements: int, scenes: int, dtype: torch.dtype, options: dict[str, bool]
) -> None:
    y, h, codes = inputs(scenes, elements, dtype)
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(riskernels.tikhonov_covariance(y, h, codes, **options))
    for result in results[1:]:
        assert torch.equal(result, results[0])
    with riskernels.use_backend("reference"):
        expected = riskernels.tikhonov_covariance(y, h, codes, **options)
    scale = expected.abs().max()
    tolerance = 1e-3 if dtype == torch.complex64 else 1e-9
    assert (results[0] - expected).abs().max() <= tolerance * scale
    assert torch.equal(results[0], results[0].mH)
    assert not results[0].diagonal(dim1=-2, dim2=-1).imag.any()


def test_a_streamed_output_is_the_output_of_its_scenes() -> None:
    """48 scenes are written past the caches, one is not."""
    y, h, codes = inputs(48, 144, torch.complex64)
    together = riskernels.tikhonov_covariance(y, h, codes)
    for b in (0, 17, 47):
        alone = riskernels.tikhonov_covariance(y[b : b + 1], h[b : b + 1], codes[b : b + 1])
        assert torch.equal(together[b], alone[0])
