# SPDX-License-Identifier: Apache-2.0
"""Every operator, forward and backward, from two Python threads at once, held to the reference.

The cases are those of simd_outputs.py, and larger ones that one scene divides among threads.
"""

from __future__ import annotations

import threading

import simd_outputs
import torch
from torch import Tensor

from riskernels import library
from riskernels.testing import assert_close, tolerance

LARGE = (16, 257)
"""M and N from which on a scene is divided, where there are fewer scenes than threads. Both
sanitizers run four."""
CALLERS = 2


def main() -> None:
    simd_outputs.SIZES = (*simd_outputs.SIZES, LARGE)
    with simd_outputs.Recorder() as recorder:
        simd_outputs.outputs()
    missing = set(library.operators()) - recorder.ran
    assert not missing, f"simd_outputs.py has no case of {', '.join(sorted(missing))}"

    found: list[dict[str, Tensor]] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(simd_outputs.outputs())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    with library.use_backend("reference"):
        exact = simd_outputs.outputs(torch.complex128)
    for name, value in found[0].items():
        dtype = torch.complex64 if "complex64" in name else torch.complex128
        # The tests of the operators are the ones that are strict.
        assert_close(value, exact[name], tolerance(dtype, 16.0), name)
        for other in found[1:]:
            assert torch.equal(value, other[name]), f"{name}: differs between two threads"
    print(f"workload: {len(recorder.ran)} operators, {len(exact)} results from {CALLERS} threads")


if __name__ == "__main__":
    main()
