"""What a run does when a scheduler or a person tells it to stop: it saves behind the step that it is at, and leaves."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from nemo.utils.exp_manager import _flush_in_flight_batch_progress

logger = logging.getLogger(__name__)

PREEMPTED = 75
"""Exit code of a run that was told to stop and has saved: EX_TEMPFAIL of sysexits.h, try again."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a run that a person has stopped, as shells give it."""

EXIT_CODES = {signal.SIGTERM: PREEMPTED, signal.SIGUSR1: PREEMPTED, signal.SIGINT: INTERRUPTED}


class Stopped(SystemExit):
    """All processes of the run leave by agreement.

    Args:
        status: what the command's exit code is to be.
    """

    def __init__(self, status: int) -> None:
        super().__init__(0)
        self.status = status


class StopOnSignal(Callback):
    """Saves and leaves when any process of the run has got one of the signals; a second Ctrl-C ends it at once.

    Schedulers send a signal to one process, to all or to each of the data workers too; the ranks tell each other
    behind every step. Lightning puts the handlers of before back when training is over.
    """

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that came; 0: none."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on there is something to save."""
        for number in EXIT_CODES:
            signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks whether a signal has come to any rank.

        Raises:
            Stopped: one has, and the checkpoint of this step is on the disk.
            CheckpointError: one has, and the checkpoint cannot be written.
        """
        told = torch.tensor(self.number, device=trainer.strategy.root_device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        if not (number := int(told)):
            return
        if trainer.is_global_zero:
            logger.warning(
                "told to stop by %s: saving at step %s", signal.Signals(number).name, trainer.global_step
            )
        checkpoints: Any = trainer.checkpoint_callback
        if checkpoints is not None:
            _flush_in_flight_batch_progress(trainer)
            checkpoints.write_last(trainer)
        raise Stopped(EXIT_CODES[signal.Signals(number)])

    def _note(self, number: int, frame: Any) -> None:
        # a scheduler's signal counts more than a person's: its exit code says that the run can be started again
        self.number = max(self.number, number)
        if number == signal.SIGINT:
            os.write(2, b"\nneva: saving behind this step; Ctrl-C again ends the run without\n")
            signal.signal(signal.SIGINT, signal.SIG_DFL)
