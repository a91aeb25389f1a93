# SPDX-License-Identifier: Apache-2.0
"""The operators: importing this package defines ``torch.ops.riskernels.*``."""

from riskernels.ops.hermitian_nmse import hermitian_nmse
from riskernels.ops.tikhonov_covariance import tikhonov_covariance
from riskernels.ops.tikhonov_snapshots import tikhonov_snapshots

__all__ = ["hermitian_nmse", "tikhonov_covariance", "tikhonov_snapshots"]
