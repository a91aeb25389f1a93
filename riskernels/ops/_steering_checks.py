# SPDX-License-Identifier: Apache-2.0
"""Input checks of steering_power; csrc/common/steering_inputs.hpp makes the same ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riskernels.ops._checks import _fail, _shape, check_grad_real
from riskernels.ops._factored_checks import check_factor


def _check_real(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.dtype not in (torch.float32, torch.float64):
        _fail(op, f"{name} has dtype {tensor.dtype}, expected torch.float32 or torch.float64")
    if tensor.device != like.device:
        _fail(op, f"{name} is on {tensor.device}, expected {like.device} as the first argument")


def check_steering_power(
    op: str,
    factor: Tensor,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    positions: Tensor,
    wavelength: float,
) -> None:
    """factor [B, N, k], phi, theta and r [G] or [B, G] of one dtype, positions [N, 3]."""
    check_factor(op, "factor", factor, "k")
    b, n = factor.shape[:2]
    for name, tensor in (("phi", phi), ("theta", theta), ("r", r)):
        _check_real(op, name, tensor, factor)
        if tensor.dtype != phi.dtype:
            _fail(op, f"{name} has dtype {tensor.dtype}, expected {phi.dtype} as phi")
        if tensor.dim() not in (1, 2) or (tensor.dim() == 2 and tensor.shape[0] != b):
            _fail(op, f"{name} has shape {_shape(tensor)}, expected [G] or [{b}, G]")
        if tensor.shape != phi.shape:
            _fail(op, f"{name} has shape {_shape(tensor)}, expected {_shape(phi)} as phi")
    _check_real(op, "positions", positions, factor)
    if tuple(positions.shape) != (n, 3):
        _fail(op, f"positions has shape {_shape(positions)}, expected [{n}, 3]")
    if not (math.isfinite(wavelength) and wavelength > 0):
        _fail(op, f"wavelength is {wavelength:g}, expected a finite number > 0 (in metres)")


def check_steering_power_backward(
    op: str,
    grad: Tensor,
    factor: Tensor,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    positions: Tensor,
    wavelength: float,
) -> None:
    """grad [B, G] real in the precision of factor, and the inputs of the forward."""
    check_steering_power(op, factor, phi, theta, r, positions, wavelength)
    check_grad_real(op, "grad", grad, (factor.shape[0], phi.shape[-1]), factor)
