"""Training checkpoints: Megatron's distributed checkpoints, readable in any layout."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.fsdp import FSDPModule

from neva.constants import PARTS
from neva.distributed.fsdp import fsdp_state
from neva.distributed.fsdp.adamw import ShardedAdamW
from neva.model.llava import NevaModel
from neva.optim import optimizer_state

LIGHTNING_STATE = "lightning"
OPTIMIZER = "optimizer"
UNFINISHED = ".writing"
"""Folder beside the checkpoints for those that are not whole; NeMo's search for checkpoints passes over its name."""


def sharded_state(
    models: Sequence[NevaModel],
    parts: Collection[str],
    optimizer: MegatronOptimizer | ShardedAdamW | None,
    is_loading: bool = False,
    gather_full: bool = False,
) -> dict[str, Any]:
    """Returns the sharded tensors of the saved parts of a rank's model pieces and, if given, of the optimizer.

    With `gather_full`, rank 0 has all that FSDP cut into shares.
    """
    state: dict[str, Any] = {"model": _tensors(models, parts, gather_full)}
    if isinstance(optimizer, ShardedAdamW):
        state[OPTIMIZER] = fsdp_state.optimizer_state(optimizer, is_loading, gather_full)
    elif optimizer is not None:
        # the optimizer finds the names of its parameters among those of the whole model
        state[OPTIMIZER] = optimizer_state.sharded(optimizer, _tensors(models, PARTS), is_loading)
    return state


def load_optimizer(optimizer: MegatronOptimizer | ShardedAdamW, loaded: Mapping[str, Any]) -> None:
    """Fills the optimizer with what `load` returned."""
    state, common = loaded[OPTIMIZER], loaded[LIGHTNING_STATE][OPTIMIZER]
    if isinstance(optimizer, ShardedAdamW):
        fsdp_state.load_optimizer(optimizer, state, common["step"])
    else:
        optimizer_state.load(optimizer, state, common)


def _tensors(
    models: Sequence[NevaModel], parts: Collection[str], gather_full: bool = False
) -> dict[str, Any]:
    return {
        str(number): fsdp_state.model_state(model, parts, gather_full)
        if isinstance(model, FSDPModule)
        else _without_empty_extras(model.sharded_state_dict(), parts)
        for number, model in enumerate(models)
    }


def _without_empty_extras(state: Mapping[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """Keeps the tensors of `parts`; Megatron's `_extra_state` objects carry nothing outside Transformer Engine."""
    return {
        name: value
        for name, value in state.items()
        if name.split(".", 1)[0] in parts and not name.endswith("_extra_state")
    }


def save(folder: Path, state: dict[str, Any], common: Mapping[str, Any]) -> None:
    """Writes a checkpoint aside and moves it to `folder` when it is whole. Called by every rank.

    What an interrupted save left behind is removed by the next one.
    """
    temporary = folder.with_name(UNFINISHED) / folder.name
    if dist.get_rank() == 0:
        shutil.rmtree(temporary.parent, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save({**state, LIGHTNING_STATE: dict(common)}, str(temporary))
    dist.barrier()
    if dist.get_rank() == 0:
        remove(folder)
        temporary.rename(folder)
        shutil.rmtree(temporary.parent, ignore_errors=True)
    dist.barrier()


def remove(folder: Path) -> None:
    """Deletes a checkpoint, moved aside first: half of one must not be found. Called by one rank."""
    if folder.exists():
        aside = folder.with_name(UNFINISHED)
        aside.mkdir(exist_ok=True)
        folder.rename(aside / f"{folder.name}.outdated")
        shutil.rmtree(aside / f"{folder.name}.outdated", ignore_errors=True)
        with contextlib.suppress(OSError):  # a checkpoint is being written there
            aside.rmdir()


def load(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Reads a checkpoint into the layout of `state`; every tensor asked for must be there and fit.

    Returns:
        The tree with tensors, and what was saved as common under `LIGHTNING_STATE`.
    """
    return dist_checkpointing.load(state, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
