# SPDX-License-Identifier: Apache-2.0
"""Configuration of every part of the pipeline, as frozen dataclasses.

Lengths are metres, angles radians, powers linear unless a name ends in ``_db``. Each class checks
its own values when it is made, so a wrong value is refused before any work starts. A run saves its
:class:`ExperimentConfig` as JSON beside its results, and :func:`from_dict` refuses unknown keys.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

ConfigT = TypeVar("ConfigT")


class ConfigError(ValueError):
    """A configuration value or key that cannot be used; the message says which and why."""


def _require(condition: bool, owner: object, message: str) -> None:
    if not condition:
        raise ConfigError(f"{type(owner).__name__}: {message}")


def _require_finite(owner: object) -> None:
    for name, value in vars(owner).items():
        finite = not isinstance(value, float) or math.isfinite(value)
        _require(finite, owner, f"{name} must be finite, got {value}")


@dataclass(frozen=True)
class SystemConfig:
    """The surface, the base station and the field of view."""

    n_h: int = 12
    """RIS elements per row (horizontal, y axis)."""
    n_v: int = 12
    """RIS elements per column (vertical, z axis)."""
    wavelength: float = 0.3
    """Carrier wavelength in metres."""
    spacing: float = 0.15
    """Distance between neighbouring elements in metres (half a wavelength by default)."""
    antennas: int = 16
    """Base-station antennas, M."""
    snapshots: int = 16
    """Snapshots per scene, L."""
    max_sources: int = 5
    """Largest number of sources a scene can hold; also the rank of the predicted covariance."""
    phi_max: float = math.pi / 3
    """Azimuth lies in [-phi_max, phi_max]."""
    theta_max: float = math.pi / 6
    """Elevation lies in [-theta_max, theta_max]."""
    r_min: float = 0.5
    """Smallest range in metres."""
    r_max: float = 10.0
    """Largest range in metres."""
    taper: bool = False
    """Scale each steering entry by r / R_n (spherical spreading)."""

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("n_h", "n_v", "antennas", "snapshots", "max_sources"):
            _require(getattr(self, name) >= 1, self, f"{name} must be at least 1")
        _require(min(self.wavelength, self.spacing) > 0, self, "wavelength, spacing must be > 0")
        _require(0 < self.phi_max < math.pi / 2, self, "phi_max must lie in (0, pi/2)")
        _require(0 < self.theta_max < math.pi / 2, self, "theta_max must lie in (0, pi/2)")
        _require(0 < self.r_min < self.r_max, self, "0 < r_min < r_max is required")

    @property
    def elements(self) -> int:
        """Number of RIS elements, N."""
        return self.n_h * self.n_v


@dataclass(frozen=True)
class SimulationConfig:
    """The distribution that scenes are drawn from."""

    min_sources: int = 1
    """Fewest sources in a scene (the most is ``SystemConfig.max_sources``)."""
    snr_db_min: float = -5.0
    snr_db_max: float = 20.0
    """Signal-to-noise ratio at the base station, drawn uniformly per scene."""
    min_separation: float = 0.5
    """Smallest distance between two sources of a scene, in metres."""
    rician_kappa: float = 3.0
    """Power ratio of the line-of-sight to the scattered part of the RIS-to-base-station channel."""
    codes: Literal["dft", "random", "hadamard"] = "random"
    """Phase code book of the surface."""
    phase_bits: int = 3
    """Phase quantisation of the codes in bits; 0 leaves the phases continuous."""
    symbols: Literal["independent", "static"] = "independent"
    """Source symbols: fresh in every snapshot, or constant over a scene's snapshots."""
    amplitude_jitter: float = 0.0
    """Standard deviation of each code entry's relative amplitude error."""
    phase_error: float = 0.0
    """Standard deviation of each code entry's phase error, in radians."""
    element_dropout: float = 0.0
    """Probability that an element of the surface is dead (amplitude 0) in a scene."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(self.min_sources >= 1, self, "min_sources must be at least 1")
        _require(self.snr_db_min <= self.snr_db_max, self, "snr_db_min must be <= snr_db_max")
        _require(self.min_separation >= 0, self, "min_separation must be >= 0")
        _require(self.rician_kappa >= 0, self, "rician_kappa must be >= 0")
        _require(self.codes in ("dft", "random", "hadamard"), self, f"unknown codes {self.codes!r}")
        _require(self.symbols in ("independent", "static"), self, f"unknown symbols {self.symbols}")
        _require(0 <= self.phase_bits <= 16, self, "phase_bits must lie in [0, 16]")
        _require(self.amplitude_jitter >= 0, self, "amplitude_jitter must be >= 0")
        _require(self.phase_error >= 0, self, "phase_error must be >= 0")
        _require(0 <= self.element_dropout < 1, self, "element_dropout must lie in [0, 1)")


@dataclass(frozen=True)
class CovarianceConfig:
    """How (R_pred, snapshots) become the one covariance that training and inference see."""

    alpha: float = 1e-3
    """Tikhonov parameter of the per-snapshot solves, in units of |Phi|^2."""
    relative: bool = False
    """Use alpha * tr(Phi^H Phi) / N in place of alpha."""
    center: bool = False
    """Subtract the mean snapshot before the outer products."""
    beta: float = 0.3
    """Energy fraction of the sample covariance in the blend."""
    loading: float = 0.0
    """Diagonal loading relative to the mean eigenvalue."""
    shrinkage: float = 0.0
    """Shrinkage weight towards (tr/N) I."""
    target_trace: float | None = None
    """Trace of the blended covariance; the number of elements when left out."""

    def __post_init__(self) -> None:
        _require(math.isfinite(self.alpha) and self.alpha > 0, self, "alpha must be finite and > 0")
        _require_finite(self)
        _require(0 <= self.beta <= 1, self, "beta must lie in [0, 1]")
        _require(self.loading >= 0, self, "loading must be >= 0")
        _require(0 <= self.shrinkage <= 1, self, "shrinkage must lie in [0, 1]")
        trace = self.target_trace
        _require(trace is None or trace > 0, self, "target_trace must be > 0")


@dataclass(frozen=True)
class ModelConfig:
    """The localization network."""

    channels: int = 24
    """Channels of the convolutional encoder of the back-projected images."""
    conv_blocks: int = 2
    """Residual convolution blocks."""
    map_ranges: int = 5
    """Range cells, uniform in 1/r, of the back-projected power map (2 n_h x n_v cells in angle)."""
    width: int = 128
    """Width of the transformer over snapshots."""
    heads: int = 4
    layers: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("channels", "conv_blocks", "map_ranges", "width", "heads", "layers"):
            _require(getattr(self, name) >= 1, self, f"{name} must be at least 1")
        _require(self.width % self.heads == 0, self, "width must be a multiple of heads")
        _require(0 <= self.dropout < 1, self, "dropout must lie in [0, 1)")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; a term of weight 0 is not computed."""

    nmse_blend: float = 1.0
    """Masked NMSE of R_blend against R_true."""
    nmse_pred: float = 0.5
    """Masked NMSE of the normalised R_pred against R_true."""
    subspace: float = 0.2
    """Energy of R_blend outside the span of the true steering vectors."""
    eigengap: float = 0.05
    """Hinge on the ratio of eigenvalues K+1 and K of R_blend."""
    margin: float = 0.05
    """Hinge that keeps K eigenvalues of R_pred above the rest."""
    angle: float = 1.0
    """Wrapped azimuth and elevation error of matched slots."""
    range_log: float = 0.5
    """Squared log-range error of matched slots."""
    existence: float = 0.5
    """Binary cross-entropy of slot existence."""
    lam_diag: float = 0.2
    lam_off: float = 0.8
    """Weights of the diagonal and off-diagonal parts of the NMSE."""
    eigengap_ratio: float = 0.5
    """The eigengap hinge is zero when lambda_{K+1} <= eigengap_ratio * lambda_K."""
    margin_floor: float = 0.02
    """The margin hinge is zero when each of the K leading eigenvalues holds this trace fraction."""
    ridge: float = 1e-4
    """Ridge of the K x K solves in the subspace term."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            _require(math.isfinite(value) and value >= 0, self, f"{spec.name} must be >= 0")
        _require(self.lam_diag + self.lam_off > 0, self, "lam_diag + lam_off must be > 0")
        terms = (self.nmse_blend, self.nmse_pred, self.subspace, self.eigengap, self.margin)
        positions = (self.angle, self.range_log, self.existence)
        _require(sum(terms + positions) > 0, self, "at least one term needs a weight > 0")


@dataclass(frozen=True)
class DataConfig:
    """Where training and validation scenes come from."""

    shards: str | None = None
    """Folder of shards; scenes are simulated on the fly when left out."""
    train_samples: int = 8192
    """Scenes per epoch when simulated; with shards, at most this many are used."""
    val_samples: int = 512
    """Scenes in the fixed validation set."""

    def __post_init__(self) -> None:
        _require(self.train_samples >= 1, self, "train_samples must be at least 1")
        _require(self.val_samples >= 1, self, "val_samples must be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1
    """Batches whose gradients are averaged into one step; an epoch's last group may be short."""
    lr_backbone: float = 1e-3
    lr_head: float = 2e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 25
    """Linear warm-up, followed by a cosine to ``lr_final`` times the peak."""
    lr_final: float = 0.02
    clip_norm: float = 1.0
    """Gradient-norm bound per parameter group."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights; 0 turns it off."""
    swa_start: float = 0.75
    """Fraction of the steps after which weights are averaged (SWA); 1 turns it off."""
    amp: bool = True
    """Mixed precision on CUDA (no effect on the CPU)."""
    patience: int = 10
    """Epochs without a better validation loss before the training stops."""
    seed: int = 0
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    log_every: int = 10
    """Steps between two lines of metrics."""

    def __post_init__(self) -> None:
        _require_finite(self)
        for name in ("epochs", "batch_size", "accumulate", "patience", "log_every"):
            _require(getattr(self, name) >= 1, self, f"{name} must be at least 1")
        _require(self.lr_backbone > 0 and self.lr_head > 0, self, "learning rates must be > 0")
        _require(self.weight_decay >= 0, self, "weight_decay must be >= 0")
        _require(self.warmup_steps >= 0, self, "warmup_steps must be >= 0")
        _require(0 <= self.lr_final <= 1, self, "lr_final must lie in [0, 1]")
        _require(self.clip_norm > 0, self, "clip_norm must be > 0")
        _require(0 <= self.ema_decay < 1, self, "ema_decay must lie in [0, 1)")
        _require(0 <= self.swa_start <= 1, self, "swa_start must lie in [0, 1]")
        _require(0 <= self.seed < 2**63, self, f"seed must lie in [0, 2^63), got {self.seed}")


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that defines a training run."""

    system: SystemConfig = field(default_factory=SystemConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    covariance: CovarianceConfig = field(default_factory=CovarianceConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        least, most = self.simulation.min_sources, self.system.max_sources
        _require(least <= most, self, "simulation.min_sources exceeds system.max_sources")
        _require(most <= self.system.elements, self, "system.max_sources exceeds n_h * n_v")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary of a configuration."""
    return dataclasses.asdict(config)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _coerce(next(o for o in options if o is not type(None)), value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where}: got {value!r}, expected one of {typing.get_args(hint)}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: got {value!r}, expected {hint.__name__}")
    return value


def from_dict(cls: type[ConfigT], data: Any, where: str = "config") -> ConfigT:
    """Build ``cls`` from a nested dictionary; unknown keys and wrong types are refused by name.

    >>> from_dict(CovarianceConfig, {"beta": 0.5}).beta
    0.5
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: got {type(data).__name__}, expected a mapping")
    hints = typing.get_type_hints(cls)
    names = {spec.name for spec in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - names)
    if unknown:
        raise ConfigError(
            f"{where}: unknown key{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}; "
            f"known keys: {', '.join(sorted(names))}"
        )
    return cls(**{k: _coerce(hints[k], v, f"{where}.{k}") for k, v in data.items()})


def save_config(config: Any, path: str | Path) -> None:
    """Write ``config`` as indented JSON."""
    Path(path).write_text(json.dumps(to_dict(config), indent=2) + "\n")


def load_config(cls: type[ConfigT], path: str | Path) -> ConfigT:
    """Read a configuration written by :func:`save_config`."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    return from_dict(cls, data, str(path))
