# SPDX-License-Identifier: Apache-2.0
"""Every operator once at small awkward shapes, for compute-sanitizer:

    compute-sanitizer --tool memcheck python tests/gpu/small_cases.py cuda
    compute-sanitizer --tool racecheck python tests/gpu/small_cases.py triton

The sizes leave lanes, tiles and rows half used; each call is compared with the reference, so that
a run in which nothing was computed does not pass.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from operator_cases import BOTH, DOUBLE, OperatorCase, forward_and_backward, weight_of

import riskernels
from riskernels.testing import assert_close, tolerance

SHAPES = [(1, 1, 1, 1), (2, 3, 7, 31), (2, 5, 16, 33), (1, 2, 33, 20), (2, 16, 16, 144)]
CASES = [
    OperatorCase(op, shape, dtype, options, per_snapshot, modulus)
    for op, options in (("tikhonov_covariance", BOTH), ("tikhonov_snapshots", {"relative": True}))
    for shape in SHAPES
    for dtype, per_snapshot, modulus in (
        (torch.complex64, False, "unit"),
        (torch.complex64, False, "varying"),
        (DOUBLE, True, "unit"),
    )
]
CASES += [
    OperatorCase("hermitian_nmse", shape, dtype, masked=masked)
    for shape in SHAPES
    for dtype, masked in ((torch.complex64, False), (torch.complex64, True), (DOUBLE, True))
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=("cuda", "triton", "cpu", "reference"))
    backend = parser.parse_args().backend
    device = "cuda" if backend in ("cuda", "triton") else "cpu"
    for case in CASES:
        inputs = case.inputs(device=device)
        with riskernels.use_backend(backend):
            got = forward_and_backward(case.function(device), inputs)
        wide = [value.cpu().to(torch.complex128) for value in inputs]
        weight = weight_of(got[0]).cpu()
        weight = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
        with riskernels.use_backend("reference"):
            want = forward_and_backward(case.function("cpu"), wide, weight)
        if not (case.options.get("center") and case.shape[1] == 1):
            for g, w in zip(got, want, strict=True):
                assert_close(g, w, tolerance(case.dtype, 1e4), str(case))
    print(f"{len(CASES)} cases on {backend}: correct")
    return 0


if __name__ == "__main__":
    sys.exit(main())
