"""Parameter groups, AdamW and learning-rate schedules (Accelerate's own steps once per process)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from rankwright.common.errors import UserError
from rankwright.common.registry import Registry
from rankwright.recipe.schema import Train

Schedule = Callable[[float], float]
SCHEDULES: Registry[Schedule] = Registry("schedule")
DECAY_FRACTION = 0.1


@SCHEDULES.register
def cosine(progress: float) -> float:
    """Factor of the learning rate after warm-up, progress in 0..1: half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


@SCHEDULES.register
def linear(progress: float) -> float:
    """A straight line from 1 to 0."""
    return 1.0 - progress


@SCHEDULES.register
def wsd(progress: float) -> float:
    """Warm-up, stable, decay: 1 for nine tenths, then a straight line to 0.

    Paper: Hu et al. 2024, arXiv 2404.06395: a tenth of the training is enough for the decay, there exponential.
    """
    return min(1.0, (1.0 - progress) / DECAY_FRACTION)


@SCHEDULES.register
def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def learning_rate_factor(step: int, total_steps: int, *, warmup_fraction: float, schedule: Schedule) -> float:
    """Factor for step `step` (from 1): linear warm-up, then the schedule, which starts at 1 and never reaches its end.

    warmup_fraction of the steps, rounded up, warm up; the last of them has factor 1, and so has the next step.
    """
    # 0.07 * 100 is 7.000000000000001, which is 7 steps.
    warmup_steps = math.ceil(round(warmup_fraction * total_steps, 6))
    if step <= warmup_steps:
        return step / warmup_steps
    return schedule((step - warmup_steps - 1) / max(1, total_steps - warmup_steps))


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; vectors (norms, biases) are not decayed.

    Raises UserError when no parameter is trained.
    """
    trained = [p for _, p in named_parameters if p.requires_grad]
    if not trained:
        raise UserError("model.method: no parameter of the model is trained: use method lora or full on a decoder")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: Train, step: int, total_steps: int) -> float:
    """Set the learning rate of step `step` (from 1) in all parameter groups, and return it."""
    schedule = SCHEDULES[settings.schedule]
    factor = learning_rate_factor(step, total_steps, warmup_fraction=settings.warmup_fraction, schedule=schedule)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor
    return settings.learning_rate * factor
