# SPDX-License-Identifier: Apache-2.0
"""Cramer-Rao bounds against finite differences, plain Fisher matrices and a Monte-Carlo one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ris_pytorch_pipeline.bounds import (
    deterministic_bound,
    position_error_bound,
    signal_matrices,
    stochastic_bound,
)
from ris_pytorch_pipeline.configs import SimulationConfig, SystemConfig
from ris_pytorch_pipeline.geometry import to_cartesian
from ris_pytorch_pipeline.simulate import Simulator

SYSTEM = SystemConfig(n_h=5, n_v=4, antennas=6, snapshots=7, max_sources=3, taper=True)
FULL = SystemConfig(max_sources=3)
STEP = 1e-5


class Scene:
    """One scene in NumPy, its mean and covariances written out from the signal model."""

    def __init__(self, seed: int, sources: int, system: SystemConfig = SYSTEM) -> None:
        rng = np.random.default_rng(seed)
        self.system, self.sources = system, sources
        m, n, snapshots = system.antennas, system.elements, system.snapshots
        self.eta = np.concatenate(
            [rng.uniform(*span, sources) for span in ((-1, 1), (-0.5, 0.5), (0.6, 2.0))]
        )
        self.h = self._normal(rng, m, n) / math.sqrt(n)
        self.codes = np.exp(2j * np.pi * rng.random((snapshots, n)))
        self.symbols = self._normal(rng, snapshots, sources)
        half = self._normal(rng, sources, sources)
        self.p = half @ half.conj().T + 0.3 * np.eye(sources)
        self.noise = 0.05

    @staticmethod
    def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / math.sqrt(2)

    def mixing(self, eta: np.ndarray) -> np.ndarray:
        """D_l [L, M, K], its steering vectors from distances."""
        system = self.system
        index = np.arange(system.elements)
        place = np.stack(
            [
                0.0 * index,
                (index % system.n_h - (system.n_h - 1) / 2) * system.spacing,
                (index // system.n_h - (system.n_v - 1) / 2) * system.spacing,
            ],
            -1,
        )
        phi, theta, r = eta.reshape(3, -1)
        u = np.stack([np.cos(theta) * np.cos(phi), np.cos(theta) * np.sin(phi), np.sin(theta)], -1)
        distance = np.linalg.norm((r[:, None] * u)[:, None] - place, axis=-1)
        a = np.exp(2j * np.pi / system.wavelength * (r[:, None] - distance))
        a *= r[:, None] / distance / math.sqrt(system.elements)
        return np.einsum("mn,ln,kn->lmk", self.h, self.codes, a)

    def tensors(self, **more: object) -> dict:
        phi, theta, r = torch.tensor(self.eta).reshape(3, 1, -1)
        return {
            "points": (phi, theta, r),
            "h": torch.tensor(self.h)[None],
            "codes": torch.tensor(self.codes)[None],
            "noise_power": torch.tensor([self.noise], dtype=torch.float64),
            "system": self.system,
            **more,
        }


def slopes(function, at: np.ndarray) -> np.ndarray:
    """Central differences of ``function`` by every entry of ``at``, first axis."""
    rows = []
    for i in range(len(at)):
        shift = np.zeros(len(at))
        shift[i] = STEP
        rows.append((function(at + shift) - function(at - shift)) / (2 * STEP))
    return np.stack(rows)


def block_of_inverse(information: np.ndarray, wanted: int) -> np.ndarray:
    """Leading block of the inverse, by scaling to a unit diagonal first."""
    scale = 1 / np.sqrt(np.diag(information))
    inverse = np.linalg.inv(information * np.outer(scale, scale)) * np.outer(scale, scale)
    return inverse[:wanted, :wanted]


def complex_parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x[: len(x) // 2], x[len(x) // 2 :]


def deterministic_parameters(scene: Scene, static: bool) -> np.ndarray:
    s = scene.symbols[0] if static else scene.symbols.ravel()
    return np.concatenate([scene.eta, s.real, s.imag])


def deterministic_mean(scene: Scene, x: np.ndarray, static: bool) -> np.ndarray:
    real, imag = complex_parts(x[3 * scene.sources :])
    s = (real + 1j * imag).reshape(-1, scene.sources)
    s = np.broadcast_to(s, (scene.system.snapshots, scene.sources)) if static else s
    return np.einsum("lmk,lk->lm", scene.mixing(x[: 3 * scene.sources]), s).ravel()


def covariance_parameters(scene: Scene, powers: bool) -> np.ndarray:
    k, p = scene.sources, scene.p
    upper = np.triu_indices(k, 1)
    rest = np.concatenate([p[upper].real, p[upper].imag]) if not powers else np.empty(0)
    return np.concatenate([scene.eta, np.diag(p).real, rest, [scene.noise]])


def covariances(scene: Scene, x: np.ndarray, powers: bool) -> np.ndarray:
    k = scene.sources
    p = np.diag(x[3 * k : 4 * k]).astype(complex)
    if not powers:
        real, imag = complex_parts(x[4 * k : -1])
        p[np.triu_indices(k, 1)] = real + 1j * imag
        p = np.triu(p) + np.triu(p, 1).conj().T
    d = scene.mixing(x[: 3 * k])
    return d @ p @ d.conj().swapaxes(1, 2) + x[-1] * np.eye(d.shape[1])


@pytest.mark.parametrize("sources", [1, 3])
def test_derivatives_of_the_signal_match_finite_differences(seed: int, sources: int) -> None:
    scene = Scene(seed, sources)
    inputs = scene.tensors()
    mask = torch.ones(1, sources, dtype=torch.bool)
    mixing, derivatives = signal_matrices(
        inputs["points"], inputs["h"], inputs["codes"], SYSTEM, mask
    )
    np.testing.assert_allclose(mixing[0], scene.mixing(scene.eta), rtol=0, atol=1e-12)
    # Only column k of D depends on source k: the sum over columns is that column's derivative.
    expected = slopes(lambda eta: scene.mixing(eta).sum(-1), scene.eta)
    got = derivatives[0].movedim(-1, 0).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("sources", [1, 3])
def test_deterministic_bound_inverts_the_full_information(
    seed: int, sources: int, static: bool
) -> None:
    scene = Scene(seed, sources)
    x = deterministic_parameters(scene, static)
    jacobian = slopes(lambda v: deterministic_mean(scene, v, static), x)
    information = 2 / scene.noise * (jacobian.conj() @ jacobian.T).real
    expected = block_of_inverse(information, 3 * sources)
    symbols = torch.tensor(scene.symbols[:1] if static else scene.symbols[None])
    bound = deterministic_bound(**scene.tensors(symbols=symbols, static=static))[0].numpy()
    np.testing.assert_allclose(bound, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("powers", [False, True])
@pytest.mark.parametrize("sources", [1, 3])
def test_stochastic_bound_inverts_the_full_information(
    seed: int, sources: int, powers: bool
) -> None:
    scene = Scene(seed, sources)
    if powers:
        scene.p = np.diag(np.diag(scene.p))
    x = covariance_parameters(scene, powers)
    inverse = np.linalg.inv(covariances(scene, x, powers))
    whitened = inverse @ slopes(lambda v: covariances(scene, v, powers), x)
    information = np.einsum("ilmn,jlnm->ij", whitened, whitened).real
    expected = block_of_inverse(information, 3 * sources)
    unknown = "powers" if powers else "covariance"
    p = torch.tensor(scene.p)[None]
    bound = stochastic_bound(**scene.tensors(source_covariance=p, unknown=unknown))[0].numpy()
    np.testing.assert_allclose(bound, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    if powers:
        both = stochastic_bound(**scene.tensors(source_covariance=p, unknown="covariance"))[0]
        assert (np.linalg.eigvalsh(both.numpy() - bound) > -1e-9 * bound.max()).all()
        vector = stochastic_bound(
            **scene.tensors(source_covariance=torch.tensor(np.diag(scene.p))[None], unknown=unknown)
        )
        np.testing.assert_array_equal(vector[0], bound)


def outer_products(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the outer products of scores [draws, parameters], and its standard error."""
    products = scores[:, :, None] * scores[:, None, :]
    return products.mean(0), products.std(0) / math.sqrt(len(scores))


