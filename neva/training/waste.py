"""Where the positions and the time of a run went, and what packing would have made of its samples."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from neva.data.batch import Batch
from neva.data.packing import plan_packs
from neva.training.step import StepLoss

logger = logging.getLogger(__name__)

MOST_LENGTHS = 2**16
"""So many samples of this rank are packed at the end, to see what that gives."""
WORTH_SAYING = 1.05


class WasteReport(Callback):
    """Adds up what the steps count anyway and says it in one line at the end.

    Args:
        row_length: positions of a pack, where samples were packed.
    """

    def __init__(self, row_length: int) -> None:
        self.row_length = row_length
        self.positions = self.tokens = self.image_tokens = self.label_tokens = 0
        self.waited_s = self.started_s = 0.0
        self.lengths: list[int] = []
        self.positions_of_lengths = 0
        self.is_packed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.started_s = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: list[Batch], batch_idx: int
    ) -> None:
        """Takes in one step."""
        step: StepLoss = pl_module.last_step  # type: ignore[assignment]
        self.positions += step.num_positions
        self.tokens += step.num_tokens
        self.image_tokens += step.num_image_tokens
        self.label_tokens += step.num_label_tokens
        self.waited_s += float(trainer.callback_metrics["loader_wait_s"])
        self.is_packed |= any(micro.packed_lengths is not None for micro in batch)
        if not self.is_packed and len(self.lengths) < MOST_LENGTHS:
            self.lengths += [length for micro in batch for row in micro.sample_lengths for length in row]
            self.positions_of_lengths += sum(micro.input_ids.numel() for micro in batch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says it, on one rank."""
        if trainer.is_global_zero and self.positions:
            logger.info("%s", self.line())

    def line(self) -> str:
        """Returns the report."""
        waited = self.waited_s / max(time.monotonic() - self.started_s, 1e-9)
        shares = [1 - self.tokens / self.positions, self.image_tokens / self.positions]
        line = (
            f"{self.positions:,} positions: {shares[0]:.1%} padding, {shares[1]:.1%} image tokens, "
            f"{self.label_tokens / self.positions:.1%} with a label; {waited:.1%} of the time waited for the loader"
        )
        gain = self.gain_of_packing()
        if gain < WORTH_SAYING:
            return line
        return f"{line}; with model.data.packed_sequence=true the same samples would take {gain:.2f} x fewer positions"

    def gain_of_packing(self) -> float:
        """Returns by how much the positions would be fewer; 1 where samples are packed."""
        if self.is_packed or not self.lengths:
            return 1.0
        lengths = np.array(self.lengths)
        packs = plan_packs(np.arange(len(lengths)), lengths, max(self.row_length, int(lengths.max())))
        return self.positions_of_lengths / (len(packs) * self.row_length)
