"""Loss on the held-out set while a run trains: the same figure in every layout, and no trace in the training.

Lightning's own validation loop is not used. It runs behind the callbacks of a step, so that a checkpoint would be
ranked by the validation before, and where it stands is one more state to restore. Here it follows from the step
alone, is done before the checkpoint of its step is written, and hands Megatron's schedule whole global batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from megatron.core.transformer.module import MegatronModule
from omegaconf import DictConfig

from neva.config.derive import validation_interval
from neva.constants import VALIDATION_LOSS
from neva.data.held_out import source_names
from neva.data.loader import RankBatchLoader
from neva.data.validation import build_validation_dataset, validation_loader, validation_steps
from neva.distributed import groups
from neva.training.source_losses import by_name
from neva.training.step import StepLoss, evaluating, run_global_batch

logger = logging.getLogger(__name__)


class Validation(Callback):
    """Every `trainer.val_check_interval` steps, and after the last: the loss per label token of the whole held-out set.

    It stands before the callbacks that write checkpoints, metrics and progress. With `trainer.skip_train` it validates
    before the first step, and there is none.
    """

    def __init__(self, trainer_cfg: DictConfig) -> None:
        self.trainer_cfg = trainer_cfg
        self.loader: RankBatchLoader | None = None
        self.step, self.losses = -1, dict[str, float]()
        self.seconds = 0.0
        """Spent so far."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the held-out set."""
        module: Any = pl_module
        sampler: Any = trainer.train_dataloader.batches.sampler  # type: ignore[union-attr]
        self.interval = validation_interval(self.trainer_cfg, sampler.steps_per_epoch)
        dataset = build_validation_dataset(module.cfg, module.vision, module.tokenizer)
        if dataset is None:
            return
        self.source_names = source_names(dataset.records)
        steps = validation_steps(
            len(dataset),
            module.cfg.global_batch_size,
            self.trainer_cfg.limit_val_batches,
            module.cfg.data.validation_drop_last,
        )
        self.loader = validation_loader(
            module.cfg,
            dataset,
            steps,
            module.tokenizer.pad_token_id,
            rank=groups.data_parallel_rank(),
            size=groups.data_parallel_size(),
        )
        if trainer.is_global_zero:
            logger.info(
                "%s records held out, of which %s batches of %s are read every %s steps: %s",
                f"{len(dataset):,}",
                f"{len(steps):,}",
                module.cfg.global_batch_size,
                self.interval,
                dataset.records.path,
            )
        if self.trainer_cfg.skip_train:
            self._validate(trainer, module)
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validates when it is time, and logs the loss at the step that was taken."""
        step = trainer.global_step
        if self.loader is None or (step % self.interval and step != trainer.max_steps):
            return
        self._validate(trainer, pl_module)
        # for the checkpoints; the loggers would be told again at every step
        pl_module.log(VALIDATION_LOSS, self.losses[VALIDATION_LOSS], logger=False, batch_size=1)
        for log in trainer.loggers:
            log.log_metrics(self.losses, step - 1)  # as Lightning numbers the step's own loss

    def _validate(self, trainer: Trainer, module: Any) -> None:
        assert self.loader is not None
        started, step = time.monotonic(), trainer.global_step
        with module.validated_weights():
            found = held_out_loss(
                module.chunks, self.loader, trainer.strategy.root_device, len(self.source_names)
            )
        by_source = by_name(VALIDATION_LOSS, self.source_names, found.by_source)
        self.step, self.losses = step, {VALIDATION_LOSS: found.mean, **by_source}
        self.seconds += time.monotonic() - started
        if trainer.is_global_zero:
            logger.info("step %s: validation loss %.4f", step, found.mean)

    def values(self, step: int) -> dict[str, float]:
        """Returns what was measured after this step; nothing when it did not validate."""
        return self.losses if step == self.step else {}


def held_out_loss(
    chunks: Sequence[MegatronModule], loader: RankBatchLoader, device: torch.device, num_sources: int = 0
) -> StepLoss:
    """Returns the loss over all batches, equal on every rank; every rank takes part.

    Args:
        chunks: wrapped model chunks of this rank.
        loader: this rank's share of the held-out set, a step an item.
        device: where the batches are moved to.
        num_sources: of the mixture whose sources are counted apart.
    """
    with evaluating(chunks):
        steps = [
            run_global_batch(list(chunks), batch, device, forward_only=True, num_sources=num_sources)
            for batch in loader
        ]
    return StepLoss.total(steps)
