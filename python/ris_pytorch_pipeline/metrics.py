# SPDX-License-Identifier: Apache-2.0
"""Errors of estimated positions under the best assignment to the true ones, and of covariances.

Distances that count misses and false alarms (GOSPA, OSPA, F1) are in :mod:`.set_metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import riskernels

from .geometry import to_spherical, wrap_angle
from .set_metrics import distances


@dataclass(frozen=True)
class PositionMatch:
    """Assignment of estimates to truths of one scene, by increasing estimate."""

    estimate: npt.NDArray[np.int64]
    """Rows of the matched estimates."""
    truth: npt.NDArray[np.int64]
    """Rows of their truths."""
    error: npt.NDArray[np.float64]
    """Distances of the pairs in metres."""
    missed: int
    """Truths without an estimate."""
    extra: int
    """Estimates without a truth."""


def match_positions(estimate: npt.ArrayLike, truth: npt.ArrayLike) -> PositionMatch:
    """Match estimates [J, 3] to truths [K, 3] (metres) at the least sum of distances.

    min(J, K) pairs are made, however far apart; no distance is cut off.

    >>> match = match_positions([[0, 0, 2.5], [1, 0, 0]], [[1, 0, 0], [0, 0, 2]])
    >>> match.truth.tolist(), match.error.tolist(), match.missed
    ([1, 0], [0.5, 0.0], 0)
    """
    distance = distances("match_positions", estimate, truth)
    rows, columns = linear_sum_assignment(distance)
    return PositionMatch(
        rows,
        columns,
        distance[rows, columns],
        missed=distance.shape[1] - len(rows),
        extra=distance.shape[0] - len(rows),
    )


def coordinate_errors(
    estimate: npt.ArrayLike, truth: npt.ArrayLike, match: PositionMatch
) -> npt.NDArray[np.float64]:
    """Estimate less truth of every pair of ``match`` in azimuth, elevation and range, [pairs, 3].

    Positions are [J, 3] and [K, 3] in metres, as for :func:`match_positions`. Radians and metres;
    azimuth errors are wrapped to [-pi, pi].

    >>> found, known = [[-1.0, -0.01, 0.0]], [[-1.0, 0.01, 0.0]]
    >>> coordinate_errors(found, known, match_positions(found, known)).round(4).tolist()
    [[0.02, 0.0, 0.0]]
    """
    found, known = (
        torch.stack(to_spherical(torch.as_tensor(places.reshape(-1, 3)[rows])), dim=-1)
        for places, rows in (
            (np.asarray(estimate, np.float64), match.estimate),
            (np.asarray(truth, np.float64), match.truth),
        )
    )
    error = found - known
    error[:, 0] = wrap_angle(error[:, 0])
    return error.numpy()


@dataclass(frozen=True)
class PositionSummary:
    """Position errors over many scenes."""

    scenes: int
    sources: int
    matched: int
    missed: int
    extra: int
    median_error: float
    """Metres, over matched pairs; NaN when there is none."""
    rms_error: float

    def __str__(self) -> str:
        return (
            f"{self.scenes} scenes, {self.sources} sources: {self.matched} matched, "
            f"{self.missed} missed, {self.extra} extra; "
            f"median error {self.median_error:.3f} m, RMS {self.rms_error:.3f} m"
        )


def summarise_matches(matches: Iterable[PositionMatch]) -> PositionSummary:
    """Pool the matches of many scenes."""
    every = list(matches)
    errors = np.concatenate([match.error for match in every]) if every else np.empty(0)
    missed = sum(match.missed for match in every)
    return PositionSummary(
        scenes=len(every),
        sources=len(errors) + missed,
        matched=len(errors),
        missed=missed,
        extra=sum(match.extra for match in every),
        median_error=float(np.median(errors)) if errors.size else float("nan"),
        rms_error=float(np.sqrt(np.mean(errors**2))) if errors.size else float("nan"),
    )


def subspace_overlap(estimate: Tensor, steering: Tensor, num_sources: Tensor) -> Tensor:
    """Share [B] of the true signal subspace in the span of the K leading eigenvectors.

        overlap = tr(U_K U_K^H P) / K,    P the projector onto the span of the K steering vectors

    1 where the spans are the same, K / N in the mean for a random covariance: the mean squared
    cosine of the principal angles. NaN for a scene without sources.

    Args:
        estimate: covariances [B, N, N], Hermitian.
        steering: A of :func:`~ris_pytorch_pipeline.simulate.true_steering`, [B, N, K_max] with zero
            columns in the padding.
        num_sources: K, [B], at most K_max.

    Computed in complex128.

    >>> a = torch.eye(3, dtype=torch.complex64)[None, :, :2]
    >>> subspace_overlap(a @ a.mH, a, torch.tensor([2]))
    tensor([1.], dtype=torch.float64)
    """
    shape, slots = estimate.shape, steering.shape[-1]
    fits = estimate.ndim == 3 and shape[1] == shape[2]
    if not fits or tuple(steering.shape) != (*shape[:2], slots) or slots > shape[1]:
        raise ValueError(
            f"subspace_overlap: got estimate {list(shape)} and steering {list(steering.shape)}; "
            "expected [B, N, N] and [B, N, K_max]"
        )
    if num_sources.shape != shape[:1] or bool(((num_sources < 0) | (num_sources > slots)).any()):
        raise ValueError(
            f"subspace_overlap: num_sources is {num_sources.tolist()}, expected {shape[0]} counts "
            f"of 0 to {slots}"
        )
    if not bool(torch.isfinite(torch.view_as_real(estimate)).all()):
        raise ValueError("subspace_overlap: estimate holds infinite or undefined values")
    columns = torch.arange(slots, device=estimate.device) < num_sources[:, None]
    leading = torch.linalg.eigh(estimate.to(torch.complex128))[1].flip(-1)[..., :slots]
    # A singular value decomposition, for sources whose steering vectors all but agree.
    spans, lengths, _ = torch.linalg.svd(steering.to(torch.complex128), full_matrices=False)
    rounding = torch.finfo(torch.float32).eps * lengths[:, :1]
    inside = columns & (lengths > rounding)
    cosines = (spans * inside[:, None]).mH @ (leading * columns[:, None])
    return torch.view_as_real(cosines).square().sum((1, 2, 3)) / num_sources


@dataclass(frozen=True)
class CovarianceErrors:
    """How far covariances [B, N, N] are from the true ones, a value per scene [B]."""

    nmse: Tensor
    """:func:`riskernels.hermitian_nmse` of both at the same trace."""
    overlap: Tensor
    """:func:`subspace_overlap`."""


def covariance_errors(
    estimate: Tensor, truth: Tensor, steering: Tensor, num_sources: Tensor
) -> CovarianceErrors:
    """Errors of ``estimate`` against ``truth``, both [B, N, N] Hermitian with a positive trace.

    Both are scaled to trace N first: what the power of a scene is, no estimator of positions has to
    say. ``steering`` and ``num_sources`` as for :func:`subspace_overlap`.
    """

    def normalised(name: str, matrix: Tensor) -> Tensor:
        trace = matrix.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        if not bool((trace > 0).all()):
            raise ValueError(f"covariance_errors: {name} has a trace that is not above 0")
        return matrix * (matrix.shape[-1] / trace)[:, None, None]

    overlap = subspace_overlap(estimate, steering, num_sources)
    one, other = normalised("estimate", estimate), normalised("truth", truth)
    return CovarianceErrors(riskernels.hermitian_nmse(one, other), overlap)
