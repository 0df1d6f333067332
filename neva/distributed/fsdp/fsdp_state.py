"""Checkpoints of a sharded model, under the names that Megatron's checkpoints have.

A rank writes its rows of each tensor (`dim` 0, of uneven number, none where there are fewer rows than ranks) or, where
full tensors are wanted, rank 0 writes all of them. Any layout reads both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor
from torch.distributed.tensor import DTensor

from neva.constants import VOCABULARY, part_of
from neva.distributed.fsdp.adamw import ShardedAdamW
from neva.distributed.fsdp.sharding import REPLICATE, SHARD, local
from neva.model.llava import NevaModel
from neva.optim.kinds import MAIN, STATE
from neva.optim.optimizer_state import initialize


def model_state(model: NevaModel, parts: Collection[str], gather_full: bool) -> dict[str, ShardedTensor]:
    """Returns what this rank stores of the parts' weights, by name, in the precision that the model runs in."""
    dtype = model.config.params_dtype
    weights = {
        name: value.to(dtype) if isinstance(value, DTensor) else value
        for name, value in model.state_dict().items()
        if part_of(name) in parts and isinstance(value, Tensor)
    }
    return _stored(weights, "", gather_full)


def optimizer_state(
    optimizer: ShardedAdamW, is_loading: bool, gather_full: bool
) -> dict[str, dict[str, ShardedTensor]]:
    """Returns what this rank stores of the optimizer's state, by kind and name.

    With `is_loading` an optimizer that has not stepped gets the state that is read into.
    """
    if is_loading:
        initialize(optimizer)
    kinds = _kinds(optimizer)
    if is_loading and MAIN in kinds:
        # tensors are read in place, and the rounded weights are copied over these before they are used
        kinds[MAIN] = {name: value.clone() for name, value in kinds[MAIN].items()}
    return {kind: _stored(values, f"optimizer.state.{kind}.", gather_full) for kind, values in kinds.items()}


def load_model(model: NevaModel, stored: Mapping[str, Tensor]) -> None:
    """Copies what was read into this rank's shards of the weights."""
    _fill(dict(model.state_dict()), stored)


def load_optimizer(optimizer: ShardedAdamW, stored: Mapping[str, Mapping[str, Tensor]], step: float) -> None:
    """Copies what was read into this rank's shards of the state; every parameter has taken `step` steps."""
    for kind, values in _kinds(optimizer).items():
        _fill(values, stored[kind])
    for state in optimizer.optimizer.state.values():
        state["step"].fill_(step)


def _kinds(optimizer: ShardedAdamW) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors of the state, by kind and name; where the model runs in 16 bits, its float32 weights too."""
    states = {name: optimizer.optimizer.state[parameter] for name, parameter in optimizer.named.items()}
    kinds = {kind: {name: state[kind] for name, state in states.items() if kind in state} for kind in STATE}
    kinds = {kind: values for kind, values in kinds.items() if values}
    if optimizer.config.params_dtype != torch.float32:
        kinds[MAIN] = {name: parameter.detach() for name, parameter in optimizer.named.items()}
    return kinds


def _stored(values: Mapping[str, Tensor], prefix: str, gather_full: bool) -> dict[str, ShardedTensor]:
    """Returns the sharded form of tensors, without those of which this rank stores nothing."""
    tensors = _full_tensors(values) if gather_full else _shards(values)
    return {
        name: ShardedTensor(
            key=prefix + name,
            data=data,
            dtype=data.dtype,
            local_shape=tuple(data.shape),
            global_shape=tuple(values[name].shape),
            global_offset=(first_row, *(0,) * data.dim())[: data.dim()],
            axis_fragmentations=None,  # shards of uneven size
            replica_id=copy,
            allow_shape_mismatch=name in VOCABULARY,  # its padding depends on the layout
        )
        for name, data, first_row, copy in tensors
    }


def _shards(values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, int, int]]:
    """Yields name, rows of this rank, number of the first, and number of the copy."""
    for name, value in values.items():
        if not isinstance(value, DTensor):
            yield name, value, 0, dist.get_rank()
            continue
        mesh, rows = value.device_mesh, local(value)
        names = mesh.mesh_dim_names or ()
        first = mesh.get_local_rank(SHARD) * -(-value.shape[0] // mesh.size(names.index(SHARD)))
        if rows.numel():
            yield name, rows, first, mesh.get_local_rank(REPLICATE) if REPLICATE in names else 0


def _full_tensors(values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, int, int]]:
    """Yields the same for full tensors, all-gathered one by one and kept by rank 0 in CPU memory."""
    for name, value in values.items():
        full = value
        if isinstance(value, DTensor):
            # what lies in CPU memory goes where ranks can meet
            gathered = value.to(value.device_mesh.device_type)
            assert isinstance(gathered, DTensor)
            full = gathered.full_tensor()
        if dist.get_rank() == 0:
            yield name, full.cpu(), 0, 0


def _fill(targets: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    for name, tensor in stored.items():
        target = targets[name]
        (local(target) if isinstance(target, DTensor) else target).copy_(tensor)
