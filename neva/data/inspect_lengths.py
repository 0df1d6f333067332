"""How long the samples of a run are, and how much padding each order of them costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from neva.constants import IGNORE_INDEX
from neva.data.dataset import ConversationDataset
from neva.data.held_out import RecordsPart
from neva.data.lengths import SampleLengths, measure
from neva.data.loader import first_epoch
from neva.data.samplers.epoch import Epoch, EpochOrder
from neva.errors import SampleError
from neva.registry import SAMPLERS


@dataclass(frozen=True, eq=False)
class SomeLengths:
    """Of N good records, evenly spaced over a data set."""

    num_records: int
    """Of the data set."""
    tokens: npt.NDArray[np.int64]
    """[N], positions of each sample."""
    trained: npt.NDArray[np.int64]
    """[N], those of them that carry loss."""
    measured: SampleLengths
    """What samplers go by, of the same records."""


def some_lengths(dataset: ConversationDataset, most: int, image_tokens: int) -> SomeLengths:
    """Tokenises at most so many records; no image is decoded, and broken records are left out."""
    indices, tokens, trained = [], [], []
    for index in range(0, len(dataset), -(-len(dataset) // most)):
        try:
            encoded = dataset.check(index)
        except SampleError:
            continue
        indices.append(index)
        tokens.append(len(encoded.input_ids))
        trained.append(sum(label != IGNORE_INDEX for label in encoded.labels))
    part = RecordsPart(dataset.records, np.array(indices, dtype=np.int64))
    measured = measure(part, image_tokens)
    return SomeLengths(len(dataset), np.array(tokens), np.array(trained), measured)


def waste_by_sampler(
    model_cfg: DictConfig, dataset: ConversationDataset, lengths: SomeLengths, ranks: int
) -> dict[str, float]:
    """Returns the share of padding that each sampler's first epoch would have; empty for less than one global batch.

    The records of `lengths` stand for the whole data set.

    Args:
        model_cfg: the resolved `model` section.
        dataset: of the run.
        lengths: of some of its records.
        ranks: that share a global batch.
    """
    if len(lengths.tokens) < model_cfg.global_batch_size:
        return {}
    whole = first_epoch(model_cfg, model_cfg.seed, dataset)
    epoch = Epoch(
        whole.number,
        whole.seed,
        len(lengths.tokens),
        whole.global_batch_size,
        whole.mega_batch_mult,
        whole.longest_first,
        cache(lambda: lengths.measured),
    )
    orders: dict[str, EpochOrder] = {name: SAMPLERS[name] for name in SAMPLERS.names()}
    return {
        name: padding_share(
            lengths.tokens[order.indices(epoch)[: epoch.num_samples].numpy()],
            model_cfg.global_batch_size,
            model_cfg.micro_batch_size,
            ranks,
            model_cfg.data.pad_to_multiple_of,
            model_cfg.pipeline_model_parallel_size > 1,
        )
        for name, order in orders.items()
        if not order.is_single_pass
    }


def padding_share(
    tokens_N: npt.NDArray[np.int64],
    global_batch: int,
    micro_batch: int,
    ranks: int,
    multiple: int,
    same_length: bool,
) -> float:
    """Returns the share of positions that `neva.data.collate` pads, for samples in the order of an epoch."""
    steps = len(tokens_N) // global_batch
    # rank r of a step takes every ranks-th sample from the r-th on, the longest first
    shards = tokens_N[: steps * global_batch].reshape(steps, global_batch // ranks, ranks).swapaxes(1, 2)
    micro = -np.sort(-shards, axis=2).reshape(steps, ranks, -1, micro_batch)
    longest = micro.max(axis=(2, 3), keepdims=True) if same_length else micro.max(axis=3, keepdims=True)
    padded = np.broadcast_to(-(-longest // multiple) * multiple, micro.shape)
    return float(1 - micro.sum() / padded.sum())
