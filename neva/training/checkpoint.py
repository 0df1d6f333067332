"""Training checkpoints: Megatron's distributed checkpoints, readable in any layout."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer

from neva.model.llava import NevaModel

COMMON = "lightning"
RESHARDABLE = {"distrib_optim_sharding_type": "fully_reshardable"}
"""Megatron's format of a distributed optimizer's state that any tensor, pipeline and data parallel size reads."""


def sharded_state(
    model: NevaModel, parts: Collection[str], optimizer: MegatronOptimizer | None, is_loading: bool = False
) -> dict[str, Any]:
    """Returns the tree of sharded tensors of the saved parts and, if given, of the optimizer."""
    tensors = _without_empty_extras(model.sharded_state_dict(), parts)
    state: dict[str, Any] = {"model": tensors}
    if optimizer is not None:
        # the optimizer finds the names of its parameters among those of the whole model
        everything = _without_empty_extras(model.sharded_state_dict(), [name for name, _ in model.parts()])
        if is_loading:
            initialize_state(optimizer)
        state["optimizer"] = optimizer.sharded_state_dict(
            everything, is_loading=is_loading, metadata=RESHARDABLE
        )
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


def initialize_state(optimizer: MegatronOptimizer) -> None:
    """Gives a fresh Adam the state that a checkpoint is read into; Megatron's distributed optimizer expects it."""
    for inner in _torch_optimizers(optimizer):
        for parameter in (parameter for group in inner.param_groups for parameter in group["params"]):
            if not inner.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                inner.state[parameter] = {"step": torch.tensor(0.0), **zeros}


def load_optimizer(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Fills the optimizer from a loaded tree.

    Megatron's distributed optimizer is filled in two steps, for it neither expects the step counters of torch's Adam
    among the tensors nor gives each parameter a counter of its own, which Adam would then advance many times a step.
    """
    shards = state.pop("param_state", None)
    optimizer.load_state_dict(state)
    members = [values for inner in _torch_optimizers(optimizer) for values in inner.state.values()]
    steps = [values.pop("step") for values in members]
    if shards is not None:
        (distributed,) = optimizer.chained_optimizers
        distributed.load_parameter_state_from_fully_reshardable(shards)
    for values, step in zip(members, steps, strict=True):
        values["step"] = step.clone()


def _torch_optimizers(optimizer: MegatronOptimizer) -> list[torch.optim.Optimizer]:
    members = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    return [member.optimizer for member in members if member.optimizer is not None]
