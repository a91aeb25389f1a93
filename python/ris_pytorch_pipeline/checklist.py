# SPDX-License-Identifier: Apache-2.0
"""Checks that a network, its covariance path and its data hold together.

``fit`` prints them before every training and ``ris checklist`` runs them alone. Nothing that is
passed in is changed: steps are taken on a copy, and the random state is put back.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import config_differences, load_checkpoint
from .configs import ConfigError, CovarianceConfig, ExperimentConfig
from .covariance import require_channel
from .data import open_scenes, resolve_device
from .inference import Inference
from .loss import LocalizationLoss
from .model import LocalizationNet, infer
from .simulate import Scenes

BATCH = 16
STEPS = 8
LEARNING_RATE = 5e-4


@dataclass
class ChecklistReport:
    """Lines of a checklist, in order, and whether all of them passed."""

    lines: list[str] = field(default_factory=list)
    ok: bool = True

    def add(self, line: str, passed: bool) -> None:
        """One check; ``ok=`` is appended to the line if it failed and does not say so."""
        self.lines.append(line if passed or "ok=" in line else f"{line} ok=False")
        self.ok = self.ok and passed


def factor_rank(factor: Tensor) -> Tensor:
    """Rank of X X^H from X [B, N, r], [B] int64.

    Counts eigenvalues of the float64 Gram matrix above (max(N, r) eps)^2 of the largest, with eps
    of the precision that ``factor`` came in: singular values below that are rounding.
    """
    threshold = (max(factor.shape[1:]) * torch.finfo(factor.dtype).eps) ** 2
    wide = factor.detach().to(torch.complex128)
    gram = wide.mH @ wide if wide.shape[2] <= wide.shape[1] else wide @ wide.mH
    broken = ~torch.isfinite(gram).all(-1).all(-1)
    values = torch.linalg.eigvalsh(gram.masked_fill(broken[:, None, None], 0))
    counted: Tensor = ((values > threshold * values[:, -1:]) & (values > 0)).sum(1)
    return counted


def expected_ranks(config: ExperimentConfig) -> tuple[int, int]:
    """Ranks that R_pred and R_blend of a sound network have under ``config``."""
    system, covariance = config.system, config.covariance
    pred = min(system.max_sources, system.elements)
    if covariance.loading > 0 or covariance.shrinkage > 0:
        return pred, system.elements
    sampled = system.snapshots - covariance.center if covariance.beta > 0 else 0
    predicted = pred if covariance.beta < 1 else 0
    return pred, min(predicted + sampled, system.elements)


def _check_channel(report: ChecklistReport, scenes: Scenes) -> bool:
    """Whether the channel is there at all; values that cannot be used are reported."""
    try:
        require_channel(scenes)
    except ValueError as error:
        report.add(f"[CHECK] channel: {error} ok=False", False)
        return False
    energy = torch.view_as_real(scenes.h).square().flatten(1).sum(1)
    dead = int((~(energy > 0)).sum())
    fields = ("y", "h", "codes")
    broken = [name for name in fields if not torch.isfinite(getattr(scenes, name)).all()]
    passed = dead == 0 and not broken
    report.add(
        f"[CHECK] channel: h {list(scenes.h.shape[1:])} in {len(scenes)} scenes, missing={dead} "
        f"non-finite={','.join(broken) or 'none'} ok={passed}",
        passed,
    )
    return True


def _check_ranks(report: ChecklistReport, config: ExperimentConfig, inference: Inference) -> None:
    combined, rho = inference.factors
    rank_pred = int(factor_rank(inference.prediction.factor).min())
    rank_blend = int(factor_rank(combined).min())
    if bool((rho > 0).any()):
        rank_blend = combined.shape[1]
    want_pred, want_blend = expected_ranks(config)
    for name, rank, want in (("R_pred", rank_pred, want_pred), ("R_blend", rank_blend, want_blend)):
        note = "" if rank == want else f" (expected {want}) ok=False"
        report.add(f"[DEBUG] {name} rank: {rank}{note}", rank == want)
    identity = torch.eye(combined.shape[1], device=combined.device)
    dense = combined @ combined.mH + rho[:, None, None] * identity
    norm = torch.linalg.vector_norm
    error = float(norm(dense - inference.r_blend) / norm(dense))
    passed = error < 1e-4
    report.add(f"[CHECK] R_blend from factors: relative error {error:.1e} ok={passed}", passed)


def _check_learning(
    report: ChecklistReport, loss: LocalizationLoss, net: LocalizationNet, scenes: Scenes
) -> None:
    """Gradients of both groups, and a few steps on one batch, on a copy of the network."""
    # Without dropout, whose noise could hide a small decrease.
    trial = copy.deepcopy(net).eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(trial.parameters(), lr=LEARNING_RATE)
    losses: list[float] = []
    for step in range(STEPS + 1):
        total = loss(infer(trial, scenes), scenes)["total"]
        losses.append(float(total.detach()))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        if step == 0:
            norms = {
                name: float(torch.nn.utils.clip_grad_norm_(group, math.inf))
                for name, group in trial.parameter_groups().items()
            }
            passed = all(math.isfinite(n) and n > 0 for n in norms.values())
            shown = " ".join(f"{name}={norm:.2e}" for name, norm in norms.items())
            report.add(f"[GRAD] {shown} ok={passed}", passed)
        torch.nn.utils.clip_grad_norm_(trial.parameters(), 1.0)
        optimizer.step()
    passed = losses[-1] < losses[0]
    report.add(
        f"[CHECK] loss decreases: {losses[0]:.4f} -> {losses[-1]:.4f} in {STEPS} steps ok={passed}",
        passed,
    )


def run_checklist(
    config: ExperimentConfig, net: LocalizationNet, scenes: Scenes, *, batch: int = BATCH
) -> ChecklistReport:
    """Check ``net`` on the first ``batch`` of ``scenes`` (on the network's device).

    The report's lines are the gradient norms per group, the ranks of R_pred and R_blend, the
    channel, whether a few steps on one batch lower the loss, and whether validation is finite.
    """
    report = ChecklistReport()
    scenes = scenes[:batch]
    devices = [scenes.y.device] if scenes.y.is_cuda else []
    loss = LocalizationLoss(config.system, config.loss, config.covariance, config.train.covariance)
    with torch.random.fork_rng(devices=devices):
        if not _check_channel(report, scenes):
            return report
        _check_learning(report, loss, net, scenes)
        was_training = net.training
        net.eval()
        with torch.no_grad():
            inference = infer(net, scenes)
            _check_ranks(report, config, inference)
            value = float(loss(inference, scenes)["total"])
        net.train(was_training)
    passed = math.isfinite(value)
    report.add(f"[CHECK] validation finite: {value:.4f} ok={passed}", passed)
    return report


def main(config: ExperimentConfig | None = None, checkpoint: str | Path | None = None) -> int:
    """Run the checklist alone, print its lines and return the exit status (0: all passed).

    Args:
        config: the experiment to check; the checkpoint's, or the default, when left out. Its data
            section says where the scenes come from.
        checkpoint: folder of the network to check; a freshly made network when left out.
    """
    expect: CovarianceConfig | None = None if config is None else config.covariance
    loaded = None if checkpoint is None else load_checkpoint(checkpoint, expect=expect)
    if loaded is not None and config is not None and loaded.config.system != config.system:
        raise ConfigError(
            f"{checkpoint}: made for another system (saved -> wanted): "
            + ", ".join(config_differences(loaded.config.system, config.system))
        )
    config = config or (loaded.config if loaded is not None else ExperimentConfig())
    device = resolve_device(config.train.device)
    if loaded is not None:
        net = loaded.net
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            net = LocalizationNet(config.system, config.model, config.covariance)
    scenes = open_scenes(config, device).validation[0]
    report = run_checklist(config, net.to(device), scenes)
    print("\n".join(report.lines))
    print("checklist passed" if report.ok else "checklist FAILED")
    return 0 if report.ok else 1
