"""Steps whose loss or gradient norm is not finite: they stop the run, or are passed over, and leave their batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from neva.data.batch import Batch
from neva.data.batch_file import read_batches, write_batches
from neva.distributed import groups
from neva.errors import ConfigError

logger = logging.getLogger(__name__)

FOLDER = "not_finite"
"""Of a run folder."""

FAIL, SKIP = "fail", "skip"
KEPT_BATCHES = 3
"""Steps of one start of a run whose batches are kept when steps are skipped: a batch may be large."""
SHOWN_SAMPLES = 16


class NotFiniteSteps:
    """What a run does about them. Loss and norm are the same on every rank, so all ranks do it alike.

    Args:
        policy: of `trainer.on_nan`.
        most: that may follow each other (`trainer.max_nan_steps`).
        run_dir: of the run, which gets their batches; None: they are not kept.
    """

    def __init__(self, policy: str, most: int, run_dir: Path | None) -> None:
        self.policy, self.most, self.run_dir = policy, most, run_dir
        self.count = self.in_a_row = 0

    def passed(self) -> None:
        """Notes a step that is as it should be."""
        self.in_a_row = 0

    def met(self, step: int, loss: float, grad_norm: float, batch: Sequence[Batch], rank: int) -> None:
        """Keeps the batch of a step that has changed nothing, and lets it pass where that is wanted.

        Args:
            step: its number in the log.
            loss: of the global batch.
            grad_norm: of the whole model; NaN where it was not taken.
            batch: this rank's share.
            rank: of this process.

        Raises:
            FloatingPointError: naming step, rank and samples; the run ends.
        """
        self.count += 1
        self.in_a_row += 1
        folder = (self.run_dir or Path()) / FOLDER / f"step-{step:06d}"
        is_last = self.policy == FAIL or self.in_a_row > self.most
        if self.run_dir is not None and (is_last or self.count <= KEPT_BATCHES):
            _keep(folder, batch)
        what = f"gradient norm is {grad_norm} (loss {loss})" if math.isfinite(loss) else f"loss is {loss}"
        ids = [record_id for micro in batch for record_id in micro.record_ids]
        more = f" and {len(ids) - SHOWN_SAMPLES} more" if len(ids) > SHOWN_SAMPLES else ""
        text = f"{what} at step {step} (rank {rank}); samples of this rank: {ids[:SHOWN_SAMPLES]}{more}"
        if is_last:
            so_far = f", the {self.in_a_row}th in a row," if self.policy == SKIP else ""
            raise FloatingPointError(
                f"{text}{so_far}. No weight has changed, and the last checkpoint is untouched; the batch lies in "
                f"{folder}: trainer.replay={folder} computes it again. Lower model.optim.lr, look at these samples, or "
                "set trainer.on_nan=skip"
            )
        logger.warning("%s. The step is consumed and not learnt (trainer.on_nan=skip)", text)


def _keep(folder: Path, batch: Sequence[Batch]) -> None:
    """Writes this rank's share, once for each copy of the model."""
    if groups.leads_share():
        folder.mkdir(parents=True, exist_ok=True)
        number, size = groups.data_parallel_rank(), groups.data_parallel_size()
        write_batches(folder / f"share-{number:04d}-of-{size:04d}.safetensors", batch)


def kept_batches(folder: Path, rank: int, size: int) -> list[Batch]:
    """Returns the micro batches of a kept step that rank `rank` of `size` data-parallel ranks computes.

    Raises:
        ConfigError: nothing is kept there, a share is missing, or they cannot be given to so many ranks.
        DataError: a file is damaged.
    """
    files = sorted(folder.glob("share-*-of-*.safetensors"))
    expected = int(files[0].stem.rpartition("-")[2]) if files else 1
    if len(files) != expected:
        raise ConfigError(
            f"trainer.replay={folder} holds {len(files)} of {expected} shares of a step; expected the folder of a step "
            f"below {FOLDER}/ of a run"
        )
    batches = [batch for file in files for batch in read_batches(file)]
    if len(batches) % size:
        raise ConfigError(
            f"trainer.replay={folder} holds {len(batches)} micro batches, which {size} data-parallel ranks cannot "
            "share: replay it on fewer processes"
        )
    return batches[rank::size]
