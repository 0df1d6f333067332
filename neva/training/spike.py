"""A warning when the loss jumps."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from neva.training.step import StepLoss

logger = logging.getLogger(__name__)

WINDOW_STEPS = 50
SHOWN_SAMPLES = 8


class SpikeAlert(Callback):
    """Warns in the log, and in W&B, of a step whose loss is `ratio` times the mean of the steps before it."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.before: deque[float] = deque(maxlen=WINDOW_STEPS)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compares the step with those before it."""
        step: StepLoss = pl_module.last_step  # type: ignore[assignment]
        if not math.isfinite(step.mean):
            return  # told by name
        usual = sum(self.before) / len(self.before) if self.before else step.mean
        self.before.append(step.mean)
        if step.mean < self.ratio * usual or not trainer.is_global_zero or len(self.before) == 1:
            return
        ids = [name for micro in batch for name in micro.record_ids]
        more = f" and {len(ids) - SHOWN_SAMPLES} more" if len(ids) > SHOWN_SAMPLES else ""
        text = (
            f"loss {step.mean:.4f} at step {trainer.global_step} is {step.mean / usual:.1f} times the {usual:.4f} of "
            f"the steps before; samples of rank 0: {', '.join(ids[:SHOWN_SAMPLES])}{more}. trainer.skip_steps leaves "
            "such steps out of a run that starts again before them"
        )
        logger.warning(text)
        for found in trainer.loggers:
            alert = getattr(getattr(found, "experiment", None), "alert", None)
            if alert is not None:
                alert(title="loss spike", text=text)
