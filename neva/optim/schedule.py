"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import DictConfig


@dataclass(frozen=True)
class CosineAnnealing:
    """Linear warmup, cosine decay, then constant at the minimum (NeMo's schedule of that name).

    Steps count optimizer steps. The last `constant_steps` of `max_steps` run at `min_lr`.
    """

    lr: float
    min_lr: float
    warmup_steps: int
    constant_steps: int
    max_steps: int

    def __call__(self, step: int) -> float:
        """Returns the learning rate of optimizer step `step` (0 is the first)."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        decay_steps = self.max_steps - self.warmup_steps - self.constant_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, decay_steps))
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def schedule_of(optim: DictConfig, max_steps: int) -> CosineAnnealing:
    """Returns the schedule that a resolved section `model.optim` asks for in a run of `max_steps`."""
    sched = optim.sched
    return CosineAnnealing(optim.lr, sched.min_lr, sched.warmup_steps, sched.constant_steps, max_steps)
