"""NeMo's checkpoint callback, which writes one checkpoint a step and takes the folder itself for the list of them.

When one is due, where it lies, what it is called and what happens when it cannot be written is decided here; how it is
written is the strategy's. NeMo's own finds earlier checkpoints by the first place in their paths that reads like the
monitored value, and writes the newest of the ranked ones twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nemo.utils.exp_manager as nemo_exp_manager
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from nemo.utils.callbacks import NeMoModelCheckpoint
from nemo.utils.model_utils import ckpt_to_dir

from neva.checkpoint import index, store
from neva.constants import VALIDATION_LOSS
from neva.distributed import groups
from neva.errors import CheckpointError
from neva.training.run_folder import set_aside_later

logger = logging.getLogger(__name__)


class RankedCheckpoints(NeMoModelCheckpoint):
    """Keeps the newest checkpoint and, of the others, the best `save_top_k` by the monitored value.

    Args:
        train_time_interval: write one at least that often, as DD:HH:MM:SS; None: by steps alone.
        async_save: let training go on while those are written that are not the last of the run.
        n_resume: NeMo's, without effect: the folder is always looked at.
        settings: NeMo's.
    """

    def __init__(
        self,
        *,
        train_time_interval: str | None = None,
        async_save: bool = False,
        n_resume: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.interval_s = None if train_time_interval is None else _seconds(train_time_interval)
        self.in_background = async_save
        self.saved_step = -1
        """Step of the newest checkpoint, also one that is still being written."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes what interrupted saves have left."""
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero:
            store.clear_unfinished(Path(self.dirpath))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets aside what the run will not go on from, and starts the clock."""
        self.saved_step = trainer.global_step if trainer.ckpt_path else 0
        self.saved_at_s = time.monotonic()
        if trainer.is_global_zero:
            set_aside_later(Path(self.dirpath), trainer.global_step)
            for newest in index.checkpoints(Path(self.dirpath))[: bool(self.save_last)]:
                index.link_last(newest.path)
        dist.barrier()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a checkpoint when one is due; one that cannot be written is said, and training goes on."""
        strategy: Any = trainer.strategy
        self._warn(trainer, strategy.finished_save())
        if not self._is_due(trainer):
            return
        try:
            self.write(trainer, self.in_background)
        except CheckpointError as error:
            self._warn(trainer, error)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes a `.nemo` too, where one is wanted beside every checkpoint."""
        if self.always_save_nemo:
            pl_module.save_to(self._format_nemo_checkpoint_name())  # type: ignore[operator]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last checkpoint and the `.nemo`.

        Raises:
            CheckpointError: the last checkpoint cannot be written.
        """
        if self.save_last:
            self.write_last(trainer)
        if self.save_nemo_on_train_end:
            pl_module.save_to(self._format_nemo_checkpoint_name())  # type: ignore[operator]

    def write_last(self, trainer: Trainer) -> None:
        """Has a checkpoint of this step on the disk when this returns, whether or not one is due.

        Raises:
            CheckpointError: it cannot be written.
        """
        strategy: Any = trainer.strategy
        strategy.wait_for_save()
        if (error := strategy.finished_save()) is not None:
            self._warn(trainer, error)
            self.saved_step = -1
        self.write(trainer, in_background=False)

    def write(self, trainer: Trainer, in_background: bool) -> None:
        """Writes a checkpoint of this step, if there is none. Called by every rank.

        Raises:
            CheckpointError: it cannot be written; with `in_background`, it cannot be begun.
        """
        step, values = trainer.global_step, self._monitor_candidates(trainer)
        if step == self.saved_step:
            return
        filepath = self.format_checkpoint_name(values)
        folder = ckpt_to_dir(filepath)
        logged = {name: float(value) for name, value in values.items()}
        # a validation is of its own step; the others are of every step
        is_ranked = self.monitor in logged and (self.monitor != VALIDATION_LOSS or self._is_scheduled(step))
        if not self.save_last and not (is_ranked and self._is_among_best(logged[self.monitor])):
            return
        options = {
            "extra": {index.ABOUT: index.about(step, logged, is_ranked)},
            "placed": lambda: self._make_room(folder),
            "in_background": in_background,
        }
        self.saved_step, before = step, self.saved_step
        try:
            trainer.save_checkpoint(filepath, storage_options=options)
        except CheckpointError:
            self.saved_step = before
            raise

    def _make_room(self, newest: Path) -> None:
        """Removes the checkpoints that a newer one supersedes, now that it is there."""
        if self.save_last:
            index.link_last(newest)
        for path in index.superseded(newest, self.monitor, self.mode, self.save_top_k, bool(self.save_last)):
            store.remove(path)

    def _is_among_best(self, score: float) -> bool:
        found = index.checkpoints(Path(self.dirpath), self.monitor, self.mode)
        return groups.gathered(index.is_among_best(score, found, self.mode, self.save_top_k))[0]

    def _is_scheduled(self, step: int) -> bool:
        return step % self._every_n_train_steps == 0

    def _is_due(self, trainer: Trainer) -> bool:
        is_late = False
        if self.interval_s is not None:
            now = time.monotonic()
            # rank 0's clock is everybody's
            is_late = groups.gathered(now - self.saved_at_s >= self.interval_s)[0]
            self.saved_at_s = now if is_late else self.saved_at_s
        return is_late or self._is_scheduled(trainer.global_step)

    def _warn(self, trainer: Trainer, error: Exception | None) -> None:
        if error is None:
            return
        self.saved_step = -1
        if not isinstance(error, CheckpointError):
            raise error
        if trainer.is_global_zero:
            logger.warning("%s. Training goes on; the next try is when the next checkpoint is due", error)

    # What Lightning and NeMo call

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the folder says which checkpoints there are."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: see `state_dict`."""

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: Any) -> None:
        """What NeMo's timer asks for when the time of the run is up."""
        self.write_last(trainer)


@contextmanager
def as_nemos_own() -> Iterator[None]:
    """Has NeMo's `exp_manager` make such a callback."""
    nemo_exp_manager.NeMoModelCheckpoint = RankedCheckpoints
    try:
        yield
    finally:
        nemo_exp_manager.NeMoModelCheckpoint = NeMoModelCheckpoint


def _seconds(interval: str) -> float:
    """Returns the seconds of an interval as DD:HH:MM:SS."""
    days, hours, minutes, seconds = map(int, interval.split(":"))
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
