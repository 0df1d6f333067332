"""Training checkpoints: Megatron's distributed checkpoints, readable in any layout."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.optimizer import MegatronOptimizer

from neva.model.llava import NevaModel

COMMON = "lightning"


def sharded_state(
    model: NevaModel, parts: Collection[str], optimizer: MegatronOptimizer | None, is_loading: bool = False
) -> dict[str, Any]:
    """Returns the tree of sharded tensors of the saved parts and, if given, of the optimizer."""
    tensors = _without_empty_extras(model.sharded_state_dict(), parts)
    state: dict[str, Any] = {"model": tensors}
    if optimizer is not None:
        # the optimizer finds the names of its parameters among those of the whole model
        everything = _without_empty_extras(model.sharded_state_dict(), [name for name, _ in model.parts()])
        state["optimizer"] = optimizer.sharded_state_dict(everything, is_loading=is_loading)
    return state


def _without_empty_extras(state: Mapping[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """Keeps the tensors of `parts`; Megatron's `_extra_state` objects carry nothing outside Transformer Engine."""
    return {
        name: value
        for name, value in state.items()
        if name.split(".", 1)[0] in parts and not name.endswith("_extra_state")
    }


def save(folder: Path, state: dict[str, Any], common: Mapping[str, Any]) -> None:
    """Writes a checkpoint to a temporary folder beside `folder` and renames it. Called by every rank."""
    temporary = folder.with_name(folder.name + ".writing")
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save({**state, COMMON: dict(common)}, str(temporary))
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    dist.barrier()


def load(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Reads a checkpoint into the layout of `state`; every tensor asked for must be there and fit.

    Returns:
        The tree with tensors, and what was saved as common under `COMMON`.
    """
    return dist_checkpointing.load(state, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)


def read_common(folder: Path) -> dict[str, Any]:
    """Reads only what is not a tensor."""
    return dist_checkpointing.load_common_state_dict(str(folder))[COMMON]


def is_sharded(value: object) -> bool:
    """Whether a leaf of a sharded state tree is written by shards."""
    return isinstance(value, ShardedTensor | ShardedObject)
