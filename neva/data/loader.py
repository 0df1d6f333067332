"""Worker processes that prepare whole optimizer steps."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from multiprocessing.queues import Queue
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from neva.config.derive import require_global_batch
from neva.config.samples import row_length
from neva.data.batch import Batch
from neva.data.build import build_dataset
from neva.data.collate import collate
from neva.data.dataset import ConversationDataset, Sample
from neva.data.global_batch import GlobalBatchSampler
from neva.data.lengths import measure
from neva.data.packing import PackingPlan
from neva.data.packs import describe, packs_of
from neva.data.position import Position, data_identity, restored_position
from neva.data.quick_check import check_before_training
from neva.data.samplers.epoch import Epoch
from neva.data.sources.mixture import source_counts
from neva.errors import DataError, UserError, reason
from neva.families.configs import VisionConfig
from neva.registry import SAMPLERS

logger = logging.getLogger(__name__)

_WORKER_ENDED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (?=(\w+))|exited)"
)


class RankBatchDataset(Dataset["list[Batch] | UserError"]):
    """Maps the indices of one rank's shard of a global batch, of records or of packs, to its micro batches.

    What the user can mend is handed over as a value: of an exception, torch would give the main process the text of
    the worker's traceback alone.
    """

    def __init__(
        self,
        samples: ConversationDataset,
        micro_batch_size: int,
        pad_id: int,
        pad_to_multiple_of: int,
        same_length: bool,
        packs: PackingPlan | None = None,
    ) -> None:
        self.samples = samples
        self.micro_batch_size = micro_batch_size
        self.pad_id = pad_id
        self.pad_to_multiple_of = pad_to_multiple_of
        self.same_length = same_length
        self.packs = packs

    def __getitem__(self, indices: list[int]) -> list[Batch] | UserError:
        try:
            rows = [self._row(index) for index in indices]
        except UserError as error:
            return error
        return collate(rows, self.micro_batch_size, self.pad_id, self.pad_to_multiple_of, self.same_length)

    def _row(self, index: int) -> list[Sample]:
        """Returns a sample, or those of a pack: one of them that is skipped leaves room, as another may not fit."""
        if self.packs is None:
            return [self.samples[index]]
        members = self.packs.members(index)
        found = [sample for member in members if (sample := self.samples.read_or_skip(member)) is not None]
        if not found:
            return [self.samples[members[0]]._replace(stands_for=tuple(members))]
        if len(found) < len(members):
            skipped = {*members} - {sample.number for sample in found}
            found[0] = found[0]._replace(stands_for=(found[0].number, *sorted(skipped)))
        return found


class RankBatchLoader(DataLoader["list[Batch] | UserError"]):
    """Yields one rank's micro batches of each optimizer step, and raises what a worker hands over as an error."""

    identity: Mapping[str, Any]
    """What the order of the data depends on."""
    samples_per_epoch: int
    most_samples: int
    """That a rank's share of a step may have."""

    def __iter__(self) -> Iterator[list[Batch]]:  # type: ignore[override]  # torch names its private iterator
        for step in super().__iter__():
            if isinstance(step, UserError):
                raise step
            yield step


def train_loader(
    model_cfg: DictConfig,
    vision: VisionConfig,
    tokenizer: PreTrainedTokenizerFast,
    rank: int,
    size: int,
    num_steps: int,
    seed: int,
    consumed_samples: int = 0,
    saved: Mapping[str, Any] | None = None,
) -> RankBatchLoader:
    """Builds the loader of data-parallel rank `rank` of `size`: one item an optimizer step, its micro batches.

    It holds `num_steps` steps from where the run stands in the data: at what a checkpoint has `saved` of its position,
    or, where it has none, behind `consumed_samples`. `loader.dataset.samples` is the `ConversationDataset`, whose
    `skipped_count` tells what `on_error=skip` left out; `loader.identity` says which data it is.

    Raises:
        UserError: the data cannot be read, or is not what the checkpoint has seen.
    """
    dataset = build_dataset(model_cfg, vision, tokenizer)
    check_before_training(dataset)
    if rank == 0 and (counts := source_counts(dataset.records)):
        logger.info("records of an epoch: %s", counts)
    first = first_epoch(model_cfg, seed, dataset)
    identity = data_identity(model_cfg, seed, dataset.records)
    packs = None
    if model_cfg.data.packed_sequence:
        packs, lengths, identity["packing"] = packs_of(model_cfg, first, dataset)
        require_global_batch(len(packs), model_cfg.global_batch_size, "packs")
        logger.info("%s", describe(packs, lengths, row_length(model_cfg)))
        first = replace(first, num_samples=len(packs))
    identity |= SAMPLERS[model_cfg.data.dataloader_type].identity(first.num_samples)
    sampler = GlobalBatchSampler(
        first,
        rank=rank,
        size=size,
        start=restored_position(
            saved, consumed_samples, identity, first.global_batch_size, model_cfg.data.on_change
        ),
        num_steps=num_steps,
        dataloader_type=model_cfg.data.dataloader_type,
        drop_last=model_cfg.drop_last,
    )
    batches = RankBatchDataset(
        dataset,
        micro_batch_size=model_cfg.micro_batch_size,
        pad_id=tokenizer.pad_token_id,
        pad_to_multiple_of=model_cfg.data.pad_to_multiple_of,
        # A pipeline stage receives activations of one shape.
        same_length=model_cfg.pipeline_model_parallel_size > 1,
        packs=packs,
    )
    loader = build_loader(batches, sampler, model_cfg.data.num_workers)
    loader.identity = identity
    share = first.global_batch_size // size
    loader.samples_per_epoch = len(dataset) if packs is None else len(packs.samples)
    loader.most_samples = share if packs is None else share * packs.most_members
    return loader


