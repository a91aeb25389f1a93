# SPDX-License-Identifier: Apache-2.0
"""The estimator interface: every registered estimator, what it may see, and awkward input."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ris_pytorch_pipeline.checkpoint import Checkpoint
from ris_pytorch_pipeline.configs import (
    ConfigError,
    ExperimentConfig,
    ModelConfig,
    SimulationConfig,
    SystemConfig,
)
from ris_pytorch_pipeline.estimators import (
    Estimator,
    Setting,
    estimator_names,
    make_estimator,
    receiver_view,
    register,
)
from ris_pytorch_pipeline.geometry import to_cartesian
from ris_pytorch_pipeline.localize import Positions
from ris_pytorch_pipeline.model import LocalizationNet
from ris_pytorch_pipeline.simulate import Scenes, Simulator

SMALL = SystemConfig(n_h=6, n_v=6, antennas=8, snapshots=8, max_sources=3)
NAMES = ("joint_ls", "learned", "learned_search", "music", "mvdr", "omp", "omp_cautious")


def checkpoint(system: SystemConfig) -> Checkpoint:
    config = ExperimentConfig(system=system, model=ModelConfig(channels=4, width=16, heads=2))
    torch.manual_seed(0)
    net = LocalizationNet(config.system, config.model, config.covariance).eval()
    return Checkpoint(config, net, {})


def estimator(name: str, system: SystemConfig = SMALL) -> Estimator:
    known = checkpoint(system) if name.startswith("learned") else None
    return make_estimator(name, Setting(system, checkpoint=known))


def scenes_of(seed: int, count: int, system: SystemConfig = SMALL, **more: Any) -> Scenes:
    simulation = SimulationConfig(**{"snr_db_min": 20.0, "min_separation": 1.0, **more})
    return Simulator(system, simulation, seed=seed, split="test").batch(count)


def tensors(positions: Positions) -> list[Tensor]:
    keep = positions.valid
    parts = (positions.phi, positions.theta, positions.r, positions.level)
    return [keep, *(value[keep] for value in parts)]


def test_the_registry_knows_every_estimator() -> None:
    assert estimator_names() == sorted(NAMES)
    for name in NAMES:
        assert estimator(name).name == name
    with pytest.raises(ConfigError, match="got 'best', expected one of joint_ls, learned"):
        make_estimator("best", Setting(SMALL))
    with pytest.raises(ValueError, match="there is an estimator 'omp' already"):
        register("omp")(object)
    with pytest.raises(ConfigError, match="no checkpoint"):
        make_estimator("learned", Setting(SMALL))
    with pytest.raises(ConfigError, match="another system"):
        make_estimator("learned", Setting(SystemConfig(), checkpoint=checkpoint(SMALL)))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_an_estimator_sees_what_a_receiver_sees(seed: int, name: str, known: bool) -> None:
    scenes = scenes_of(seed, 5)
    count = scenes.num_sources if known else None
    found = estimator(name)(scenes, count)
    hidden = estimator(name)(receiver_view(scenes), count)
    for one, other in zip(tensors(found), tensors(hidden), strict=True):
        assert torch.equal(one, other)
    assert found.valid.shape == (5, SMALL.max_sources)
    assert bool((found.valid.sum(1) <= (scenes.num_sources if known else 3)).all())
    assert bool(torch.isfinite(found.cartesian[found.valid]).all())


@pytest.mark.parametrize("name", NAMES)
def test_awkward_scenes_have_the_documented_answer(seed: int, name: str) -> None:
    scenes = scenes_of(seed, 5, min_sources=2)
    estimate = estimator(name)
    nothing = estimate(scenes[:0], None)
    assert nothing.valid.shape == (0, SMALL.max_sources)
    nothing = estimate(scenes[:0], scenes.num_sources[:0])
    assert nothing.valid.shape == (0, SMALL.max_sources)
    assert not bool(estimate(scenes, torch.zeros_like(scenes.num_sources)).valid.any())
    for count in (scenes.num_sources + 3, scenes.num_sources - 4, scenes.num_sources[:2]):
        with pytest.raises(ValueError, match="num_sources: got"):
            estimate(scenes, count)
    with pytest.raises(ValueError, match="expected one integer"):
        estimate(scenes, scenes.num_sources.double())

    y, h = scenes.y.clone(), scenes.h.clone()
    y[1, 2, 3] = math.nan
    h[3, 0, 0] = math.inf
    broken = dataclasses.replace(scenes, y=y, h=h)
    for known in (scenes.num_sources, None):
        clean, found = estimate(scenes, known), estimate(broken, known)
        assert not bool(found.valid[[1, 3]].any())
        others = [0, 2, 4]
        assert torch.equal(found.valid[others], clean.valid[others])
        where = clean.valid[others]
        torch.testing.assert_close(
            found.cartesian[others][where], clean.cartesian[others][where], rtol=1e-3, atol=1e-3
        )
    every = dataclasses.replace(scenes, y=torch.full_like(y, math.nan))
    assert not bool(estimate(every, None).valid.any())


@pytest.mark.parametrize("name", NAMES)
def test_scenes_of_another_geometry_are_refused(seed: int, name: str) -> None:
    estimate = estimator(name)
    for change in ({"snapshots": 4}, {"antennas": 9}, {"n_h": 5}):
        scenes = scenes_of(seed, 2, dataclasses.replace(SMALL, **change))
        for count in (scenes.num_sources, None):
            with pytest.raises(ConfigError, match=r"\(L, M, N\) = .*expected \(8, 8, 36\)"):
                estimate(scenes, count)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [{"antennas": 3}, {"snapshots": 2}])
def test_as_many_sources_as_antennas_or_more_than_snapshots(
    seed: int, name: str, change: dict[str, int]
) -> None:
    system = dataclasses.replace(SMALL, **change)
    scenes = scenes_of(seed, 4, system, min_sources=3, snr_db_min=30.0, snr_db_max=30.0)
    for count in (scenes.num_sources, None):
        found = estimator(name, system)(receiver_view(scenes), count)
        assert found.valid.shape == (4, 3)
        assert bool(torch.isfinite(found.cartesian[found.valid]).all())
        # These leave out what y hardly supports.
        if count is not None and not name.startswith(("learned", "omp_cautious")):
            least = min(3, system.snapshots) if name == "music" else 3
            assert bool((found.valid.sum(1) == least).all())


@pytest.mark.parametrize("name", ["mvdr", "music", "omp"])
def test_a_lone_strong_source_is_found(seed: int, name: str) -> None:
    system = SystemConfig(max_sources=1)
    scenes = scenes_of(seed, 9, system, snr_db_min=30.0, snr_db_max=30.0)
    found = estimator(name, system)(receiver_view(scenes), scenes.num_sources)
    known = to_cartesian(scenes.phi.double(), scenes.theta.double(), scenes.r.double())
    angle = torch.nn.functional.cosine_similarity(found.cartesian, known, dim=-1).arccos()
    # A fifth of the beamwidth; spectra of R_samp have outliers.
    assert float(angle.median()) < 0.033


def test_static_symbols_are_found_by_joint_least_squares(seed: int) -> None:
    system = SystemConfig(max_sources=3)
    scenes = scenes_of(seed, 40, system, min_sources=3, symbols="static", snr_db_max=20.0)
    known = to_cartesian(scenes.phi.double(), scenes.theta.double(), scenes.r.double())
    errors = {}
    for name in ("joint_ls", "omp"):
        found = make_estimator(name, Setting(system))(receiver_view(scenes), scenes.num_sources)
        errors[name] = torch.cdist(found.cartesian, known).amin(1)
    assert float(errors["joint_ls"].log().mean()) < float(errors["omp"].log().mean())
    assert float((errors["joint_ls"] < 0.5).double().mean()) > 0.85


class _Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.size = max(self.size, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("name", ["omp", "mvdr"])
def test_no_allocation_is_large(seed: int, name: str) -> None:
    system = SystemConfig()
    scenes = scenes_of(seed, 4 if name == "mvdr" else 80, system, min_sources=5)
    estimate = make_estimator(name, Setting(system))
    if name == "omp":
        scenes = dataclasses.replace(scenes, num_sources=torch.full_like(scenes.num_sources, 2))
    with _Largest() as largest:
        estimate(scenes, scenes.num_sources)
    assert largest.size < 200e6


@pytest.mark.parametrize("name", ["learned", "learned_search", "omp_cautious"])
def test_a_cautious_estimator_leaves_out_what_noise_would_give(seed: int, name: str) -> None:
    scenes = scenes_of(seed, 8, min_sources=2)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(scenes.y.shape, dtype=torch.complex64, generator=generator)
    for count in (scenes.num_sources, None):
        assert bool(estimator(name)(scenes, count).valid.any())
        silent = estimator(name)(dataclasses.replace(scenes, y=noise), count)
        assert not bool(silent.valid.any())


def test_cautious_pursuit_is_the_pursuit_cut_short(seed: int) -> None:
    scenes = scenes_of(seed, 12, min_sources=3, snr_db_min=0.0, snr_db_max=0.0)
    for count in (scenes.num_sources, None):
        whole, found = (estimator(name)(scenes, count) for name in ("omp", "omp_cautious"))
        assert torch.equal(whole.cartesian, found.cartesian)
        assert not bool((found.valid & ~whole.valid).any())
        assert int(found.valid.sum()) < int(whole.valid.sum())
        # What is left out is at the end.
        assert not bool((found.valid[:, 1:] & ~found.valid[:, :-1]).any())
