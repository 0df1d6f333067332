"""A step that was not finite, computed again: which of its micro batches, and with which gradient norm."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from neva.data.batch import Batch
from neva.distributed import groups
from neva.training.step import evaluating, run_global_batch

logger = logging.getLogger(__name__)


class Replay(Callback):
    """Before a batch is computed as a step, the loss of each micro batch by itself; behind it, what the step gives."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Logs the micro batches of all ranks, those that are not finite as warnings."""
        module: Any = pl_module
        micros: Sequence[Batch] = batch
        for number, micro in enumerate(micros):
            with evaluating(module.chunks):
                loss = run_global_batch(
                    module.chunks, [micro], trainer.strategy.root_device, forward_only=True
                )
            names = [name for share in groups.gathered(micro.record_ids) for name in share]
            level = logging.INFO if math.isfinite(loss.loss_sum) else logging.WARNING
            if trainer.is_global_zero:
                logger.log(
                    level, "micro batch %s: loss %s; samples %s", number, loss.mean, [*dict.fromkeys(names)]
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs a step that is finite with these weights; one that is not has been told. Ends."""
        trainer.should_stop = True
        module: Any = pl_module
        if trainer.is_global_zero and not module.not_finite.count:
            logger.info(
                "the step is finite with these weights: loss %s, gradient norm %s",
                module.last_step.mean,
                float(trainer.callback_metrics["grad_norm"]),
            )