def first_indices(model_cfg: DictConfig, dataset: ConversationDataset, rank: int, size: int) -> list[int]:
    """Returns the records that data-parallel rank `rank` of `size` consumes in the first step of a run without packs.

    Raises:
        UserError: the data does not fill a step, or its lengths cannot be read.
    """
    first = first_epoch(model_cfg, model_cfg.seed, dataset)
    order = model_cfg.data.dataloader_type
    sampler = GlobalBatchSampler(first, rank, size, Position(), num_steps=1, dataloader_type=order)
    return next(iter(sampler))


def packs_per_epoch(model_cfg: DictConfig, vision: VisionConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """Returns how many packs an epoch has, of which `global_batch_size` are a step.

    Raises:
        UserError: the data cannot be read.
    """
    dataset = build_dataset(model_cfg, vision, tokenizer)
    packs = packs_of(model_cfg, first_epoch(model_cfg, model_cfg.seed, dataset), dataset).plan
    require_global_batch(len(packs), model_cfg.global_batch_size, "packs")
    return len(packs)


def first_epoch(model_cfg: DictConfig, seed: int, dataset: ConversationDataset) -> Epoch:
    """Returns the first epoch of a data set, whose lengths are measured when they are first asked for, and once."""
    return Epoch(
        number=0,
        seed=seed,
        num_samples=len(dataset),
        global_batch_size=model_cfg.global_batch_size,
        mega_batch_mult=model_cfg.mega_batch_mult,
        longest_first=model_cfg.data.longest_first,
        lengths=cache(
            partial(
                measure,
                dataset.records,
                dataset.media.rules.largest_image.tokens,
                dataset.media.usual_frames,
            )
        ),
    )


def build_loader(
    batches: RankBatchDataset, sampler: Iterable[list[int]], num_workers: int, persistent: bool = True
) -> RankBatchLoader:
    """Builds a loader whose workers (none: this process) prepare one step each, in the sampler's order.

    Workers that are not persistent live as long as one pass over it.
    """
    if num_workers:
        # Each worker tokenises on its own; threads in a forked tokenizer would be switched off with a warning.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return RankBatchLoader(
        batches,
        sampler=sampler,
        batch_size=None,
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        # Of its own, so that the loader draws nothing from the run's random numbers.
        generator=torch.Generator(),
    )


def _start_worker(worker_id: int) -> None:
    torch.set_num_threads(1)
    # Signals to the run, to its process group or to each of its processes, leave it the workers that it needs to save.
    os.setpgid(0, 0)
    Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_leave_with_loader, args=(os.getppid(),), daemon=True).start()


def _give_up(error: Exception, batches: object) -> None:
    """Ends a worker that cannot hand over what it has made; by itself it would go on, and the run wait without end."""
    remedy = "make /dev/shm larger, as by `docker run --shm-size=16g` or `--ipc=host`"
    if "AF_UNIX" in str(error):
        remedy = "set TMPDIR to a folder with a shorter path"
    if not isinstance(error, FileNotFoundError):  # of a run that has ended, and its temporary folder with it
        sys.stderr.write(
            f"neva: a data worker cannot hand over a step ({reason(error)}): {remedy}, or set "
            "model.data.num_workers=0\n"
        )
    os._exit(1)


def _leave_with_loader(loader: int) -> None:
    """Ends this worker when the process that reads from it says so, and for no other's SIGTERM."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != loader:
        pass
    os._exit(0)


def killed_worker(error: BaseException) -> DataError | None:
    """Returns the sentence for what torch raises where a worker has ended by itself; None: the error is another one."""
    found = _WORKER_ENDED.search(str(error))
    if found is None:
        return None
    return DataError(
        f"a data worker, process {found[1]}, was ended from outside ({found[2] or 'exited'}), as by a machine that is "
        "out of memory: lower model.data.num_workers, or give the run more memory; the last checkpoint is whole"
    )
