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
from covariance_cases import BLEND, OPERATORS, CovarianceCase
from operator_cases import (
    BOTH,
    DOUBLE,
    OperatorCase,
    forward_and_backward,
    in_precision,
    weight_of,
)

import riskernels
from riskernels.testing import assert_close, tolerance

SHAPES = [(1, 1, 1, 1), (2, 3, 7, 31), (2, 5, 16, 33), (1, 2, 33, 20), (2, 16, 16, 144)]
FACTOR_SHAPES = [(1, 1, 1, 1), (3, 7, 3, 2), (2, 33, 21, 5), (2, 20, 26, 7), (2, 144, 21, 5)]
CASES: list[OperatorCase | CovarianceCase] = [
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
CASES += [
    CovarianceCase(op, shape, dtype, BLEND if "blend" in op else {}, op == "factored_nmse")
    for op in OPERATORS
    for shape in FACTOR_SHAPES
    for dtype in (torch.complex64, DOUBLE)
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
        wide = [in_precision(value.cpu(), torch.complex128) for value in inputs]
        weight = in_precision(weight_of(got[0]).cpu(), torch.complex128)
        with riskernels.use_backend("reference"):
            want = forward_and_backward(case.function("cpu"), wide, weight)
        if not (case.options.get("center") and case.shape[1] == 1):
            for g, w in zip(got, want, strict=True):
                assert_close(g, w, tolerance(case.dtype, 1e4), str(case))
    print(f"{len(CASES)} cases on {backend}: correct")
    return 0


if __name__ == "__main__":
    sys.exit(main())
