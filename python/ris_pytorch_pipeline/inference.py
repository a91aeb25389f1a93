# SPDX-License-Identifier: Apache-2.0
"""What one pass of the network gives: the prediction, and the covariances that follow from it.

The covariances are there as N x N matrices and as factors, and each is made when it is first asked
for. A training step in the factored form never asks for a matrix; the estimators of
:mod:`.localize` ask for ``r_blend`` whatever form the training had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from .configs import CovarianceConfig, SystemConfig
from .covariance import (
    blend_factor,
    effective_covariance,
    predicted_covariance,
    sample_covariance,
)

if TYPE_CHECKING:
    from .model import Prediction
    from .simulate import Scenes

T = TypeVar("T")


def covariance_form(
    wanted: Literal["auto", "dense", "factored"], system: SystemConfig
) -> Literal["dense", "factored"]:
    """The form in which a loss computes; ``auto`` is factored up to K_max + L = N / 2.

    The factored terms cost O(N (K_max + L)^2) in Gram matrices, which are summed in float64 to
    keep small errors; the dense ones O(N^2 K_max) in products and passes over N x N matrices. On
    the CPU the two take the same time near K_max + L = N / 2 (measured at N = 36 to 144); with
    fewer columns the factored form is faster, several times at the default sizes.

    >>> covariance_form("auto", SystemConfig()), covariance_form("auto", SystemConfig(n_h=3))
    ('factored', 'dense')
    """
    if wanted != "auto":
        return wanted
    columns = system.max_sources + system.snapshots
    return "factored" if 2 * columns <= system.elements else "dense"


@dataclass(frozen=True, eq=False)
class Inference:
    """One pass from scenes to the covariance that is used."""

    prediction: Prediction
    scenes: Scenes
    """What the network saw."""
    config: CovarianceConfig
    """How the two covariances are made and blended."""

    def _made(self, make: Callable[[], T]) -> T:
        # A covariance is kept from its first use on: gradients must not depend on who asks first.
        with torch.set_grad_enabled(self.prediction.factor.requires_grad):
            return make()

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """``(X, rho)``, [B, N, K_max + L] and [B], with ``R_blend = X X^H + rho I``."""
        prediction = self.prediction
        return self._made(
            lambda: blend_factor(prediction.factor, prediction.snapshots, self.config)
        )

    @cached_property
    def r_pred(self) -> Tensor:
        """``R_pred = A A^H`` [B, N, N]."""
        return self._made(lambda: predicted_covariance(self.prediction.factor))

    @cached_property
    def r_samp(self) -> Tensor:
        """``R_samp`` [B, N, N], from the scenes alone."""
        return self._made(lambda: sample_covariance(self.scenes, self.config))

    @cached_property
    def r_blend(self) -> Tensor:
        """``R_blend`` [B, N, N], the effective covariance."""
        return self._made(lambda: effective_covariance(self.r_pred, self.r_samp, self.config))
