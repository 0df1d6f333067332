"""Checkpoints of a sharded model, under the names that Megatron's checkpoints have.

A rank writes its rows of each tensor (`dim` 0, of uneven number, none where there are fewer rows than ranks) or, where
full tensors are wanted, the first data-parallel rank writes all of them. Any layout reads both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor
from torch.distributed.tensor import DTensor

from neva.constants import part_of
from neva.distributed.fsdp.adamw import ShardedAdamW
from neva.distributed.fsdp.mesh import copy_of, first_row, local
from neva.distributed.fsdp.places import stored_rows
from neva.model.llava import NevaModel
from neva.optim.kinds import MAIN, STATE, stored_as
from neva.optim.optimizer_state import initialize

Stored = dict[tuple[str, int], ShardedTensor]
"""Tensors by their names and the first of their rows in the whole one."""


def model_state(model: NevaModel, parts: Collection[str], gather_full: bool) -> Stored:
    """Returns what this rank stores of the parts' weights, in the precision that the model runs in."""
    weights, dtype = _weights(model, parts), model.config.params_dtype
    rounded = {
        name: value.detach().to(dtype) if isinstance(value, DTensor) else value
        for name, value in weights.items()
    }
    return _stored(rounded, weights, "", gather_full)


def optimizer_state(optimizer: ShardedAdamW, is_loading: bool, gather_full: bool) -> dict[str, Stored]:
    """Returns what this rank stores of the optimizer's state, by kind.

    With `is_loading` an optimizer that has not stepped gets the state that is read into.
    """
    if is_loading:
        initialize(optimizer)
    kinds = _kinds(optimizer)
    if is_loading and MAIN in kinds:
        # tensors are read in place, and the rounded weights are copied over these before they are used
        kinds[MAIN] = {name: value.clone() for name, value in kinds[MAIN].items()}
    found = {
        kind: _stored(values, optimizer.named, f"{stored_as(kind)}.", gather_full)
        for kind, values in kinds.items()
    }
    # an empty dict would be taken for what is common to the ranks
    return {kind: stored for kind, stored in found.items() if stored}


def load_model(model: NevaModel, parts: Collection[str], stored: Mapping[Any, Tensor]) -> None:
    """Copies what was read into this rank's shards of the parts' weights."""
    weights = _weights(model, parts)
    _fill(_stored({name: value.detach() for name, value in weights.items()}, weights, "", False), stored)


def load_optimizer(optimizer: ShardedAdamW, stored: Mapping[str, Mapping[Any, Tensor]], step: float) -> None:
    """Copies what was read into this rank's shards of the state; every parameter has taken `step` steps."""
    for kind, values in _kinds(optimizer).items():
        _fill(_stored(values, optimizer.named, f"{stored_as(kind)}.", False), stored.get(kind, {}))
    for state in optimizer.optimizer.state.values():
        state["step"].fill_(step)


def _weights(model: NevaModel, parts: Collection[str]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if part_of(name) in parts and isinstance(value, Tensor)
    }


def _kinds(optimizer: ShardedAdamW) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors of the state, by kind and name; where the model runs in 16 bits, its float32 weights too."""
    states = {name: optimizer.optimizer.state[parameter] for name, parameter in optimizer.named.items()}
    kinds = {kind: {name: state[kind] for name, state in states.items() if kind in state} for kind in STATE}
    kinds = {kind: values for kind, values in kinds.items() if values}
    if optimizer.config.params_dtype != torch.float32:
        kinds[MAIN] = {name: parameter.detach() for name, parameter in optimizer.named.items()}
    return kinds


def _stored(
    values: Mapping[str, Tensor], parameters: Mapping[str, Tensor], prefix: str, gather_full: bool
) -> Stored:
    """Returns the sharded form of tensors beside the parameters of their names, without what others store."""
    return {
        (name, rows.global_offset[0]): rows
        for name, data, first, copy in (_full_tensors(values) if gather_full else _shards(values))
        for rows in stored_rows(parameters[name], data, first, prefix, copy)
    }


def _shards(values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, int, int]]:
    """Yields name, rows of this rank, number of the first, and number of the copy."""
    for name, value in values.items():
        if not isinstance(value, DTensor):
            yield name, value, 0, _data_rank()
            continue
        yield name, local(value), first_row(value), copy_of(value)


def _full_tensors(values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, int, int]]:
    """Yields the same for full tensors, all-gathered one by one and kept in CPU memory by one rank of those."""
    for name, value in values.items():
        full, is_first = value, _data_rank() == 0
        if isinstance(value, DTensor):
            # what lies in CPU memory goes where ranks can meet
            gathered = value.to(value.device_mesh.device_type)
            assert isinstance(gathered, DTensor)
            full, is_first = gathered.full_tensor(), not any(value.device_mesh.get_coordinate() or ())
        if is_first:
            yield name, full.cpu(), 0, 0


def _data_rank() -> int:
    return parallel_state.get_data_parallel_rank(with_context_parallel=True)


def _fill(targets: Stored, stored: Mapping[Any, Tensor]) -> None:
    for place, target in targets.items():
        assert target.data is not None
        target.data.copy_(stored[place])
