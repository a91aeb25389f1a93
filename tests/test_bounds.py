# SPDX-License-Identifier: Apache-2.0
"""Cramer-Rao bounds against finite differences, plain Fisher matrices and a Monte-Carlo one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bound_oracles import (
    STEP,
    SYSTEM,
    Scene,
    block_of_inverse,
    covariance_parameters,
    covariances,
    deterministic_mean,
    deterministic_parameters,
    slopes,
)

from ris_pytorch_pipeline.bounds import deterministic_bound, signal_matrices, stochastic_bound


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
