# SPDX-License-Identifier: Apache-2.0
"""The localization network: snapshots in, predicted factor and source positions out.

Three views of a scene are encoded. Every back-projected snapshot a_l is a complex image of the
surface and goes through a CNN; with an embedding of (y_l, H c_l, SNR) it becomes one token, and a
transformer without positional code works on the L exchangeable tokens. The third view is the
power map ``sum_l |a(g)^H a_l|^2`` over a coarse grid of the field of view. Its highest local maxima
start the slots: a slot is a query made from the map around its maximum, refined by attention among
the slots and to snapshots and map, and its position is the maximum plus a learned offset. The
factor's columns are the steering vectors of those positions times a learned complex correction,
so that the predicted covariance obeys the geometry from the first step on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .configs import ConfigError, CovarianceConfig, ModelConfig, SystemConfig
from .covariance import back_projected_snapshots
from .geometry import steering
from .inference import Inference
from .simulate import Scenes

POWER_FLOOR = 1e-3
"""Every column keeps this share of an equal split of the trace, so that R_pred has rank K_max."""
NORM_EPS = 1e-12


@dataclass(frozen=True)
class Prediction:
    """What the network says about a batch of scenes; slots are in no particular order."""

    factor: Tensor
    """A [B, N, K_max] complex64, R_pred = A A^H. Column k is a unit vector times sqrt(N w_k) with
    learned power fractions w_k > 0, sum_k w_k = 1; hence tr R_pred = N."""
    phi: Tensor
    """Azimuth [B, K_max] in [-phi_max, phi_max]."""
    theta: Tensor
    """Elevation [B, K_max] in [-theta_max, theta_max]."""
    r: Tensor
    """Range [B, K_max] in [r_min, r_max]."""
    existence: Tensor
    """Logits [B, K_max] that the slot holds a source."""
    snapshots: Tensor
    """The back-projected snapshots a_l [B, L, N] that the network saw."""


class _Attention(nn.Module):
    """Multi-head attention of x [B, Q, W] to memory [B, T, W], with pre-normalised x."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        source = x if memory is None else memory
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pair = self.key_value(source).unflatten(-1, (2, self.heads, -1))
        key, value = (t.transpose(1, 2) for t in pair.unbind(2))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class _Layer(nn.Module):
    """Transformer layer: self-attention, attention to a memory where there is one, MLP."""

    def __init__(self, model: ModelConfig, *, memory: bool) -> None:
        super().__init__()
        width = model.width
        self.attend_self = _Attention(width, model.heads, model.dropout)
        self.attend_memory = _Attention(width, model.heads, model.dropout) if memory else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(model.dropout),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = x + self.attend_self(x)
        if self.attend_memory is not None:
            x = x + self.attend_memory(x, memory)
        x = x + self.mlp(x)
        return x


