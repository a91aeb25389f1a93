# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite: scenes that are the same for everyone, from seeds alone.

A cell is a number of sources and a signal-to-noise ratio. Its scenes come in blocks of
:data:`BLOCK`, each from a random stream of its own that is named by suite, cell and block. So a
scene depends neither on which other cells are drawn nor on how many scenes a cell has: more scenes
extend the earlier ones. They are drawn on the CPU, whatever device they are used on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F  # noqa: N812

from .configs import ConfigError, SimulationConfig, SystemConfig
from .simulate import DrawnScenes, Scenes, Simulator

VERSION = 1
"""Raised with every change of what a scene of the suite is; results of two versions do not
compare."""
SEED = 20_000
BLOCK = 20
"""Scenes drawn from one random stream."""
COUNTS = (1, 2, 3, 5)
SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
SCENES = 200
"""Scenes of a cell, when nothing else is asked for."""


@dataclass(frozen=True, order=True)
class Cell:
    """All scenes with ``num_sources`` sources at ``snr_db``."""

    num_sources: int
    snr_db: float

    def __str__(self) -> str:
        return f"K = {self.num_sources}, {self.snr_db:g} dB"


@dataclass(frozen=True)
class Suite:
    """Cells, how many scenes each has, and the system that they are drawn for.

    Scenes have exact spherical waves, a Rician channel, random 3-bit codes, symbols that are fresh
    in every snapshot, and sources at least 0.5 m apart.

    >>> suite = Suite(counts=(2,), snrs_db=(10.0,), scenes=3)
    >>> drawn = suite.draw(suite.cells[0], 0, 3)
    >>> drawn.scenes.num_sources.tolist(), drawn.scenes.phi.shape
    ([2, 2, 2], torch.Size([3, 5]))
    """

    counts: tuple[int, ...] = COUNTS
    snrs_db: tuple[float, ...] = SNRS_DB
    scenes: int = SCENES
    system: SystemConfig = field(default_factory=SystemConfig)

    def __post_init__(self) -> None:
        for name, chosen, known in (
            ("counts", self.counts, COUNTS),
            ("snrs_db", self.snrs_db, SNRS_DB),
        ):
            outside = [value for value in chosen if value not in known]
            if outside or not chosen or len(set(chosen)) < len(chosen):
                raise ConfigError(
                    f"Suite: {name} is {list(chosen)}, expected some of {list(known)}, each once"
                )
        if self.scenes < 1:
            raise ConfigError(f"Suite: scenes is {self.scenes}, expected at least 1")
        if max(self.counts) > self.system.max_sources:
            raise ConfigError(
                f"Suite: counts go up to {max(self.counts)}, but system.max_sources is "
                f"{self.system.max_sources}"
            )

    @property
    def cells(self) -> list[Cell]:
        """Every cell, by number of sources and then by SNR."""
        return [Cell(k, snr) for k in sorted(self.counts) for snr in sorted(self.snrs_db)]

    def draw(self, cell: Cell, start: int, stop: int) -> DrawnScenes:
        """Scenes ``start`` to ``stop`` (left out) of ``cell``; ``start`` begins a block."""
        if start % BLOCK or not 0 <= start < stop:
            raise ValueError(
                f"Suite.draw: scenes {start} to {stop}, expected a start at a multiple of {BLOCK} "
                "below the end"
            )
        blocks = [self._block(cell, number) for number in range(start // BLOCK, -(-stop // BLOCK))]
        size = stop - start
        return DrawnScenes(
            Scenes.concat([block.scenes for block in blocks])[:size],
            torch.cat([block.symbols for block in blocks])[:size],
            torch.cat([block.noise_power for block in blocks])[:size],
        )

    def simulation(self, cell: Cell) -> SimulationConfig:
        """The distribution of the cell's scenes. Every value stands here, for defaults change."""
        return SimulationConfig(
            min_sources=cell.num_sources,
            snr_db_min=cell.snr_db,
            snr_db_max=cell.snr_db,
            min_separation=0.5,
            rician_kappa=3.0,
            codes="random",
            phase_bits=3,
            symbols="independent",
        )

    def _block(self, cell: Cell, number: int) -> DrawnScenes:
        stream = f"suite {VERSION} K={cell.num_sources} SNR={cell.snr_db:g} block {number}"
        # With as many slots as sources, the number of sources is not drawn; the rest is padding.
        exact = replace(self.system, max_sources=cell.num_sources)
        drawn = Simulator(exact, self.simulation(cell), seed=SEED, split=stream).draw(BLOCK)
        slots = (0, self.system.max_sources - cell.num_sources)
        scenes = drawn.scenes
        return replace(
            drawn,
            scenes=replace(
                scenes,
                phi=F.pad(scenes.phi, slots),
                theta=F.pad(scenes.theta, slots),
                r=F.pad(scenes.r, slots, value=self.system.r_max),
                power=F.pad(scenes.power, slots),
            ),
            symbols=F.pad(drawn.symbols, slots),
        )

    def fingerprint(self) -> str:
        """Digest of source positions in every cell that the system allows, asked for or not.

        It is the same wherever the suite is. Positions are the first draws of a stream, rounded to
        millimetres and milliradians, beyond which machines need not agree.
        """
        digest = hashlib.sha256(f"suite {VERSION}".encode())
        counts = tuple(count for count in COUNTS if count <= self.system.max_sources)
        for cell in replace(self, counts=counts, snrs_db=SNRS_DB).cells:
            scenes = self.draw(cell, 0, 1).scenes
            for value in (scenes.phi, scenes.theta, scenes.r):
                digest.update((value * 1000).round().to(torch.int32).numpy().tobytes())
        return digest.hexdigest()[:16]
