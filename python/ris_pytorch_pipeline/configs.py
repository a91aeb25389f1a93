# SPDX-License-Identifier: Apache-2.0
"""Configuration of every part of the pipeline, as frozen dataclasses.

Lengths are metres, angles radians, powers linear unless a name ends in ``_db``. Each class checks
its own values when it is made, so a wrong value is refused before any work starts. A run saves its
:class:`ExperimentConfig` as JSON beside its results, and :func:`from_dict` refuses unknown keys.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from .config_io import (
    ConfigError,
    ConfigT,
    from_dict,
    load_config,
    require,
    require_counts,
    require_finite,
    require_not_negative,
    require_positive,
    require_range,
    save_config,
    to_dict,
)

__all__ = [
    "ConfigError",
    "ConfigT",
    "CovarianceConfig",
    "DataConfig",
    "ExperimentConfig",
    "LossConfig",
    "ModelConfig",
    "SimulationConfig",
    "SystemConfig",
    "TrainConfig",
    "from_dict",
    "load_config",
    "save_config",
    "to_dict",
]


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
        require_finite(self)
        require_counts(self, "n_h n_v antennas snapshots max_sources", 2**16)
        require_positive(self, "wavelength spacing r_min")
        angle = "above 0 and below pi/2"
        require_range(self, "phi_max theta_max", lambda x: 0 < x < math.pi / 2, angle)
        r_min, r_max = self.r_min, self.r_max
        require(r_min < r_max, self, f"r_max is {r_max}, expected more than r_min {r_min}")

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
    """Lowest signal-to-noise ratio at the base station; a scene's is drawn uniformly in dB."""
    snr_db_max: float = 20.0
    """Highest signal-to-noise ratio at the base station."""
    min_separation: float = 0.5
    """Smallest distance between two sources of a scene, in metres."""
    rician_kappa: float = 3.0
    """Power ratio of the line-of-sight to the scattered part of the RIS-to-base-station channel.

    A large value (1e30) leaves the line of sight alone.
    """
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
        require_finite(self)
        require_counts(self, "min_sources")
        low, high = self.snr_db_min, self.snr_db_max
        require(low <= high, self, f"snr_db_max is {high}, expected at least snr_db_min {low}")
        require_not_negative(self, "min_separation rician_kappa amplitude_jitter phase_error")
        require(self.codes in ("dft", "random", "hadamard"), self, f"unknown codes {self.codes!r}")
        require(self.symbols in ("independent", "static"), self, f"unknown symbols {self.symbols}")
        require_range(self, "phase_bits", lambda x: 0 <= x <= 16, "0 to 16")
        require_range(self, "element_dropout", lambda x: 0 <= x < 1, "at least 0 and below 1")


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
        require_finite(self)
        require_positive(self, "alpha")
        require_range(self, "beta shrinkage", lambda x: 0 <= x <= 1, "0 to 1")
        require_not_negative(self, "loading")
        if self.target_trace is not None:
            require_positive(self, "target_trace")


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
    """Attention heads of every transformer layer; they divide ``width``."""
    layers: int = 2
    """Transformer layers over the snapshots, and as many over the slots."""
    dropout: float = 0.0
    """Probability of dropping an activation in the transformer layers."""
    known_snr: bool = True
    """Tell the network each scene's signal-to-noise ratio, which its user then has to know."""

    def __post_init__(self) -> None:
        require_finite(self)
        require_counts(self, "channels map_ranges width heads", 2**16)
        require_counts(self, "conv_blocks layers", 2**8)
        multiple = self.width % self.heads == 0
        require(multiple, self, f"width is {self.width}, expected a multiple of heads {self.heads}")
        require_range(self, "dropout", lambda x: 0 <= x < 1, "at least 0 and below 1")


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
    """Weight of the diagonal part of the NMSE."""
    lam_off: float = 0.8
    """Weight of the off-diagonal part of the NMSE."""
    eigengap_ratio: float = 0.5
    """The eigengap hinge is zero when lambda_{K+1} <= eigengap_ratio * lambda_K."""
    margin_floor: float = 0.02
    """The margin hinge is zero when each of the K leading eigenvalues holds this trace fraction.

    A tenth of an equal split over five slots: simulated scenes lie above it all but always, so
    the hinge acts on collapsing columns and leaves the powers of sources to the other terms.
    """
    ridge: float = 1e-4
    """Ridge of the K x K solves in the subspace term."""

    def __post_init__(self) -> None:
        require_finite(self)
        require_not_negative(self, " ".join(spec.name for spec in dataclasses.fields(self)))
        require(self.lam_diag + self.lam_off > 0, self, "lam_diag and lam_off are both 0")
        terms = (self.nmse_blend, self.nmse_pred, self.subspace, self.eigengap, self.margin)
        positions = (self.angle, self.range_log, self.existence)
        require(sum(terms + positions) > 0, self, "at least one term needs a weight > 0")


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
        require_counts(self, "train_samples val_samples")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    epochs: int = 10
    """Passes over the training data; simulated scenes are fresh in each."""
    batch_size: int = 64
    """Scenes per batch."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step; an epoch's last group may be short."""
    lr_backbone: float = 1e-3
    """Peak learning rate of the encoders and transformers."""
    lr_head: float = 2e-3
    """Peak learning rate of the output heads."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW on weight matrices."""
    warmup_steps: int = 25
    """Linear warm-up, followed by a cosine to ``lr_final`` times the peak."""
    lr_final: float = 0.02
    """Learning rate at the last step, as a fraction of the peak."""
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
    """Seed of the initial weights, the simulated scenes and the order of stored ones."""
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    covariance: Literal["auto", "dense", "factored"] = "auto"
    """Form in which the loss computes with covariances; the loss is the same in both.

    ``dense`` N x N matrices, or their N x (K_max + L) factors alone. ``auto`` is the one that is
    faster on the CPU.
    """
    log_every: int = 10
    """Steps between two lines of metrics."""
    checkpoint_every: int = 500
    """Steps between two saves within an epoch; 0 saves at its end alone."""
    process_timeout: float = 300.0
    """Seconds for which the processes of a training wait for each other before they give up."""

    def __post_init__(self) -> None:
        require_finite(self)
        require_counts(self, "epochs batch_size accumulate patience log_every")
        require_positive(self, "lr_backbone lr_head clip_norm process_timeout")
        require_not_negative(self, "weight_decay warmup_steps checkpoint_every")
        require_range(self, "lr_final swa_start", lambda x: 0 <= x <= 1, "0 to 1")
        require_range(self, "ema_decay", lambda x: 0 <= x < 1, "at least 0 and below 1")
        require_range(self, "seed", lambda x: 0 <= x < 2**63, "at least 0 and below 2^63")
        form = self.covariance
        require(form in ("auto", "dense", "factored"), self, f"unknown covariance {form!r}")


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
        require(
            least <= most, self, f"simulation.min_sources {least} exceeds system.max_sources {most}"
        )
        count = self.system.elements
        require(most <= count, self, f"system.max_sources {most} exceeds n_h * n_v = {count}")