class _ConvBlock(nn.Module):
    """Residual pair of 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.second(F.relu(self.first(self.norm(x))))
        return x


def _encoder(inputs: int, model: ModelConfig, *, stride: int) -> nn.Sequential:
    stem = nn.Conv2d(inputs, model.channels, 3, stride=stride, padding=1)
    blocks = [_ConvBlock(model.channels) for _ in range(model.conv_blocks)]
    return nn.Sequential(stem, nn.ReLU(), *blocks)


def _channels(x: Tensor) -> Tensor:
    """Complex [..., M] to float32 [..., 2M]."""
    return torch.view_as_real(x.to(torch.complex64)).flatten(-2)


def _unit_power(x: Tensor) -> Tensor:
    """Complex [B, ...] scaled to mean |x|^2 = 1 per scene."""
    power = torch.view_as_real(x).square().flatten(1).mean(1, keepdim=True) * 2
    return x * power.clamp_min(NORM_EPS**2).rsqrt().reshape(-1, *(1,) * (x.ndim - 1))


class LocalizationNet(nn.Module):
    """CNN + transformer over snapshots, for any surface, base station and K_max.

    Args:
        system: geometry and field of view; fixes every size of the network's inputs and outputs.
        model: sizes of the layers.
        covariance: how snapshots are back-projected; :func:`infer` blends with the same one.
    """

    cells: Tensor
    grid: Tensor

    def __init__(
        self, system: SystemConfig, model: ModelConfig, covariance: CovarianceConfig
    ) -> None:
        super().__init__()
        self.system, self.model, self.covariance = system, model, covariance
        width, slots, elements = model.width, system.max_sources, system.elements
        self.map_shape = (model.map_ranges, system.n_v, 2 * system.n_h)
        self._make_grid()

        image_size = ((system.n_v + 1) // 2) * ((system.n_h + 1) // 2)
        self.image_encoder = _encoder(2, model, stride=2)
        self.image_token = nn.Linear(model.channels * image_size, width)
        self.measurement_token = nn.Sequential(
            nn.Linear(4 * system.antennas + 1, width), nn.GELU(), nn.Linear(width, width)
        )
        self.snapshot_layers = nn.ModuleList(
            _Layer(model, memory=False) for _ in range(model.layers)
        )
        self.map_encoder = _encoder(model.map_ranges + 3, model, stride=1)
        self.map_token = nn.Conv2d(model.channels, width, 3, stride=2, padding=1)
        self.slot_token = nn.Linear(model.channels + 9 * model.map_ranges + 5, width)
        self.slot_rank = nn.Parameter(0.02 * torch.randn(slots, width))
        self.slot_layers = nn.ModuleList(_Layer(model, memory=True) for _ in range(model.layers))

        self.head_norm = nn.LayerNorm(width)
        self.position = nn.Linear(width, 3)
        self.existence = nn.Linear(width, 1)
        self.power = nn.Linear(width, 1)
        self.correction = nn.Linear(width, 2 * elements)
        for layer, scale in ((self.position, 0.1), (self.power, 0.1), (self.correction, 0.1)):
            nn.init.trunc_normal_(layer.weight, std=scale * width**-0.5)
            nn.init.zeros_(layer.bias)

    def _make_grid(self) -> None:
        """Cells of the power map and their steering vectors (buffers, not saved)."""
        system = self.system
        fractions = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in self.map_shape]
        inverse = 1 / system.r_max + fractions[0] * (1 / system.r_min - 1 / system.r_max)
        ratio = torch.log(1 / (inverse * system.r_min))
        fractions[0] = ratio / torch.log(torch.tensor(system.r_max / system.r_min))
        cells = torch.stack(torch.meshgrid(*fractions, indexing="ij")[::-1], dim=-1)
        cells = cells.reshape(-1, 3)
        vectors = steering(system, *self._positions(cells), dtype=torch.complex64)
        self.register_buffer("cells", cells.float(), persistent=False)
        # a(g)^H x as one real product: [Re x, Im x] @ [[Re a, -Im a], [Im a, Re a]] = [Re, Im].
        real, imag = vectors.real.mT, vectors.imag.mT
        product = torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)])
        self.register_buffer("grid", product.contiguous(), persistent=False)

    def _positions(self, fraction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(phi, theta, r) of fractions [..., 3] in [0, 1] of the field of view (r: log scale)."""
        system = self.system
        phi, theta, r = fraction.unbind(-1)
        r = system.r_min * (system.r_max / system.r_min) ** r
        return (
            (2 * phi - 1) * system.phi_max,
            (2 * theta - 1) * system.theta_max,
            r.clamp(system.r_min, system.r_max),
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the two groups that are clipped, checked and scheduled on their own."""
        heads = (self.head_norm, self.position, self.existence, self.power, self.correction)
        head = [p for module in heads for p in module.parameters()]
        chosen = {id(p) for p in head}
        return {"backbone": [p for p in self.parameters() if id(p) not in chosen], "head": head}

    def forward(self, scenes: Scenes, snapshots: Tensor | None = None) -> Prediction:
        """Factor, positions and existence of every slot, for B scenes.

        ``snapshots`` are the scenes' back-projected snapshots [B, L, N] where they are at hand.
        """
        if snapshots is None:
            snapshots = back_projected_snapshots(scenes, self.covariance)
        images = _unit_power(snapshots.to(torch.complex64))
        snr = scenes.snr_db.float() / 20
        if not self.model.known_snr:
            snr = torch.zeros_like(snr)
        power = self._power_map(images)
        features = self._map_features(power, snr)
        slots, start = self._start_slots(power, features)
        memory = torch.cat(
            [
                self._snapshot_tokens(images, scenes, snr),
                self.map_token(features).flatten(2).transpose(1, 2),
            ],
            dim=1,
        )
        for layer in self.slot_layers:
            slots = layer(slots, memory)
        return self._heads(self.head_norm(slots), start, snapshots)

    def _power_map(self, images: Tensor) -> Tensor:
        """log mean_l |a(g)^H a_l|^2, [B, ranges, n_v, 2 n_h]; 0 for white snapshots."""
        with torch.autocast(images.device.type, enabled=False):
            beams = torch.cat([images.real, images.imag], dim=-1) @ self.grid
            real, imag = beams.square().mean(1).chunk(2, dim=-1)
        return torch.log(real + imag + 1e-3).reshape(-1, *self.map_shape)

    def _map_features(self, power: Tensor, snr: Tensor) -> Tensor:
        batch, _, rows, columns = power.shape
        place = self.cells[: rows * columns, :2].T.reshape(1, 2, rows, columns) - 0.5
        level = snr[:, None, None, None].expand(batch, 1, rows, columns)
        features: Tensor = self.map_encoder(
            torch.cat([power, place.expand(batch, -1, -1, -1), level], dim=1)
        )
        return features

    def _snapshot_tokens(self, images: Tensor, scenes: Scenes, snr: Tensor) -> Tensor:
        batch, count, _ = images.shape
        system = self.system
        pictures = torch.view_as_real(images).reshape(-1, system.n_v, system.n_h, 2)
        # [B, L, n_v, n_h, 2] in memory is channels-last already.
        encoded = self.image_encoder(pictures.permute(0, 3, 1, 2))
        reflected = scenes.codes @ scenes.h.mT
        measured = [_channels(_unit_power(scenes.y)), _channels(_unit_power(reflected))]
        measured.append(snr[:, None, None].expand(batch, count, 1))
        tokens: Tensor = self.image_token(encoded.flatten(1)).reshape(batch, count, -1)
        tokens = tokens + self.measurement_token(torch.cat(measured, dim=-1))
        for layer in self.snapshot_layers:
            tokens = layer(tokens)
        return tokens

    def _start_slots(self, power: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Slot queries [B, K, W] and starting logits [B, K, 3] from the highest local maxima."""
        best, best_range = power.max(dim=1)
        neighbours = F.max_pool2d(best[:, None], 3, stride=1, padding=1)[:, 0]
        peaks = best.masked_fill(best < neighbours, float("-inf")).flatten(1)
        cell = peaks.topk(self.system.max_sources, dim=1).indices
        height = best.flatten(1).gather(1, cell)
        in_grid = best_range.flatten(1).gather(1, cell) * best[0].numel() + cell
        fraction = self.cells[in_grid]
        patches = F.unfold(power, 3, padding=1)
        around = patches.gather(2, cell[:, None].expand(-1, patches.shape[1], -1)).transpose(1, 2)
        local = features.flatten(2).gather(2, cell[:, None].expand(-1, features.shape[1], -1))
        level = torch.stack([height, height - height[:, :1]], dim=-1)
        query = [local.transpose(1, 2), around - height[..., None], level, fraction - 0.5]
        return self.slot_token(torch.cat(query, dim=-1)) + self.slot_rank, torch.logit(fraction)

    def _heads(self, slots: Tensor, start: Tensor, snapshots: Tensor) -> Prediction:
        fraction = torch.sigmoid(start + self.position(slots).float())
        phi, theta, r = self._positions(fraction)
        correction = self.correction(slots).float().unflatten(-1, (-1, 2))
        columns = steering(self.system, phi, theta, r) * (1 + torch.view_as_complex(correction))
        norm = torch.view_as_real(columns).square().sum((-2, -1)).clamp_min(NORM_EPS)
        count, elements = columns.shape[1:]
        share = torch.softmax(self.power(slots)[..., 0].float(), dim=-1)
        share = (1 - POWER_FLOOR) * share + POWER_FLOOR / count
        columns = columns * (share * elements / norm).sqrt()[..., None]
        existence = self.existence(slots)[..., 0].float()
        return Prediction(columns.mT, phi, theta, r, existence, snapshots)


def infer(
    net: LocalizationNet, scenes: Scenes, config: CovarianceConfig | None = None
) -> Inference:
    """The one pass of training, validation, inference and tuning: ``scenes -> R_blend``.

    ``config`` must be the configuration that the network was made with (the default): another one
    would blend with something the network was not trained for, and is refused. A checkpoint is
    given another configuration knowingly by ``load_checkpoint(..., allow_mismatch=True)``.
    """
    if config is not None and config != net.covariance:
        raise ConfigError(
            f"infer: got {config}, but the network was made with {net.covariance}; "
            "load the checkpoint with the wanted configuration and allow_mismatch=True"
        )
    return Inference(net(scenes), scenes, net.covariance)
