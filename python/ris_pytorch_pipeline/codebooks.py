# SPDX-License-Identifier: Apache-2.0
"""Phase codes of the surface: ideal code books, their quantisation and hardware impairments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .configs import SimulationConfig, SystemConfig


class CodeBook:
    """Draws the codes c_l of a batch of scenes, ``[B, L, N]`` complex64.

    Ideal codes have unit modulus and phases rounded to ``phase_bits`` (0: not rounded).

    - ``random``: every phase drawn uniformly.
    - ``dft``: L distinct columns of the 2-D DFT of the surface. Column (a, b) has phase
      2 pi (a h / n_h + b v / n_v) at element n = v n_h + h.
    - ``hadamard``: L distinct rows (-1)^popcount(i & n) of the Sylvester matrix whose order is the
      first power of two >= N, cut to N entries. Cut rows stay distinct, and are orthogonal where N
      is a power of two.

    Where L exceeds the number of code words, they repeat in the same order. Impairments follow the
    rounding: relative amplitude error, phase error (both Gaussian, per entry) and dead elements
    (per scene). The result is what the surface does and what the receiver is told.

    >>> book = CodeBook(SystemConfig(), SimulationConfig(codes="hadamard"))
    >>> sorted(book.draw(4, torch.Generator()).real.unique().tolist())
    [-1.0, 1.0]
    """

    def __init__(
        self,
        system: SystemConfig,
        simulation: SimulationConfig,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.system = system
        self.simulation = simulation
        self.device = torch.device(device)
        self._element = torch.arange(system.elements, device=self.device)
        self._phasors = self._phasor_table()

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Codes of ``batch`` scenes, ``[B, L, N]``, from a generator on the code book's device."""
        return self._impair(self._ideal(batch, generator), generator)

    def _phasor_table(self) -> Tensor:
        """Rounded unit phasors that the integer draws of :meth:`_ideal` index."""
        bits, elements = self.simulation.phase_bits, self.system.elements
        if self.simulation.codes == "hadamard":
            cycles = torch.tensor((0.0, 0.5), dtype=torch.float64)
        elif self.simulation.codes == "random":
            cycles = torch.arange(2**bits, dtype=torch.float64) / 2**bits
        elif bits:
            # Integer arithmetic, so that ties round alike everywhere.
            step = torch.arange(elements) * 2 ** (bits + 1)
            level = torch.div(step + elements, 2 * elements, rounding_mode="floor")
            cycles = (level % 2**bits).double() / 2**bits
        else:
            cycles = torch.arange(elements, dtype=torch.float64) / elements
        phase = 2 * math.pi * cycles
        return torch.polar(torch.ones_like(phase), phase).to(torch.complex64).to(self.device)

    def _ideal(self, batch: int, generator: torch.Generator) -> Tensor:
        system, simulation = self.system, self.simulation
        shape = (batch, system.snapshots, system.elements)
        if simulation.codes == "random":
            if simulation.phase_bits == 0:
                phase = 2 * math.pi * torch.rand(shape, device=self.device, generator=generator)
                return torch.complex(phase.cos(), phase.sin())
            index = torch.randint(
                2**simulation.phase_bits, shape, device=self.device, generator=generator
            )
        elif simulation.codes == "dft":
            beam = self._distinct(batch, system.elements, generator)[..., None]
            v, h = self._element // system.n_h, self._element % system.n_h
            beam_v, beam_h = beam // system.n_h, beam % system.n_h
            index = (beam_h * h * system.n_v + beam_v * v * system.n_h) % system.elements
        else:
            order = 1 << (system.elements - 1).bit_length()
            index = self._distinct(batch, order, generator)[..., None] & self._element
            for shift in (32, 16, 8, 4, 2, 1):
                index = index ^ (index >> shift)
            index = index & 1
        return self._phasors.index_select(0, index.reshape(-1)).view(shape)

    def _distinct(self, batch: int, words: int, generator: torch.Generator) -> Tensor:
        """Random code words per scene, [B, L], distinct until all ``words`` are used."""
        draw = torch.rand(batch, words, device=self.device, generator=generator)
        snapshot = torch.arange(self.system.snapshots, device=self.device)
        return draw.argsort(-1)[:, snapshot % words]

    def _impair(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        simulation = self.simulation
        if simulation.amplitude_jitter > 0:
            jitter = torch.randn(codes.shape, device=self.device, generator=generator)
            codes = codes * (1 + simulation.amplitude_jitter * jitter).clamp_min(0)
        if simulation.phase_error > 0:
            error = torch.randn(codes.shape, device=self.device, generator=generator)
            error *= simulation.phase_error
            codes = codes * torch.complex(error.cos(), error.sin())
        if simulation.element_dropout > 0:
            shape = (codes.shape[0], 1, codes.shape[2])
            draw = torch.rand(shape, device=self.device, generator=generator)
            # One element always lives, so that a scene has a signal and hence an SNR.
            alive = (draw >= simulation.element_dropout) | (draw == draw.amax(-1, keepdim=True))
            codes = codes * alive
        return codes
