# SPDX-License-Identifier: Apache-2.0
"""Covariance mathematics of RIS localization as fused, differentiable PyTorch operators.

Importing this package defines ``torch.ops.riskernels.*`` and loads the native libraries.
"""

from riskernels import library

library.check_torch_version()

from riskernels.library import use_backend  # noqa: E402
from riskernels.ops import (  # noqa: E402
    blend_covariance,
    factored_blend,
    factored_leakage,
    factored_nmse,
    factored_spectrum,
    hermitian_nmse,
    steering_power,
    subspace_leakage,
    tikhonov_covariance,
    tikhonov_snapshots,
)

library.load()

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "blend_covariance",
    "factored_blend",
    "factored_leakage",
    "factored_nmse",
    "factored_spectrum",
    "hermitian_nmse",
    "steering_power",
    "subspace_leakage",
    "tikhonov_covariance",
    "tikhonov_snapshots",
    "use_backend",
]