def assert_within_errors(expected: np.ndarray, mean: np.ndarray, error: np.ndarray) -> None:
    """Every entry within 5 standard errors, and all of them together as far off as they may be."""
    deviation = (mean - expected) / error
    assert np.abs(deviation).max() < 5
    assert 0.5 < np.sqrt(np.mean(deviation**2)) < 1.6


DRAWS = 20000


def test_deterministic_information_is_the_mean_outer_product_of_scores(seed: int) -> None:
    """The score is the gradient of the log-likelihood at random measurements, by differences."""
    scene = Scene(seed, 2)
    rng = np.random.default_rng(seed)
    x = deterministic_parameters(scene, True)
    mean = deterministic_mean(scene, x, True)
    noise = math.sqrt(scene.noise) * Scene._normal(rng, DRAWS, len(mean))
    sides = [
        [-(np.abs(mean + noise - deterministic_mean(scene, x + s, True)) ** 2).sum(1) for s in pair]
        for pair in ((STEP * e, -STEP * e) for e in np.eye(len(x)))
    ]
    scores = np.stack([(up - down) / (2 * STEP * scene.noise) for up, down in sides], 1)
    mean_product, error = outer_products(scores)
    jacobian = slopes(lambda v: deterministic_mean(scene, v, True), x)
    information = 2 / scene.noise * (jacobian.conj() @ jacobian.T).real
    assert_within_errors(information, mean_product, error)
    # What remains of the sampled information for eta, against the inverse of the bound.
    symbols = torch.tensor(scene.symbols[:1])
    bound = deterministic_bound(**scene.tensors(symbols=symbols, static=True))[0].numpy()
    sampled = block_of_inverse(mean_product, 6)
    root = np.linalg.cholesky(bound)
    ratio = np.linalg.eigvalsh(np.linalg.solve(root, np.linalg.solve(root, sampled).T))
    assert np.abs(ratio - 1).max() < 15 / math.sqrt(DRAWS)


