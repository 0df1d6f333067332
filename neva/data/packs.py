"""The packs of a run: the plan of its data set in its order, kept beside the data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from neva.config.model_config import row_length
from neva.data.dataset import ConversationDataset
from neva.data.held_out import kept_beside
from neva.data.packing import WINDOW, PackingPlan, plan_packs
from neva.data.samplers.epoch import Epoch
from neva.data.token_lengths import BROKEN, TOKEN_LENGTHS, encoding_key, token_lengths
from neva.formats.cached_arrays import are_cached, cached_arrays
from neva.registry import SAMPLERS


def packing_key(model_cfg: DictConfig, seed: int, dataset: ConversationDataset) -> dict[str, Any]:
    """Returns all that the packs depend on beside the file of records, as JSON can write it."""
    data = model_cfg.data
    return {
        **encoding_key(dataset, list(data.datasets_exclude)),
        "dataloader_type": data.dataloader_type,
        "seed": seed,
        "pack_length": row_length(model_cfg),
        "window": WINDOW,
    }


def packing_identity(model_cfg: DictConfig, seed: int, dataset: ConversationDataset) -> str:
    """Returns what a checkpoint holds of the packs: a position means something in the same ones alone."""
    key = json.dumps(packing_key(model_cfg, seed, dataset), sort_keys=True)
    return f"{row_length(model_cfg)} positions, encoding {hashlib.sha256(key.encode()).hexdigest()[:12]}"


def are_lengths_known(model_cfg: DictConfig, dataset: ConversationDataset) -> bool:
    """Returns whether somebody has measured the lengths of the records."""
    key = encoding_key(dataset, list(model_cfg.data.datasets_exclude))
    return are_cached(kept_beside(dataset.records), TOKEN_LENGTHS, key)


def packs_of(
    model_cfg: DictConfig, first: Epoch, dataset: ConversationDataset
) -> tuple[PackingPlan, NDArray[np.int32]]:
    """Returns the packs of all records that give a sample, the same in all epochs, and the records' lengths.

    Records that give none are left out: counted as skipped with `on_error=skip`, else the first of them is raised.

    Args:
        model_cfg: the resolved `model` section.
        first: the first epoch of the records, in whose order they are packed.
        dataset: of the records.

    Raises:
        UserError: a broken record, or too many.
    """
    key = packing_key(model_cfg, first.seed, dataset)
    lengths = token_lengths(
        dataset, encoding_key(dataset, list(model_cfg.data.datasets_exclude)), model_cfg.data.num_workers
    )
    _leave_out(dataset, lengths)

    def plan() -> dict[str, NDArray[np.int64]]:
        order = (
            SAMPLERS[model_cfg.data.dataloader_type].indices(replace(first, number=0))[: len(dataset)].numpy()
        )
        made = plan_packs(order[lengths[order] > 0], lengths, key["pack_length"])
        return {"samples": made.samples, "ends": made.ends}

    return PackingPlan(**cached_arrays(kept_beside(dataset.records), "packs", key, plan)), lengths


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
