# SPDX-License-Identifier: Apache-2.0
"""The operators: importing this package defines ``torch.ops.riskernels.*``."""

from riskernels.ops.blend_covariance import blend_covariance
from riskernels.ops.factored_blend import factored_blend
from riskernels.ops.factored_leakage import factored_leakage
from riskernels.ops.factored_nmse import factored_nmse
from riskernels.ops.factored_spectrum import factored_spectrum
from riskernels.ops.hermitian_nmse import hermitian_nmse
from riskernels.ops.steering_power import steering_power
from riskernels.ops.subspace_leakage import subspace_leakage
from riskernels.ops.tikhonov_covariance import tikhonov_covariance
from riskernels.ops.tikhonov_snapshots import tikhonov_snapshots

__all__ = [
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
]
