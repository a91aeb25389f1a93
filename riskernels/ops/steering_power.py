# SPDX-License-Identifier: Apache-2.0
"""Operator ``steering_power``: schema, rules and public function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riskernels.ops._calls import caller
from riskernels.ops._registration import (
    define,
    fold_vmap,
    refuse_autograd,
    register_autograd,
    register_fake,
    register_full_precision_autocast,
    register_vmap,
    unfold_vmap,
)
from riskernels.ops._steering_checks import check_steering_power, check_steering_power_backward
from riskernels.reference import steering_power as reference

_CONSTANTS = ("phi", "theta", "r", "positions")


def _check(
    factor: Tensor,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    positions: Tensor,
    wavelength: float,
    *,
    taper: bool = False,
) -> None:
    check_steering_power("steering_power", factor, phi, theta, r, positions, wavelength)


def _check_backward(
    grad: Tensor,
    factor: Tensor,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    positions: Tensor,
    wavelength: float,
    *,
    taper: bool = False,
) -> None:
    check_steering_power_backward(
        "steering_power_backward", grad, factor, phi, theta, r, positions, wavelength
    )


FORWARD = define(
    "steering_power(Tensor factor, Tensor phi, Tensor theta, Tensor r, Tensor positions, "
    "float wavelength, *, bool taper=False) -> Tensor",
    reference.steering_power,
    _check,
)
BACKWARD = define(
    "steering_power_backward(Tensor grad, Tensor factor, Tensor phi, Tensor theta, Tensor r, "
    "Tensor positions, float wavelength, *, bool taper=False) -> Tensor",
    reference.steering_power_backward,
    _check_backward,
)
_call, _call_backward = caller(FORWARD), caller(BACKWARD)


def _fake(factor: Tensor, phi: Tensor, *others: Any, taper: bool = False) -> Tensor:
    _check(factor, phi, *others)
    return factor.new_empty((factor.shape[0], phi.shape[-1]), dtype=factor.dtype.to_real())


def _fake_backward(grad: Tensor, factor: Tensor, *others: Any, taper: bool = False) -> Tensor:
    _check_backward(grad, factor, *others)
    return factor.new_empty(factor.shape)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    for index, name in enumerate(_CONSTANTS, start=1):
        if ctx.needs_input_grad[index]:
            raise RuntimeError(
                f"riskernels::steering_power: {name} requires grad, but it is a constant of this "
                f"operator; pass {name}.detach()"
            )
    *tensors, ctx.wavelength = inputs
    ctx.taper = keyword_only_inputs["taper"]
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradient = _call_backward(grad, *ctx.saved_tensors, ctx.wavelength, taper=ctx.taper)
    return gradient, None, None, None, None, None


def _fold_points(
    size: int, scenes: int, points: tuple[Tensor, ...], dims: tuple[int | None, ...]
) -> list[Tensor]:
    """Coordinates of all mapped scenes [size B, G]; those that all share stay [G]."""
    if all(dim is None and point.dim() == 1 for point, dim in zip(points, dims, strict=True)):
        return list(points)
    folded = []
    for point, dim in zip(points, dims, strict=True):
        mapped = point.expand(size, *point.shape) if dim is None else point.movedim(dim, 0)
        if mapped.dim() == 2:
            mapped = mapped[:, None].expand(size, scenes, mapped.shape[1])
        folded.append(mapped.reshape(size * mapped.shape[1], mapped.shape[2]))
    return folded


def _fold(
    info: Any,
    in_dims: tuple[Any, ...],
    args: tuple[Any, ...],
    lead: int,
    check: Callable[..., None],
) -> list[Any]:
    """Arguments of the folded call; the first ``lead`` are [B, ...]."""
    size = info.batch_size
    if in_dims[lead + 3] is not None:
        raise RuntimeError(
            "riskernels::steering_power: positions is mapped by vmap, but all scenes share one "
            "array; call the operator once per array"
        )
    if size:
        # Folding would make one shape of [G] and [B, G], which every single call refuses.
        check(*(a if d is None else a.select(d, 0) for a, d in zip(args, in_dims, strict=True)))
    leading = [fold_vmap(size, args[i], in_dims[i]) for i in range(lead)]
    scenes = leading[-1].shape[0] // size if size else 0
    points = _fold_points(size, scenes, args[lead : lead + 3], in_dims[lead : lead + 3])
    return [*leading, *points, *args[lead + 3 :]]


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any, taper: bool = False) -> tuple[Any, int]:
    folded = _fold(info, in_dims, args, 1, _check)
    output = torch.ops.riskernels.steering_power(*folded, taper=taper)
    return unfold_vmap(info.batch_size, output), 0


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], *args: Any, taper: bool = False
) -> tuple[Any, int]:
    folded = _fold(info, in_dims, args, 2, _check_backward)
    output = torch.ops.riskernels.steering_power_backward(*folded, taper=taper)
    return unfold_vmap(info.batch_size, output), 0


register_fake(FORWARD, _fake)
register_fake(BACKWARD, _fake_backward)
register_autograd(FORWARD, _backward, _setup_context)
refuse_autograd(BACKWARD)
register_vmap(FORWARD, _vmap)
register_vmap(BACKWARD, _vmap_backward)
register_full_precision_autocast(FORWARD)
register_full_precision_autocast(BACKWARD)


def steering_power(
    factor: Tensor,
    phi: Tensor,
    theta: Tensor,
    r: Tensor,
    positions: Tensor,
    wavelength: float,
    *,
    taper: bool = False,
) -> Tensor:
    r"""Power of the columns of a factor along the steering vectors of many points.

    .. math:: P_{bg} = \sum_j |a(g)^H x_{bj}|^2, \qquad
        a_n(g) = \frac{1}{\sqrt N} e^{j k_0 (r - R_n)}, \qquad
        R_n^2 = r^2 - 2 r \, u \cdot p_n + |p_n|^2

    with :math:`u = (\cos\theta \cos\phi, \cos\theta \sin\phi, \sin\theta)` and
    :math:`k_0 = 2 \pi / \lambda`: exact spherical waves, made where they are used and never stored.
    Back-projection, MUSIC and MVDR spectra are functions of it.

    Args:
        factor: X [B, N, k], complex64 or complex128.
        phi: azimuths in radians, [G] for points that all scenes share or [B, G]; float32 or
            float64, whatever the precision of ``factor``.
        theta: elevations in radians, of the same shape and dtype.
        r: ranges in metres, of the same shape and dtype; inf gives the plane wave.
        positions: elements :math:`p_n` in metres, [N, 3], float32 or float64.
        wavelength: :math:`\lambda` in metres, > 0.
        taper: scale a_n by r / R_n (spherical spreading).

    Returns:
        P [B, G] real, float32 for complex64 and float64 for complex128, in the units of
        :math:`|X|^2`; :math:`|x|^2` at most for one column and no taper. Where r is not > 0, or a
        coordinate is not finite, P is NaN.

    Gradients reach ``factor`` alone (PyTorch's convention, dL/dRe + i dL/dIm):
    :math:`\partial L / \partial X = 2 \sum_g \bar g_g \, a(g) \, a(g)^H X`. Coordinates or
    positions that require grad are refused. Directions and 1 / r are computed in float64; for
    complex64 the path difference follows in float32, so that a phase is wrong by about
    :math:`\epsilon k_0 |p|`, 1e-6 at an aperture of a few wavelengths. Angles up to about 1e6 rad
    keep their accuracy. With ``taper``, r / R_n is wrong by about :math:`\epsilon (r / R_n)^2`: a
    point on an element has no meaningful value. Any strides and stride-0
    batches are read in place; conjugated views are resolved by a copy. The result is bitwise the
    same on every run. Non-finite values in one scene's factor stay in its row.

    Cost: 8 N k FLOPs a point and scene, and about 60 N a point for its steering vector, which the
    scenes share where the points are [G]; backward twice the products, 16 N k. Memory O(outputs);
    backward up to 64 gradients more where scenes are fewer than threads (CUDA and Triton: 16
    gradients or 128 MiB, whichever is more).

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, wavelength not > 0, coordinates
            that require grad.

    Example:
        >>> y, z = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="xy")
        >>> positions = 0.15 * torch.stack([0 * y, y - 5.5, z - 5.5], -1).reshape(-1, 3)
        >>> source = torch.tensor([0.3]), torch.tensor([-0.2]), torch.tensor([3.0])
        >>> distance = (torch.tensor([[2.8089, 0.8689, -0.5960]]) - positions).norm(dim=1)
        >>> x = torch.polar(torch.full((144,), 1 / 12), 2 * torch.pi * (3.0 - distance) / 0.3)
        >>> steering_power(x[None, :, None], *source, positions, 0.3)
        tensor([[1.0000]])
    """
    result: Tensor = _call(
        factor,
        phi,
        theta,
        r,
        positions,
        wavelength,
        taper=taper,
    )
    return result
