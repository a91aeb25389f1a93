# SPDX-License-Identifier: Apache-2.0
"""Cramer-Rao bounds for the positions of the sources of a scene.

    y_l = D_l s_l + n_l,   D_l = H diag(c_l) A [M, K],   n_l ~ CN(0, sigma^2 I),   l = 1 ... L

with eta = (phi_1..K, theta_1..K, r_1..K) wanted and everything else a nuisance. Which bound holds
depends on what the symbols are:

- :func:`deterministic_bound`: unknown constants, one vector per snapshot or one for all of them;
- :func:`stochastic_bound`: Gaussian with an unknown covariance or unknown powers.

The Fisher information is that of the Slepian-Bangs formula; :mod:`.fisher` says how it is inverted.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .configs import SystemConfig
from .fisher import hermitian_rows, inverse_information, outside_span
from .geometry import steering, steering_derivatives

Points: TypeAlias = "tuple[Tensor, Tensor, Tensor]"
"""phi, theta and r, each [B, K]."""


def _checked(
    name: str,
    points: Points,
    h: Tensor,
    codes: Tensor,
    noise_power: Tensor,
    mask: Tensor | None,
    system: SystemConfig,
) -> tuple[Points, Tensor, Tensor, Tensor, Tensor]:
    """The inputs in double precision, and the mask; padded points become harmless ones."""
    phi = points[0]
    if phi.ndim != 2 or any(value.shape != phi.shape for value in points):
        raise ValueError(
            f"{name}: phi, theta and r have shapes {[list(value.shape) for value in points]}, "
            "expected the same [B, K]"
        )
    batch, sources = phi.shape
    if mask is None:
        mask = torch.ones(batch, sources, dtype=torch.bool, device=phi.device)
    snapshots = codes.shape[1] if codes.ndim == 3 else -1
    elements = system.elements
    expected = {
        "h": (h, (batch, h.shape[1] if h.ndim == 3 else -1, elements)),
        "codes": (codes, (batch, snapshots, elements)),
        "noise_power": (noise_power, (batch,)),
        "mask": (mask, (batch, sources)),
    }
    for what, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise ValueError(f"{name}: {what} has shape {list(value.shape)}, expected {shape}")
    safe = tuple(
        torch.where(mask, value.double(), fill)
        for value, fill in zip(points, (0.0, 0.0, 1.0), strict=True)
    )
    _require_finite(name, phi=safe[0], theta=safe[1], h=h, codes=codes, noise_power=noise_power)
    if bool((safe[2] <= 0).any()) or bool(safe[2].isnan().any()):
        raise ValueError(f"{name}: a range r is not above 0")
    if bool((noise_power <= 0).any()):
        raise ValueError(f"{name}: a noise_power is not above 0; without noise there is no bound")
    wide = torch.complex128
    return (safe[0], safe[1], safe[2]), h.to(wide), codes.to(wide), noise_power.double(), mask


def _require_finite(name: str, **values: Tensor) -> None:
    for what, value in values.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: {what} holds infinite or undefined values")


def _require_covariance(name: str, p: Tensor) -> None:
    """Refuse P [B, K, K] that is not Hermitian and positive semidefinite, to single precision."""
    if not p.numel():
        return
    rounding = 1e-5 * torch.linalg.matrix_norm(p)
    if bool((torch.linalg.matrix_norm(p - p.mH) > rounding).any()):
        raise ValueError(f"{name}: source_covariance is not Hermitian (powers: not real)")
    if bool((torch.linalg.eigvalsh(p)[:, 0] < -rounding).any()):
        raise ValueError(f"{name}: source_covariance has a negative eigenvalue or power")


def signal_matrices(
    points: Points,
    h: Tensor,
    codes: Tensor,
    system: SystemConfig,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """D_l [B, L, M, K] and its derivatives [B, L, M, 3K] by phi_1..K, theta_1..K and r_1..K.

    Column k of block q of the derivatives is H diag(c_l) da_k/dq: D_l depends on a source through
    its own column alone. Columns outside ``mask`` are zero. Complex128.
    """
    wide = torch.complex128
    columns = [steering(system, *points, dtype=wide)]
    columns += steering_derivatives(system, *points, dtype=wide)
    everything = torch.cat([(part * mask[..., None]).mT for part in columns], dim=-1)
    seen = (h[:, None] * codes[:, :, None, :]) @ everything[:, None]
    sources = mask.shape[1]
    return seen[..., :sources], seen[..., sources:]


def deterministic_bound(
    points: Points,
    h: Tensor,
    codes: Tensor,
    symbols: Tensor,
    noise_power: Tensor,
    system: SystemConfig,
    *,
    mask: Tensor | None = None,
    static: bool = False,
) -> Tensor:
    """Deterministic Cramer-Rao bound: the symbols are unknown constants.

    With G_l = [dD_l/d eta_i s_l] [M, 3K] and P_l the projector onto the complement of D_l's span,

        C^-1 = (2 / sigma^2) sum_l Re G_l^H P_l G_l

    (P. Stoica and A. Nehorai, "MUSIC, maximum likelihood, and Cramer-Rao bound", IEEE Trans. ASSP
    37, 1989, with a mixing matrix D_l of each snapshot's own). With ``static`` one symbol vector
    holds for all snapshots: D_l and G_l are stacked over l before the projection, which takes out
    K directions in place of L K. The noise power is unknown too, and costs nothing: it is
    orthogonal to all else.

    Args:
        points: phi, theta and r, each [B, K] real; radians and metres, r > 0.
        h: channel [B, M, N]; codes: [B, L, N], both complex.
        symbols: [B, L, K] complex; with ``static`` [B, K].
        noise_power: sigma^2 per antenna, [B] real, above 0.
        mask: which of the K slots hold a source, [B, K]; all when left out.

    Returns:
        [B, 3K, 3K] float64, the bound of the covariance of any unbiased estimator of
        (phi_1..K, theta_1..K, r_1..K), in rad^2, rad m and m^2. Zero in the padding. A scene whose
        positions or symbols cannot be told apart (more sources than antennas, coincident sources, a
        source without power, a source at infinity) has the variance inf, and a gradient of 0.

    Differentiable in ``points``, ``h``, ``codes``, ``symbols`` and ``noise_power``.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or r or noise_power is not above 0.

    >>> from .simulate import SimulationConfig, Simulator
    >>> drawn = Simulator(SystemConfig(), SimulationConfig(), seed=0, split="doc").draw(2)
    >>> s = drawn.scenes
    >>> points = (s.phi, s.theta, s.r)
    >>> bound = deterministic_bound(
    ...     points, s.h, s.codes, drawn.symbols, drawn.noise_power, SystemConfig(), mask=s.mask
    ... )
    >>> bound.shape, position_error_bound(bound, points).shape
    (torch.Size([2, 15, 15]), torch.Size([2, 5]))
    """
    name = "deterministic_bound"
    points, h, codes, noise_power, mask = _checked(
        name, points, h, codes, noise_power, mask, system
    )
    batch, sources = mask.shape
    wanted = (batch, sources) if static else (batch, codes.shape[1], sources)
    if tuple(symbols.shape) != wanted:
        raise ValueError(f"{name}: symbols has shape {list(symbols.shape)}, expected {wanted}")
    symbols = torch.where(mask if static else mask[:, None], symbols.to(torch.complex128), 0.0)
    _require_finite(name, symbols=symbols)
    mixing, derivatives = signal_matrices(points, h, codes, system, mask)
    if static:
        symbols = symbols[:, None]
        mixing, derivatives = mixing.flatten(1, 2)[:, None], derivatives.flatten(1, 2)[:, None]
    slopes = derivatives * symbols.repeat(1, 1, 3)[..., None, :]
    keep = mask[:, None].expand(mixing.shape[0], mixing.shape[1], sources)
    slopes, dependent = outside_span(slopes, mixing, keep)
    weighted = torch.view_as_real(slopes).movedim(-1, 1).flatten(1, 3)
    weighted = weighted * (2 / noise_power).sqrt()[:, None, None]
    return inverse_information(weighted, mask.repeat(1, 3), dependent.any(-1))


def stochastic_bound(
    points: Points,
    h: Tensor,
    codes: Tensor,
    source_covariance: Tensor,
    noise_power: Tensor,
    system: SystemConfig,
    *,
    mask: Tensor | None = None,
    unknown: Literal["covariance", "powers"] = "covariance",
) -> Tensor:
    """Stochastic Cramer-Rao bound: the symbols are s_l ~ CN(0, P), independent over l.

    Snapshot l has the covariance R_l = D_l P D_l^H + sigma^2 I, different in each, and the
    information of all of them adds up,

        F_ij = sum_l tr(R_l^-1 dR_l/di R_l^-1 dR_l/dj).

    Nuisances are sigma^2 and the K^2 real parameters of P, or with ``unknown="powers"`` its
    diagonal alone: the sources are then known to be uncorrelated, and the bound is lower. (The
    closed form of P. Stoica and A. Nehorai, "Performance study of conditional and unconditional
    direction-of-arrival estimation", IEEE Trans. ASSP 38, 1990, needs one R for all snapshots.)

    Args:
        points, h, codes, noise_power, mask: as in :func:`deterministic_bound`.
        source_covariance: P, [B, K, K] Hermitian and not negative, or powers [B, K] of a diagonal
            one.
        unknown: what is not known of P.

    Returns:
        [B, 3K, 3K] float64, as :func:`deterministic_bound`. The variance is inf also where P or
        sigma^2 cannot be identified (such as more unknowns than L M^2), or where R_l is singular in
        double precision.

    Differentiable in ``points``, ``h``, ``codes``, ``source_covariance`` and ``noise_power``.

    Raises:
        ValueError: as :func:`deterministic_bound`, P is not Hermitian or has an eigenvalue below
            0, or ``unknown`` is something else.

    >>> from .simulate import SimulationConfig, Simulator
    >>> drawn = Simulator(SystemConfig(), SimulationConfig(), seed=0, split="doc").draw(2)
    >>> s = drawn.scenes
    >>> stochastic_bound(
    ...     (s.phi, s.theta, s.r), s.h, s.codes, s.power, drawn.noise_power, SystemConfig(),
    ...     mask=s.mask,
    ... ).shape
    torch.Size([2, 15, 15])
    """
    name = "stochastic_bound"
    points, h, codes, noise_power, mask = _checked(
        name, points, h, codes, noise_power, mask, system
    )
    batch, sources = mask.shape
    if unknown not in ("covariance", "powers"):
        raise ValueError(f"{name}: unknown is {unknown!r}, expected 'covariance' or 'powers'")
    if tuple(source_covariance.shape) not in ((batch, sources), (batch, sources, sources)):
        raise ValueError(
            f"{name}: source_covariance has shape {list(source_covariance.shape)}, expected "
            f"{(batch, sources)} or {(batch, sources, sources)}"
        )
    p = source_covariance.to(torch.complex128)
    if p.ndim == 2:
        p = torch.diag_embed(p)
    p = torch.where(mask[:, :, None] & mask[:, None, :], p, 0.0)
    _require_finite(name, source_covariance=p)
    _require_covariance(name, p.detach())
    mixing, derivatives = signal_matrices(points, h, codes, system, mask)
    antennas = mixing.shape[-2]
    identity = torch.eye(antennas, dtype=p.dtype, device=p.device)
    received = mixing @ p[:, None]
    r = received @ mixing.mH + noise_power[:, None, None, None] * identity
    root, failed = torch.linalg.cholesky_ex(r.detach())
    singular = (failed > 0).any(-1)
    root = torch.linalg.cholesky(torch.where(singular[:, None, None, None], identity, r))

    def whiten(x: Tensor) -> Tensor:
        """Columns as [B, L, C, M], in units of the noise and the signals together."""
        whitened: Tensor = torch.linalg.solve_triangular(root, x, upper=False)
        return whitened.mT

    columns, seen, slopes = whiten(mixing), whiten(received), whiten(derivatives)
    wanted = hermitian_rows(slopes, seen.repeat(1, 1, 3, 1))
    pairs = torch.triu_indices(sources, sources, 0 if unknown == "covariance" else 1)
    first, second = pairs if unknown == "covariance" else (torch.arange(sources),) * 2
    nuisances = [hermitian_rows(columns[:, :, first], columns[:, :, second])]
    keeps = [mask[:, first] & mask[:, second]]
    if unknown == "covariance":
        i, j = pairs[:, pairs[0] < pairs[1]]
        nuisances.append(hermitian_rows(1j * columns[:, :, i], columns[:, :, j]))
        keeps.append(mask[:, i] & mask[:, j])
    noise = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
    noise = noise @ noise.mH
    nuisances.append((noise.real + noise.imag).flatten(-2)[:, :, None])
    keeps.append(torch.ones_like(mask[:, :1]))

    def rows(x: Tensor) -> Tensor:
        return x.movedim(2, -1).flatten(1, 2)

    wanted, dependent = outside_span(
        rows(wanted), rows(torch.cat(nuisances, dim=2)), torch.cat(keeps, dim=1)
    )
    return inverse_information(wanted, mask.repeat(1, 3), dependent | singular)


def position_error_bound(covariance: Tensor, points: Points) -> Tensor:
    """Bound of the root mean squared position error of every source, [B, K] in metres.

    sqrt(tr T C_k T^T) with C_k the block of source k and T = dx/d(phi, theta, r). The columns of T
    are orthogonal, of lengths r cos(theta), r and 1, so that only the variances enter:

        PEB_k^2 = r^2 cos^2(theta) var(phi) + r^2 var(theta) + var(r).

    Zero in the padding, inf where the variance is.

    Args:
        covariance: [B, 3K, 3K], from one of the bounds.
        points: phi, theta and r, each [B, K].
    """
    _, theta, r = points
    sources = r.shape[-1]
    if covariance.shape != (r.shape[0], 3 * sources, 3 * sources):
        raise ValueError(
            f"position_error_bound: covariance has shape {list(covariance.shape)}, expected "
            f"{[r.shape[0], 3 * sources, 3 * sources]} for {sources} sources"
        )
    variance = covariance.diagonal(dim1=-2, dim2=-1).unflatten(-1, (3, sources))
    # A scene's variances are all there or all infinite; zero is the padding, where a square root
    # has no slope. Either would turn the gradients of the others undefined.
    usual = torch.isfinite(variance).all(1) & (variance > 0).all(1) & torch.isfinite(r)
    a, b, c = torch.where(usual[:, None], variance, 1.0).unbind(1)
    theta, r = (torch.where(usual, x.to(variance), 1.0) for x in (theta, r))
    bound = (r.square() * (a * theta.cos().square() + b) + c).sqrt()
    return torch.where(usual, bound, torch.where((variance == 0).all(1), 0.0, math.inf))