def test_stochastic_information_is_the_mean_outer_product_of_scores(seed: int) -> None:
    scene = Scene(seed, 2)
    rng = np.random.default_rng(seed)
    x = covariance_parameters(scene, False)
    root = np.linalg.cholesky(covariances(scene, x, False))
    y = np.einsum("lmn,dln->dlm", root, Scene._normal(rng, DRAWS, *root.shape[:2]))

    def log_likelihood(v: np.ndarray) -> np.ndarray:
        r = covariances(scene, v, False)
        quadratic = np.einsum("dlm,lmn,dln->d", y.conj(), np.linalg.inv(r), y, optimize=True)
        return -np.linalg.slogdet(r)[1].sum() - quadratic.real

    scores = slopes(log_likelihood, x).T
    mean_product, error = outer_products(scores)
    bound = stochastic_bound(**scene.tensors(source_covariance=torch.tensor(scene.p)[None]))
    sampled = block_of_inverse(mean_product, 6)
    lower = np.linalg.cholesky(bound[0].numpy())
    ratio = np.linalg.eigvalsh(np.linalg.solve(lower, np.linalg.solve(lower, sampled).T))
    assert np.abs(ratio - 1).max() < 15 / math.sqrt(DRAWS)
    whitened = np.linalg.inv(covariances(scene, x, False)) @ slopes(
        lambda v: covariances(scene, v, False), x
    )
    information = np.einsum("ilmn,jlnm->ij", whitened, whitened).real
    assert_within_errors(information, mean_product, error)


def drawn(seed: int, batch: int = 6, **options: object):
    simulation = SimulationConfig(**options)
    return Simulator(FULL, simulation, seed=seed, split="bounds").draw(batch)


def both_bounds(d, mask=None, rows=slice(None), **changes):
    s = d.scenes
    fields = {
        "points": (s.phi[rows], s.theta[rows], s.r[rows]),
        "h": s.h[rows],
        "codes": s.codes[rows],
        "noise_power": d.noise_power[rows],
        "system": FULL,
        "mask": s.mask[rows] if mask is None else mask,
        **changes,
    }
    return (
        deterministic_bound(symbols=d.symbols[rows], **fields),
        deterministic_bound(symbols=d.symbols[rows, 0], static=True, **fields),
        stochastic_bound(source_covariance=s.power[rows], **fields),
        stochastic_bound(source_covariance=s.power[rows], unknown="powers", **fields),
    )


