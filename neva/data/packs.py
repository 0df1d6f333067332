"""The packs of a run: the plan of its data set in its order, kept beside the data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from neva.config.samples import row_length
from neva.data.dataset import ConversationDataset
from neva.data.held_out import kept_beside
from neva.data.packing import WINDOW, PackingPlan, plan_packs
from neva.data.samplers.epoch import Epoch
from neva.data.token_lengths import BROKEN, TOKEN_LENGTHS, encoding_key, token_lengths
from neva.formats.cached_arrays import are_cached, cached_arrays
from neva.registry import SAMPLERS


class Packs(NamedTuple):
    """The packs of an epoch, the same in all epochs."""

    plan: PackingPlan
    lengths: NDArray[np.int32]
    """[N], positions of all records."""
    identity: str
    """What a checkpoint holds of the packs: a position means something in the same ones alone."""


def are_lengths_known(model_cfg: DictConfig, dataset: ConversationDataset) -> bool:
    """Returns whether somebody has measured the lengths of the records."""
    key = encoding_key(dataset, list(model_cfg.data.datasets_exclude))
    return are_cached(kept_beside(dataset.records), TOKEN_LENGTHS, key)


def packs_of(model_cfg: DictConfig, first: Epoch, dataset: ConversationDataset) -> Packs:
    """Returns the packs of all records that give a sample.

    Records that give none are left out: counted as skipped with `on_error=skip`, else the first of them is raised.

    Args:
        model_cfg: the resolved `model` section.
        first: the first epoch of the records, in whose order they are packed.
        dataset: of the records.

    Raises:
        UserError: a broken record, or too many.
    """
    data, length = model_cfg.data, row_length(model_cfg)
    encoding = encoding_key(dataset, list(data.datasets_exclude))
    lengths = token_lengths(dataset, encoding, data.num_workers)
    _leave_out(dataset, lengths)
    key = {
        **encoding,
        "dataloader_type": data.dataloader_type,
        "seed": first.seed,
        "pack_length": length,
        "window": WINDOW,
    }

    def plan() -> dict[str, NDArray[np.int64]]:
        order = SAMPLERS[data.dataloader_type].indices(replace(first, number=0))[: len(dataset)].numpy()
        made = plan_packs(order[lengths[order] > 0], lengths, length)
        return {"samples": made.samples, "ends": made.ends}

    found = PackingPlan(**cached_arrays(kept_beside(dataset.records), "packs", key, plan))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return Packs(found, lengths, f"{length} positions, encoding {digest}")


def describe(plan: PackingPlan, lengths: NDArray[np.int32], length: int) -> str:
    """Returns one line: how many packs there are and how full."""
    samples = len(plan.samples)
    return (
        f"{samples:,} samples in {len(plan):,} packs of {length:,} positions: "
        f"{samples / max(1, len(plan)):.2f} samples each, {plan.fill(lengths, length):.1%} full"
        if samples
        else "no record gives a sample"
    )


def _leave_out(dataset: ConversationDataset, lengths: NDArray[np.int32]) -> None:
    """Counts the records without a length as skipped; raises what the data set does not pass over."""
    missing = np.flatnonzero(lengths <= 0)
    if not len(missing):
        return
    broken = np.flatnonzero(lengths == BROKEN)
    dataset.leave_out(missing.tolist(), int(broken[0]) if len(broken) else int(missing[0]))
