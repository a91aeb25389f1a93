# SPDX-License-Identifier: Apache-2.0
"""A scene in NumPy with its mean, its covariances and their finite differences."""

from __future__ import annotations

import math

import numpy as np
import torch

from ris_pytorch_pipeline.configs import SystemConfig

SYSTEM = SystemConfig(n_h=5, n_v=4, antennas=6, snapshots=7, max_sources=3, taper=True)
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
