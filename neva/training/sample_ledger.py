"""Writes the samples of every step into the run's ledger."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from neva.data.batch import Batch, SampleOrigin
from neva.data.ledger import LedgerPart, LedgerStep, LedgerWriter
from neva.distributed import groups

logger = logging.getLogger(__name__)


class SampleLedger(Callback):
    """Adds each step when it is done, before anything saves it: what a checkpoint has seen stands in the ledger."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.writer: LedgerWriter | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cuts off what comes again, and begins a part."""
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        loader = module.loader.batches
        self.writer = LedgerWriter(self.run_dir, trainer.global_step)
        self.writer.begin(
            LedgerPart(
                first_step=trainer.global_step + 1,
                rows=loader.sampler.num_samples,
                samples=loader.samples_per_epoch,
                global_batch_size=loader.sampler.global_batch_size,
                drop_last=loader.sampler.drop_last,
                data=dict(module.data_identity),
            )
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collects what the ranks have consumed; each takes part, one writes."""
        module: Any = pl_module
        loader, begin = module.loader.batches, module.step_begin
        shares = groups.gathered_by_data_parallel(
            packed_origins(batch, loader.most_samples, trainer.strategy.root_device)
        )
        if self.writer is None:
            return
        origins = in_sampler_order(shares.tolist())
        left = loader.sampler.num_samples - begin.offset
        step = LedgerStep(
            step=trainer.global_step,
            epoch=begin.epoch,
            in_epoch=sum(origin.row < left for origin in origins),
            treatment=module.treatment,
            numbers=[origin.number for origin in origins],
            exceptions=[
                (place, number)
                for place, origin in enumerate(origins)
                if origin.stands_for != (origin.number,)
                for number in origin.stands_for
            ],
        )
        try:
            self.writer.add(step)
        except OSError as error:  # no reason to end a run
            logger.warning("step %s is missing in the ledger: %s", step.step, error)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the file."""
        if self.writer is not None:
            self.writer.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes the file of a run whose time is up, which has no other end."""
        self.on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the file."""
        self.on_train_end(trainer, pl_module)


def packed_origins(batch: Sequence[Batch], most_samples: int, device: torch.device) -> torch.Tensor:
    """Returns the origins of a rank's samples, int64 [1 + 3 M] on every rank: how many triples there are, and these.

    A triple is row, number, and one of the records that the sample stands for, of which a step has M at most.
    """
    triples = [
        (origin.row, origin.number, asked)
        for micro in batch
        for origin in micro.origins
        for asked in origin.stands_for
    ]
    packed = torch.zeros(1 + 3 * most_samples, dtype=torch.int64)
    packed[0] = len(triples)
    packed[1 : 1 + 3 * len(triples)] = torch.tensor(triples, dtype=torch.int64).flatten()
    return packed.to(device)


def in_sampler_order(shares: Sequence[Sequence[int]]) -> list[SampleOrigin]:
    """Returns the origins of all ranks, their rows numbered through the global batch: rank r has each size-th row."""
    size = len(shares)
    found = [
        SampleOrigin(row * size + rank, number, stands_for)
        for rank, share in enumerate(shares)
        for row, number, stands_for in _unpacked(share)
    ]
    return sorted(found, key=lambda origin: origin.row)


def _unpacked(share: Sequence[int]) -> Iterator[SampleOrigin]:
    triples: Iterable[Sequence[int]] = (share[1 + 3 * place : 4 + 3 * place] for place in range(share[0]))
    for (row, number), same in groupby(triples, key=lambda triple: (triple[0], triple[1])):
        yield SampleOrigin(row, number, tuple(triple[2] for triple in same))
