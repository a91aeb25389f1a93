# SPDX-License-Identifier: Apache-2.0
"""Eager PyTorch of ``steering_power`` at its best: one matrix product for all scenes.

Where the points do not change from call to call, the steering vectors [G, N] can be kept: that is
``torch_eager_kept``, which holds 8GN bytes for it. ``torch_eager`` makes them in each call, with
the path differences in float64, since the phases reach tens of radians.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.operators import steering_power
from bench.operators._calls import torch_call
from bench.registry import Case, Inputs, Peer


def _serves(case: Case) -> bool:
    return case.operator == steering_power.NAME


def _prepare(case: Case, inputs: Inputs):
    phi, theta, r, positions = steering_power.grid(case, inputs["factor"].device)
    scale, squared = case.sizes["N"] ** -0.5, positions.square().sum(-1)

    def power(factor: Tensor) -> Tensor:
        level = torch.cos(theta)
        u = torch.stack([level * torch.cos(phi), level * torch.sin(phi), torch.sin(theta)], -1)
        q = r.reciprocal()[:, None]
        doubled = 2 * (u @ positions.mT) - q * squared
        turns = doubled / (steering_power.WAVELENGTH * (1 + torch.sqrt(1 - q * doubled)))
        phase = (2 * torch.pi * (turns - turns.round())).float()
        vectors = torch.polar(torch.full_like(phase, scale), phase)
        return steering_power.power_along(vectors, factor)

    return torch_call(power, case, inputs, steering_power.ARGUMENTS)


def _prepare_kept(case: Case, inputs: Inputs):
    factor = inputs["factor"]
    vectors = steering_power.steering(case, factor.device).to(factor.dtype)
    return torch_call(
        lambda x: steering_power.power_along(vectors, x), case, inputs, steering_power.ARGUMENTS
    )


PEERS = (
    Peer("torch_eager", "PyTorch eager", _serves, _prepare),
    Peer("torch_eager_kept", "PyTorch eager, steering vectors kept", _serves, _prepare_kept),
)