def test_padding_does_not_matter(seed: int) -> None:
    d = drawn(seed)
    s = d.scenes
    keep = s.mask.repeat(1, 3)
    for bound in both_bounds(d):
        assert torch.isfinite(bound).all() and (bound[~keep] == 0).all()
        peb = position_error_bound(bound, (s.phi, s.theta, s.r))
        assert (peb[~s.mask] == 0).all() and (peb[s.mask] > 0).all()
    for row in range(len(s)):
        k = int(s.num_sources[row])
        one = slice(row, row + 1)
        alone = {
            "points": tuple(x[one, :k] for x in (s.phi, s.theta, s.r)),
            "h": s.h[one],
            "codes": s.codes[one],
            "noise_power": d.noise_power[one],
            "system": FULL,
        }
        expected = (
            deterministic_bound(symbols=d.symbols[one, :, :k], **alone),
            deterministic_bound(symbols=d.symbols[one, 0, :k], static=True, **alone),
            stochastic_bound(source_covariance=s.power[one, :k], **alone),
            stochastic_bound(source_covariance=s.power[one, :k], unknown="powers", **alone),
        )
        for bound, wanted in zip(both_bounds(d), expected, strict=True):
            got = bound[row][keep[row]][:, keep[row]]
            scale = wanted[0].diagonal().sqrt()
            torch.testing.assert_close(
                got / (scale * scale[:, None]),
                wanted[0] / (scale * scale[:, None]),
                rtol=0,
                atol=1e-6,
            )


def test_order_of_the_bounds(seed: int) -> None:
    """Less knowledge, larger bound; and the bound follows the noise power exactly where it must."""
    d = drawn(seed, 8)
    independent, static, free, powers = (b.diagonal(dim1=1, dim2=2) for b in both_bounds(d))
    keep = d.scenes.mask.repeat(1, 3)
    assert (powers[keep] <= free[keep] * (1 + 1e-9)).all()
    assert torch.isfinite(static).all()
    louder = deterministic_bound(
        (d.scenes.phi, d.scenes.theta, d.scenes.r),
        d.scenes.h,
        d.scenes.codes,
        d.symbols,
        4 * d.noise_power,
        FULL,
        mask=d.scenes.mask,
    )
    torch.testing.assert_close(louder.diagonal(dim1=1, dim2=2), 4 * independent)


def test_position_error_bound_is_the_trace_of_the_mapped_covariance(seed: int) -> None:
    torch.manual_seed(seed)
    points = tuple(torch.rand(4, 3, dtype=torch.float64) + 0.3 for _ in range(3))
    root = torch.randn(4, 9, 9, dtype=torch.float64)
    covariance = root @ root.mT
    peb = position_error_bound(covariance, points)
    for b in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda *x: to_cartesian(*x), tuple(p[b] for p in points)
        )
        t = torch.stack([j.diagonal(dim1=0, dim2=2) for j in jacobian])
        for k in range(3):
            block = covariance[b, k::3, k::3]
            wanted = torch.einsum("qx,qp,px->", t[:, :, k], block, t[:, :, k]).sqrt()
            torch.testing.assert_close(peb[b, k], wanted)


