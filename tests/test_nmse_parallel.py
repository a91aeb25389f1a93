# SPDX-License-Identifier: Apache-2.0
"""hermitian_nmse splits large scenes into blocks of rows: the same bits whoever sums them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from riskernels import library

pytestmark = pytest.mark.skipif(
    not library.backend_status()["cpu"].available, reason="the CPU library is not built"
)
SCENES = 3
SIZES = (144, 600, 1024)
"""One block a scene, blocks of which the last is shorter, and blocks of equal size."""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _matrices(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    target = torch.randn(SCENES, n, n, dtype=dtype, generator=generator)
    return target + 0.1 * target.roll(1, dims=1), target


def _run(estimate: Tensor, target: Tensor, mask: Tensor | None) -> list[Tensor]:
    """NMSE, its sums and both gradients."""
    nmse, sums = torch.ops.riskernels.hermitian_nmse_forward(
        estimate, target, mask, 0.2, 0.8, 1e-12
    )
    upstream = torch.linspace(0.5, 1.5, SCENES, dtype=nmse.dtype)[: len(nmse)]
    gradients = torch.ops.riskernels.hermitian_nmse_backward(
        upstream, estimate, target, sums, mask, 0.2, 0.8, 1e-12
    )
    return [nmse, sums, *gradients]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_same_bits_for_any_number_of_threads_and_scenes(
    n: int, dtype: torch.dtype, masked: bool
) -> None:
    estimate, target = _matrices(n, dtype)
    mask = torch.arange(n) % 7 != 3 if masked else None
    torch.set_num_threads(1)
    expected = _run(estimate, target, mask)
    for count in (2, 4):
        torch.set_num_threads(count)
        for got, want in zip(_run(estimate, target, mask), expected, strict=True):
            assert torch.equal(got, want)
    for got, want in zip(_run(estimate[:1], target[:1], mask), expected, strict=True):
        assert torch.equal(got, want[:1])


@pytest.mark.parametrize("n", SIZES)
def test_blocks_agree_with_the_definition(n: int) -> None:
    estimate, target = _matrices(n, torch.complex64)
    torch.set_num_threads(4)
    nmse, sums, *gradients = _run(estimate.mT, target.mT, None)
    difference = (estimate - target).to(torch.complex128)
    energies = []
    for matrix in (difference, target.to(torch.complex128)):
        diagonal = matrix.diagonal(dim1=1, dim2=2).abs().square().sum(1)
        energies += [diagonal, matrix.abs().square().sum((1, 2)) - diagonal]
    exact = torch.stack(energies, 1)
    torch.testing.assert_close(sums.double(), exact, rtol=2e-7, atol=0)
    parts = exact[:, :2] / exact[:, 2:]
    torch.testing.assert_close(
        nmse.double(), parts @ exact.new_tensor([0.2, 0.8]), rtol=3e-7, atol=0
    )
    weights = torch.full((n, n), 0.8, dtype=torch.float64).fill_diagonal_(0.2)
    upstream = torch.linspace(0.5, 1.5, SCENES, dtype=torch.float64)
    diagonal = torch.eye(n, dtype=torch.bool)
    power = torch.where(diagonal, exact[:, 2, None, None], exact[:, 3, None, None])
    scale = 2 * upstream[:, None, None] * weights / power
    assert torch.linalg.norm(gradients[0].mT - scale * difference) < 3e-7 * torch.linalg.norm(
        scale * difference
    )
