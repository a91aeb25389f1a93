# SPDX-License-Identifier: Apache-2.0
"""Learn the phase codes of a surface by gradient descent through `tikhonov_covariance`.

One installation: the channel H is fixed, up to three sources appear anywhere in a sector. The
phases of the L codes are the parameters, the loss is the NMSE of the sample covariance that they
lead to, on fresh scenes in every step; scenes of the validation come from a stream of their own.
"""

import importlib.util

import torch

import riskernels
from ris_pytorch_pipeline.configs import SimulationConfig, SystemConfig
from ris_pytorch_pipeline.simulate import Simulator, true_covariance, true_steering

SYSTEM = SystemConfig(n_h=8, n_v=8, max_sources=3, phi_max=0.5, theta_max=0.25)
L, M, N = SYSTEM.snapshots, SYSTEM.antennas, SYSTEM.elements


def draw(simulator, batch):
    """Field on the surface [B, L, N], noise at the station [B, L, M] and R_true [B, N, N]."""
    scenes = simulator.batch(batch)
    symbols = torch.randn(batch, L, SYSTEM.max_sources, dtype=torch.complex64)
    field = (symbols * scenes.power.sqrt()[:, None]) @ true_steering(SYSTEM, scenes).mT
    # Random codes receive E|y|^2 = 1/N: their SNR is 15 dB.
    noise = (10**-1.5 / N) ** 0.5 * torch.randn(batch, L, M, dtype=torch.complex64)
    return field, noise, true_covariance(SYSTEM, scenes)


def mean_nmse(phases, channel, field, noise, target):
    codes = torch.polar(torch.ones_like(phases), phases).expand(len(field), L, N)
    h = channel.expand(len(field), M, N)
    sample = riskernels.tikhonov_covariance((field * codes) @ h.mT + noise, h, codes)
    trace = sample.diagonal(dim1=1, dim2=2).real.sum(1)
    return riskernels.hermitian_nmse(sample * (N / trace)[:, None, None], target).mean()


torch.manual_seed(0)
channel = Simulator(SYSTEM, SimulationConfig(), seed=0, split="site").batch(1).h
training = Simulator(SYSTEM, SimulationConfig(), seed=0, split="train")
validation = draw(Simulator(SYSTEM, SimulationConfig(), seed=0, split="val"), 256)
phases = (2 * torch.pi * torch.rand(L, N)).requires_grad_()
optimizer = torch.optim.Adam([phases], lr=0.15)
curve = [mean_nmse(phases.detach(), channel, *validation).item()]
for _ in range(80):
    optimizer.zero_grad()
    mean_nmse(phases, channel, *draw(training, 64)).backward()
    optimizer.step()
    curve.append(mean_nmse(phases.detach(), channel, *validation).item())
print(f"validation NMSE {curve[0]:.3f} -> {curve[-1]:.3f} in {len(curve) - 1} steps")
if importlib.util.find_spec("matplotlib") is None:
    print("no plot: matplotlib is not installed (extra: plots)")
else:
    figure = importlib.import_module("matplotlib.figure").Figure((6.4, 3.2), layout="constrained")
    labels = {"xlabel": "step", "ylabel": "validation NMSE of R_samp"}
    figure.subplots(subplot_kw=labels).plot(curve)
    figure.savefig("learned_codebook.png", dpi=150)
