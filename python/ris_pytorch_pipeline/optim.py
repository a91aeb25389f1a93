# SPDX-License-Identifier: Apache-2.0
"""Optimizer, schedule, weight averages and the one place where a training step is taken.

:class:`StepGuard` fixes the order of a step: unscale once, clip each group, check each group, step
or skip, update the scaler, drop the gradients, and only after a real step advance the schedule and
the averages. A step with a non-finite gradient or loss therefore leaves no trace in any of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .configs import TrainConfig

NetT = TypeVar("NetT", bound=nn.Module)


def build_optimizer(
    groups: Mapping[str, list[nn.Parameter]], train: TrainConfig
) -> torch.optim.AdamW:
    """AdamW over the ``backbone`` and ``head`` groups; vectors and biases are not decayed."""
    rates = {"backbone": train.lr_backbone, "head": train.lr_head}
    options = []
    for name, parameters in groups.items():
        for decay, wanted in ((train.weight_decay, True), (0.0, False)):
            chosen = [p for p in parameters if (p.ndim >= 2) is wanted]
            options.append({"params": chosen, "lr": rates[name], "weight_decay": decay})
    return torch.optim.AdamW([group for group in options if group["params"]], fused=True)


def warmup_cosine(
    optimizer: torch.optim.Optimizer, train: TrainConfig, total_steps: int
) -> LambdaLR:
    """Linear warm-up over ``warmup_steps``, then a cosine down to ``lr_final`` of the peak."""

    def factor(step: int) -> float:
        if step < train.warmup_steps:
            return (step + 1) / train.warmup_steps
        span = max(total_steps - train.warmup_steps, 1)
        progress = min((step - train.warmup_steps) / span, 1.0)
        return train.lr_final + (1 - train.lr_final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def load_optimizer(optimizer: torch.optim.AdamW, state: dict[str, Any]) -> None:
    """Continue from a saved state, which must be one of the same parameters and options.

    PyTorch takes moments of any shape, and its fused kernel reads as many entries as the parameter
    has, whatever is there.

    Raises:
        ValueError: names what does not fit.
    """

    def options(group: Mapping[str, Any]) -> dict[str, Any]:
        # The schedule changes the rate; the configuration alone decides everything else.
        return {k: v for k, v in group.items() if k not in ("params", "lr")}

    fresh = [options(group) for group in optimizer.param_groups]
    if [options(group) for group in state["param_groups"]] != fresh:
        raise ValueError("the optimizer's options are not those of the configuration")
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], float) or not math.isfinite(group["lr"]):
            raise ValueError(f"a learning rate is {group['lr']!r}")
        for parameter in group["params"]:
            entries = optimizer.state.get(parameter, {})
            wanted = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            if entries and entries.keys() != wanted.keys():
                raise ValueError(f"the optimizer holds {sorted(entries)} of a parameter")
            for name, value in entries.items():
                if (
                    not isinstance(value, Tensor)
                    or value.shape != wanted[name]
                    or value.dtype != parameter.dtype
                ):
                    raise ValueError(f"the optimizer's {name} does not have its parameter's shape")


def load_schedule(scheduler: LambdaLR, state: dict[str, Any]) -> None:
    """Continue from a saved state; PyTorch would set any attribute of the name of any key.

    Raises:
        ValueError: the state is not one of this schedule.
    """
    fresh = scheduler.state_dict()
    kinds = ({name: type(v) for name, v in values.items()} for values in (state, fresh))
    fixed = ((values["base_lrs"], values["lr_lambdas"]) for values in (state, fresh))
    if next(kinds) != next(kinds) or next(fixed) != next(fixed):
        raise ValueError("the schedule is not that of the configuration")
    scheduler.load_state_dict(state)


class WeightAverage(Generic[NetT]):
    """A running average of a network's parameters, kept in a copy of the network.

    Args:
        net: the network; its present weights start the average.
        weight: maps the number of updates so far to the weight of the new parameters.
    """

    def __init__(self, net: NetT, weight: Callable[[int], float]) -> None:
        self.module: NetT = copy.deepcopy(net).eval().requires_grad_(False)
        self.weight = weight
        self.count = 0

    @classmethod
    def exponential(cls, net: NetT, decay: float) -> WeightAverage[NetT]:
        """Moving average (EMA). The decay grows as (1+n)/(10+n), so that short runs forget the
        initial weights."""
        return cls(net, lambda count: 1 - min(decay, (1 + count) / (10 + count)))

    @classmethod
    def stochastic(cls, net: NetT) -> WeightAverage[NetT]:
        """Equal average (SWA) of the weights at every update."""
        return cls(net, lambda count: 1 / (1 + count))

    @torch.no_grad()
    def update(self, net: NetT) -> None:
        """Take the present parameters of ``net`` into the average."""
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(net.parameters())
        torch._foreach_lerp_(mine, theirs, self.weight(self.count))
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "weights": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.module.load_state_dict(state["weights"])


class StepReport(NamedTuple):
    """What one attempted step did."""

    stepped: bool
    loss: float
    norms: dict[str, float]
    """Gradient norm of every group before clipping."""


class StepGuard:
    """Takes a step if everything is finite, and otherwise leaves everything as it was.

    Args:
        groups: parameters by group name; each group is clipped and checked on its own.
        optimizer, scheduler, scaler: as in any mixed-precision loop (the scaler may be disabled).
        clip_norm: bound of each group's gradient norm.
        after_step: called after every real step (weight averages).
    """

    def __init__(
        self,
        groups: Mapping[str, list[nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        scaler: torch.amp.GradScaler,
        clip_norm: float,
        after_step: Callable[[], None],
    ) -> None:
        self.groups, self.optimizer, self.scheduler = groups, optimizer, scheduler
        self.scaler, self.clip_norm, self.after_step = scaler, clip_norm, after_step
        self.skipped = 0

    def __call__(self, loss: Tensor) -> StepReport:
        """Finish a step whose gradients are in place; ``loss`` is its loss, a detached scalar.

        Reading the norms and the loss is the only time a step waits for the device.
        """
        self.scaler.unscale_(self.optimizer)
        norms = [
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            for parameters in self.groups.values()
        ]
        *values, loss_value = torch.stack([*norms, loss]).tolist()
        finite = all(map(math.isfinite, [*values, loss_value]))
        if finite:
            self.scaler.step(self.optimizer)
        else:
            self.skipped += 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if finite:
            self.scheduler.step()
            self.after_step()
        return StepReport(finite, loss_value, dict(zip(self.groups, values, strict=True)))
