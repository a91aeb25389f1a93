# SPDX-License-Identifier: Apache-2.0
"""Random scenes: sources, channel, codes and received snapshots, drawn in batches on any device.

    y_l = H diag(c_l) A s_l + n_l,      l = 1 ... L

with A the steering vectors of K sources, s_l ~ CN(0, diag(p)), H the channel from the surface to
the base station, c_l the code of snapshot l and n_l white noise. A scene holds what a receiver
knows (y, H, c) and the source parameters that label it; the true covariance is computed from those
(:func:`true_covariance`) and is never stored beside the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .codebooks import CodeBook
from .configs import ConfigError, SimulationConfig, SystemConfig
from .geometry import element_positions, steering, to_cartesian

POWER_SPREAD_DB = 6.0
"""Source powers are drawn uniformly in dB over this span, then normalised to sum 1."""
PLACEMENT_ROUNDS = 512
"""Redraws of source positions before a minimum separation is declared unattainable."""
_RESTART = 16

Index: TypeAlias = "int | slice | Sequence[int] | np.ndarray[Any, Any] | Tensor"


@dataclass(frozen=True, slots=True)
class Scenes:
    """A batch of B scenes. Entries k >= num_sources of the per-source fields are padding."""

    y: Tensor
    """Received snapshots, [B, L, M] complex64."""
    h: Tensor
    """Channel from the surface to the base station, [B, M, N] complex64."""
    codes: Tensor
    """Codes in use, impairments included, [B, L, N] complex64."""
    phi: Tensor
    """Azimuth in radians, [B, K_max] float32; 0 in the padding."""
    theta: Tensor
    """Elevation in radians, [B, K_max] float32; 0 in the padding."""
    r: Tensor
    """Range in metres, [B, K_max] float32; r_max in the padding."""
    num_sources: Tensor
    """Number of sources K, [B] int64."""
    power: Tensor
    """Source powers, summing to 1 per scene, [B, K_max] float32; 0 in the padding."""
    snr_db: Tensor
    """Signal-to-noise ratio at the base station, [B] float32."""

    def __post_init__(self) -> None:
        for name, rank in (("y", 3), ("h", 3), ("phi", 2)):
            shape = tuple(getattr(self, name).shape)
            if len(shape) != rank:
                raise ValueError(f"Scenes: {name} has shape {shape}, expected rank {rank}")
        batch, snapshots, antennas = self.y.shape
        elements, slots = self.h.shape[-1], self.phi.shape[-1]
        expected = {
            "h": (batch, antennas, elements),
            "codes": (batch, snapshots, elements),
            "num_sources": (batch,),
            "snr_db": (batch,),
            **{name: (batch, slots) for name in ("phi", "theta", "r", "power")},
        }
        for name, wanted in expected.items():
            shape = tuple(getattr(self, name).shape)
            if shape != wanted:
                raise ValueError(f"Scenes: {name} has shape {shape}, expected {wanted}")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every field with its name, in order of declaration."""
        return ((spec.name, getattr(self, spec.name)) for spec in dataclasses.fields(self))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Scenes:
        """The same scenes on ``device``."""
        return Scenes(**{k: v.to(device, non_blocking=non_blocking) for k, v in self.tensors()})

    def __len__(self) -> int:
        return self.y.shape[0]

    def __getitem__(self, index: Index) -> Scenes:
        """Scenes at an integer (a batch of one), slice, mask or sequence of indices."""
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"scene {index} of a batch of {len(self)}")
            index = slice(int(index), int(index) + 1 or None)
        return Scenes(**{k: v[index] for k, v in self.tensors()})

    def index_select(self, index: Tensor) -> Scenes:
        """Scenes at a tensor of indices, in its order."""
        return Scenes(**{k: v.index_select(0, index) for k, v in self.tensors()})

    @staticmethod
    def concat(batches: Sequence[Scenes]) -> Scenes:
        """One batch of all scenes, in order."""
        if not batches:
            raise ValueError("Scenes.concat: got no batches, expected at least one")
        names = [name for name, _ in batches[0].tensors()]
        return Scenes(**{name: torch.cat([getattr(b, name) for b in batches]) for name in names})

    @property
    def mask(self) -> Tensor:
        """True where a slot holds a source, [B, K_max]."""
        slots = torch.arange(self.phi.shape[-1], device=self.num_sources.device)
        return slots < self.num_sources[:, None]


