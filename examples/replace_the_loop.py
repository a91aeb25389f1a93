# SPDX-License-Identifier: Apache-2.0
"""Replace the loop of a trainer by one call: the losses agree, the step takes a fraction."""

import time

import torch
from torch import nn

import riskernels
from ris_pytorch_pipeline.configs import SimulationConfig, SystemConfig
from ris_pytorch_pipeline.simulate import Simulator, true_covariance

ALPHA, BATCH, SYSTEM = 1e-3, 4, SystemConfig()


def sample_covariance_loop(y, h, codes):
    """Before: for every snapshot of every scene, a solve of N x N."""
    covariance = torch.zeros(len(y), codes.shape[2], codes.shape[2], dtype=y.dtype)
    for b in range(y.shape[0]):
        for snapshot in range(y.shape[1]):
            phi = h[b] * codes[b, snapshot]
            system = phi.mH @ phi + ALPHA * torch.eye(phi.shape[1])
            a = torch.linalg.solve(system, phi.mH @ y[b, snapshot])
            covariance[b] += torch.outer(a, a.conj()) / y.shape[1]
    return covariance


def sample_covariance_kernel(y, h, codes):
    """After."""
    return riskernels.tikhonov_covariance(y, h, codes, ALPHA)


def train(sample_covariance, steps=6):
    """The trainer, which stays as it is; returns the losses and the shortest step in seconds."""
    torch.manual_seed(0)
    simulator = Simulator(SYSTEM, SimulationConfig(), seed=0, split="train")
    inputs, outputs = SYSTEM.snapshots * SYSTEM.antennas, SYSTEM.elements * SYSTEM.max_sources
    net = nn.Sequential(nn.Linear(2 * inputs, 64), nn.GELU(), nn.Linear(64, 2 * outputs))
    optimizer = torch.optim.AdamW(net.parameters())
    losses, seconds = [], []
    for scenes in (simulator.batch(BATCH) for _ in range(steps)):
        start = time.perf_counter()
        pairs = net(torch.view_as_real(scenes.y).flatten(1)).view(BATCH, SYSTEM.elements, -1, 2)
        factor = torch.view_as_complex(pairs)
        r_samp = sample_covariance(scenes.y, scenes.h, scenes.codes)
        blend = riskernels.blend_covariance(factor @ factor.mH, r_samp, beta=0.3)
        loss = riskernels.hermitian_nmse(blend, true_covariance(SYSTEM, scenes)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return torch.tensor(losses), min(seconds)


(before, slow), (after, fast) = train(sample_covariance_loop), train(sample_covariance_kernel)
print(f"losses differ by {((after - before) / before).abs().max():.1e} at most (relative)")
print(f"step {1e3 * slow:.1f} ms -> {1e3 * fast:.1f} ms, {slow / fast:.1f} times faster")