@pytest.mark.parametrize("which", range(4))
def test_bounds_are_differentiable(seed: int, which: int) -> None:
    torch.manual_seed(seed)
    system = SystemConfig(n_h=3, n_v=3, antennas=3, snapshots=4, max_sources=2)
    batch, sources = 2, 2
    mask = torch.tensor([[True, True], [True, False]])
    wide = {"dtype": torch.complex128}
    h = torch.randn(batch, 3, 9, **wide)
    codes = torch.randn(batch, 4, 9, **wide)
    phi, theta = (torch.rand(batch, sources, dtype=torch.float64) - 0.5 for _ in range(2))
    r = torch.rand(batch, sources, dtype=torch.float64) * 0.3 + 0.3
    noise = torch.rand(batch, dtype=torch.float64) + 0.5
    symbols = torch.randn(batch, 4, sources, **wide)
    power = torch.rand(batch, sources, dtype=torch.float64) + 0.5
    static = which == 1
    signal = power if which > 1 else symbols[:, 0] if static else symbols

    def value(phi, theta, r, signal, noise, h):
        common = {"mask": mask, "system": system}
        if which > 1:
            kind = "powers" if which == 3 else "covariance"
            bound = stochastic_bound(
                (phi, theta, r), h, codes, signal, noise, unknown=kind, **common
            )
        else:
            bound = deterministic_bound(
                (phi, theta, r), h, codes, signal, noise, static=static, **common
            )
        return position_error_bound(bound, (phi, theta, r)).log1p()

    inputs = [x.requires_grad_() for x in (phi, theta, r, signal, noise, h)]
    assert torch.isfinite(value(*inputs)).all()
    assert torch.autograd.gradcheck(value, inputs, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_told_apart_is_infinite_and_never_nan(seed: int) -> None:
    d = drawn(seed, 5, min_sources=3)
    s = d.scenes
    phi, theta, r = (x.double().clone() for x in (s.phi, s.theta, s.r))
    phi[1, 1], theta[1, 1], r[1, 1] = phi[1, 0], theta[1, 0], r[1, 0]  # coincident
    r[2, 0] = math.inf
    phi[3, 1], theta[3, 1], r[3, 1] = phi[3, 0], theta[3, 0], r[3, 0] + 1e-4  # nearly coincident
    points = tuple(x.requires_grad_() for x in (phi, theta, r))
    for bound in both_bounds(d, points=points):
        variance = bound.diagonal(dim1=1, dim2=2)
        assert not bound.isnan().any()
        assert (variance[1] == math.inf).all() and (variance[2] == math.inf).all()
        assert torch.isfinite(variance[0]).all() and torch.isfinite(variance[4]).all()
        assert (variance[3] > 0).all()
        peb = position_error_bound(bound, (phi, theta, r))
        assert (peb[1:3] == math.inf).all()
        peb[torch.isfinite(peb)].sum().backward()
        for x in points:
            assert torch.isfinite(x.grad[[0, 1, 2, 4]]).all()
            x.grad = None
    # As many sources as antennas: a snapshot has nothing left over.
    narrow = deterministic_bound(
        (s.phi, s.theta, s.r), s.h[:, :3], s.codes, d.symbols, d.noise_power, FULL, mask=s.mask
    )
    assert (narrow.diagonal(dim1=1, dim2=2) == math.inf).all()
    silent = stochastic_bound(
        (s.phi, s.theta, s.r), s.h, s.codes, 0 * s.power, d.noise_power, FULL, mask=s.mask
    )
    assert (silent.diagonal(dim1=1, dim2=2) == math.inf).all()


def test_bounds_refuse_what_makes_no_sense(seed: int) -> None:
    d = drawn(seed, 2)
    s = d.scenes
    good = {
        "points": (s.phi, s.theta, s.r),
        "h": s.h,
        "codes": s.codes,
        "symbols": d.symbols,
        "noise_power": d.noise_power,
        "system": FULL,
        "mask": s.mask,
    }
    for change, message in (
        ({"noise_power": 0 * d.noise_power}, "noise_power is not above 0"),
        ({"points": (s.phi, s.theta, -s.r)}, "r is not above 0"),
        ({"points": (s.phi, s.theta, s.r[:, :1])}, "expected the same"),
        ({"h": s.h[:1]}, "h has shape"),
        ({"h": s.h * math.nan}, "h holds infinite"),
        ({"symbols": d.symbols[:, 0]}, "symbols has shape"),
        ({"mask": s.mask[:1]}, "mask has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            deterministic_bound(**{**good, **change})
    del good["symbols"]
    with pytest.raises(ValueError, match="expected 'covariance' or 'powers'"):
        stochastic_bound(**good, source_covariance=s.power, unknown="noise")
    with pytest.raises(ValueError, match="source_covariance has shape"):
        stochastic_bound(**good, source_covariance=s.power[:1])
    with pytest.raises(ValueError, match="covariance has shape"):
        position_error_bound(torch.zeros(2, 3, 3), (s.phi, s.theta, s.r))


def test_bounds_of_no_scenes() -> None:
    d = drawn(0, 2)
    for bound in both_bounds(d, rows=slice(0, 0)):
        assert bound.shape == (0, 9, 9)