@dataclass(frozen=True, slots=True)
class DrawnScenes:
    """Scenes with what no receiver knows, for bounds on what one can find out."""

    scenes: Scenes
    symbols: Tensor
    """s_l, [B, L, K_max] complex64; 0 in the padding. Static symbols repeat over l."""
    noise_power: Tensor
    """sigma^2 per antenna, [B] float64."""


def true_steering(
    system: SystemConfig, scenes: Scenes, *, dtype: torch.dtype = torch.complex64
) -> Tensor:
    """Steering vectors A of the true sources, ``[B, N, K_max]``; zero columns in the padding."""
    columns = steering(system, scenes.phi, scenes.theta, scenes.r, dtype=dtype)
    return (columns * scenes.mask[..., None]).mT


def true_factor(system: SystemConfig, scenes: Scenes, steering: Tensor) -> Tensor:
    """Y = A diag(sqrt(p)) scaled to trace N, ``[B, N, K_max]``: the factor of R_true = Y Y^H.

    ``steering`` is A, from :func:`true_steering`; Y has its dtype.
    """
    factor = steering * scenes.power.sqrt()[:, None, :]
    energy = torch.view_as_real(factor).square().sum((1, 2, 3))
    return factor * (system.elements / energy).sqrt()[:, None, None]


def true_covariance(
    system: SystemConfig,
    scenes: Scenes,
    *,
    steering: Tensor | None = None,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """R_true = A diag(p) A^H scaled to trace N, ``[B, N, N]``; exactly Hermitian, rank K.

    A training target. Nothing derived from it may enter a sample covariance. ``steering`` spares
    the computation of A = ``true_steering(system, scenes, dtype=dtype)`` where it is at hand.
    """
    if steering is None:
        steering = true_steering(system, scenes, dtype=dtype)
    factor = true_factor(system, scenes, steering)
    # A matrix product need not round its (i, j) and (j, i) entries alike.
    half = factor @ (0.5 * factor).mH
    return half + half.mH


def _stream_seeds(seed: int, split: str | int, count: int) -> list[int]:
    """Seeds of ``count`` streams that belong to one split and to no other.

    The spawn key is (0, split) for an integer and (1, SHA-256 words of the name) for a string, so
    streams of different splits are independent children of ``SeedSequence(seed)``.
    """
    if seed < 0:
        raise ConfigError(f"seed is {seed}, expected a non-negative integer")
    key: tuple[int, ...]
    if isinstance(split, str):
        words = np.frombuffer(hashlib.sha256(split.encode()).digest(), "<u4")
        key = (1, *(int(word) for word in words))
    elif split >= 0:
        key = (0, split)
    else:
        raise ConfigError(f"split is {split}, expected a name or a non-negative integer")
    # torch's CPU generator keeps 32 bits of its seed, its CUDA generator all 64.
    return [int(s) for s in np.random.SeedSequence(seed, spawn_key=key).generate_state(count)]


def _kept(drawn: Tensor, part: slice) -> Tensor:
    """The scenes of ``drawn`` in ``part``, without the memory of the others."""
    kept = drawn[part]
    return drawn if len(kept) == len(drawn) else kept.clone()


class Simulator:
    """Draws batches of :class:`Scenes` on ``device``.

    Azimuth, elevation and range are uniform over the field of view (uniform in r, not in volume),
    K is uniform in [min_sources, max_sources], and sources keep ``min_separation``: a source too
    close to one of lower index is redrawn. H is Rician with E|H_mn|^2 = 1/N. Its line of sight is
    the outer product of the response of a half-wavelength base-station array and the surface's
    plane-wave response, at angles drawn per scene. The noise power of a scene is its mean signal
    power over snapshots and antennas divided by the SNR.

    Codes come from :class:`~ris_pytorch_pipeline.codebooks.CodeBook`, impairments included.

    The same seed, split, device type and sequence of batch sizes give the same scenes; source
    parameters are drawn on the host and so are the same on every device, without a device
    synchronisation. Streams of different splits are spawned (see :func:`_stream_seeds`).

    >>> scenes = Simulator(SystemConfig(), SimulationConfig(), seed=0, split="train").batch(8)
    >>> scenes.y.shape, scenes.h.shape, scenes.codes.shape
    (torch.Size([8, 16, 16]), torch.Size([8, 16, 144]), torch.Size([8, 16, 144]))
    """

    def __init__(
        self,
        system: SystemConfig,
        simulation: SimulationConfig,
        *,
        device: torch.device | str = "cpu",
        seed: int,
        split: str | int,
    ) -> None:
        if simulation.min_sources > system.max_sources:
            raise ConfigError(
                f"min_sources is {simulation.min_sources}, expected at most max_sources = "
                f"{system.max_sources}"
            )
        self.system = system
        self.simulation = simulation
        self.device = torch.device(device)
        host_seed, device_seed = _stream_seeds(seed, split, 2)
        self._host = torch.Generator().manual_seed(host_seed)
        self._fields = torch.Generator(self.device).manual_seed(device_seed)
        self._positions = element_positions(system, device=self.device)
        self._antenna = torch.arange(system.antennas, device=self.device, dtype=torch.float32)
        self._codebook = CodeBook(system, simulation, device=self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """State of both random streams; :meth:`load_state_dict` resumes exactly there."""
        return {"host": self._host.get_state(), "fields": self._fields.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state of a simulator on the same type of device."""
        self._host.set_state(state["host"].cpu())
        self._fields.set_state(state["fields"].cpu())

    def batch(self, batch_size: int, part: slice = slice(None)) -> Scenes:
        """Draw ``batch_size`` scenes and make those in ``part``.

        The random numbers of all are drawn, a tenth of the work, so that neither the streams nor a
        scene, up to the rounding of ``y``, depend on the part.
        """
        return self.draw(batch_size, part).scenes

    @torch.no_grad()
    def draw(self, batch_size: int, part: slice = slice(None)) -> DrawnScenes:
        """The scenes of :meth:`batch`, with the symbols and the noise power that made them."""
        if batch_size < 1:
            raise ValueError(f"Simulator.batch: batch_size is {batch_size}, expected at least 1")
        system, simulation = self.system, self.simulation
        num_sources, (phi, theta, r), power = self._draw_sources(batch_size)
        low, high = simulation.snr_db_min, simulation.snr_db_max
        snr_db = low + (high - low) * torch.rand(batch_size, generator=self._host)
        num_sources, phi, theta, r, power, snr_db = (
            _kept(value, part).to(self.device, non_blocking=True)
            for value in (num_sources, phi, theta, r, power, snr_db)
        )
        h = self._draw_channel(batch_size, part)
        codes = _kept(self._codebook.draw(batch_size, self._fields), part)
        columns = steering(system, phi, theta, r, positions=self._positions)
        drawn = 1 if simulation.symbols == "static" else system.snapshots
        symbols = _kept(self._normal(batch_size, drawn, system.max_sources), part)
        symbols = symbols * power.sqrt()[:, None, :]
        signal = ((symbols @ columns) * codes) @ h.mT
        signal_power = torch.view_as_real(signal).square().sum(-1).mean((1, 2))
        noise_scale = (signal_power * torch.pow(10.0, -snr_db / 10)).sqrt()
        noise = _kept(self._normal(batch_size, system.snapshots, system.antennas), part)
        y = signal + noise_scale[:, None, None] * noise
        scenes = Scenes(y, h, codes, phi, theta, r, num_sources, power, snr_db)
        return DrawnScenes(
            scenes, symbols.expand(-1, system.snapshots, -1), noise_scale.double().square()
        )

    def _normal(self, *shape: int) -> Tensor:
        """CN(0, 1) entries."""
        return torch.randn(shape, dtype=torch.complex64, device=self.device, generator=self._fields)

    def _draw_sources(self, batch: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
        slots = self.system.max_sources
        num_sources = torch.randint(
            self.simulation.min_sources, slots + 1, (batch,), generator=self._host
        )
        mask = torch.arange(slots) < num_sources[:, None]
        phi, theta, r = self._place(mask)
        decibel = -POWER_SPREAD_DB * torch.rand(batch, slots, generator=self._host)
        power = torch.pow(10.0, decibel / 10) * mask
        power = power / power.sum(-1, keepdim=True)
        padding = ~mask
        phi, theta = phi.masked_fill(padding, 0.0), theta.masked_fill(padding, 0.0)
        return num_sources, (phi, theta, r.masked_fill(padding, self.system.r_max)), power

    def _place(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the sources marked in ``mask`` [B, K_max], min_separation apart."""
        system, separation = self.system, self.simulation.min_separation
        low = torch.tensor((-system.phi_max, -system.theta_max, system.r_min))
        span = torch.tensor((2 * system.phi_max, 2 * system.theta_max, system.r_max - system.r_min))
        placed = low + span * torch.rand(*mask.shape, 3, generator=self._host)
        earlier = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril(-1)
        scenes = torch.arange(len(mask))
        for attempt in range(1, PLACEMENT_ROUNDS + 1):
            active = mask[scenes]
            points = to_cartesian(*placed[scenes].double().unbind(-1))
            offset = points[:, :, None] - points[:, None]
            close = torch.linalg.vector_norm(offset, dim=-1) < separation
            redraw = (close & earlier & active[:, None, :]).any(-1) & active
            crowded = redraw.any(-1)
            scenes, redraw = scenes[crowded], redraw[crowded]
            if len(scenes) == 0:
                return placed[..., 0], placed[..., 1], placed[..., 2]
            # Early sources can leave no room for the later ones: start such scenes afresh.
            if attempt % _RESTART == 0:
                redraw = torch.ones_like(redraw)
            fresh = low + span * torch.rand(*redraw.shape, 3, generator=self._host)
            placed[scenes] = torch.where(redraw[..., None], fresh, placed[scenes])
        raise ConfigError(
            f"min_separation = {separation:g} m cannot be met for up to {system.max_sources} "
            f"sources in the field of view: {len(scenes)} of {len(mask)} scenes break it after "
            f"{PLACEMENT_ROUNDS} rounds; lower simulation.min_separation or system.max_sources"
        )

    def _draw_channel(self, batch: int, part: slice) -> Tensor:
        """Rician channel, [B, M, N]: both parts have E|.|^2 = 1/N per entry before weighting."""
        system = self.system
        draw = 2 * torch.rand(4, batch, generator=self._host)[:, part] - 1
        phi, theta, arrival, phase = draw.to(self.device, non_blocking=True)
        far = torch.full_like(phi, math.inf)
        # Spreading is relative to the array centre and so vanishes for a plane wave.
        surface = steering(
            system, phi * system.phi_max, theta * system.theta_max, far, positions=self._positions
        )
        # Half-wavelength array: pi m sin(angle), over a sector of +-60 degrees.
        station = math.pi * torch.sin(arrival * (math.pi / 3))[:, None] * self._antenna
        station = station + math.pi * phase[:, None]
        line_of_sight = torch.polar(torch.ones_like(station), station)[..., None] * surface[:, None]
        scatter_weight = 1 / (1 + self.simulation.rician_kappa)
        scatter = _kept(self._normal(batch, system.antennas, system.elements), part)
        # In place on the real numbers: a complex product costs four times as many.
        torch.view_as_real(scatter).mul_(math.sqrt(scatter_weight / system.elements))
        return scatter.add_(line_of_sight, alpha=math.sqrt(1 - scatter_weight))
