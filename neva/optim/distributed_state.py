"""The state of Megatron's distributed optimizer: what each data-parallel rank writes and reads of it.

The ranks share out flat buffers of parameters, so what a rank holds may begin and end inside a parameter. Megatron's
own form for checkpoints of any layout has every rank hold all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.optimizer import (
    get_param_id_to_sharded_param_map,
    make_sharded_optimizer_tensor,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

from neva.optim.kinds import AVERAGE, MAIN, MOMENTS, STATE, stored_as


@dataclass(frozen=True)
class Piece:
    """What `rank` of the data-parallel group holds of a parameter: its elements from `start` to `stop`, flat."""

    rank: int
    start: int
    stop: int


Pieces = dict[nn.Parameter, list[Piece]]
"""Those of each parameter, in its order."""


def written(member: DistributedOptimizer, model_tensors: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Returns what this rank writes by number of the parameter: whole tensors, where it holds the first element.

    Called by every data-parallel rank.
    """
    pieces = _pieces(member)
    named = get_param_id_to_sharded_param_map(model_tensors, pieces)
    whole = _whole(
        member,
        {
            parameter: held
            for number, (parameter, held) in enumerate(pieces.items())
            if not any(named[number].replica_id[:-1])  # else ranks of another group write the same
        },
    )
    return {
        number: {
            kind: _sharded(named[number], kind, tensor, 0)
            for kind, tensor in whole.get(parameter, {}).items()
        }
        for number, parameter in enumerate(pieces)
    }


def read_into(member: DistributedOptimizer, model_tensors: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Returns what this rank reads: whole tensors, for the parameters that it has a part of, and none for others.

    The rank that has the first element of a parameter reads it in the name of those that have further parts.
    """
    pieces, rank = _pieces(member), member.data_parallel_group.rank()
    named = get_param_id_to_sharded_param_map(model_tensors, pieces)
    kinds = [*MOMENTS, *([MAIN] if _has_main(member) else []), *([AVERAGE] if _has_averages(member) else [])]
    found: dict[int, dict[str, Any]] = {}
    for number, (parameter, held) in enumerate(pieces.items()):
        copy = 0 if held[0].rank == rank else 1
        is_held = any(piece.rank == rank for piece in held)
        found[number] = {
            kind: _sharded(named[number], kind, torch.empty(parameter.shape, dtype=torch.float32), copy)
            for kind in kinds
            if is_held
        }
    return found


def load(member: DistributedOptimizer, state: Mapping[int, Any], first: int) -> int:
    """Fills what this rank holds from the parameters whose numbers begin with `first`; returns how many they are."""
    for values in member.optimizer.state.values():
        values.pop("step", None)  # Megatron expects what is read alone
    pieces = _pieces(member)
    whole = {
        number: {MAIN: parameter, **state.get(first + number, {})} for number, parameter in enumerate(pieces)
    }
    member.load_parameter_state_from_fully_reshardable(whole)
    return len(pieces)


def _pieces(member: DistributedOptimizer) -> Pieces:
    """Returns who holds what of each parameter, in the order in which Megatron numbers them."""
    size = member.data_parallel_group.size()
    found: Pieces = {}
    for buffer in member.buffers:
        for parameter, (start, stop, number) in buffer.param_index_map.items():
            bucket = buffer.buckets[number]
            share = bucket.grad_data.numel() // size
            begin = start - bucket.offset
            end = stop - bucket.offset
            cuts = [begin, *range((begin // share + 1) * share, end, share), end]
            found[parameter] = [Piece(a // share, a - begin, b - begin) for a, b in pairwise(cuts)]
    return found


def _whole(member: DistributedOptimizer, pieces: Pieces) -> dict[nn.Parameter, dict[str, Tensor]]:
    """Returns the state of the parameters whose first element this rank holds, in their shapes, by kind.

    One that it holds alone is no copy. Of each bucket it gets at most one other, in CPU memory, a kind at a time.
    """
    rank = member.data_parallel_group.rank()
    found = {
        parameter: {kind: tensor.view(parameter.shape) for kind, tensor in _held(member, parameter).items()}
        for parameter, held in pieces.items()
        if [piece.rank for piece in held] == [rank]
    }
    for kind in (MAIN, *STATE):
        for parameter, tensor in _joined(member, pieces, kind).items():
            found.setdefault(parameter, {})[kind] = tensor
    return found


def _joined(member: DistributedOptimizer, pieces: Pieces, kind: str) -> dict[nn.Parameter, Tensor]:
    """Returns one kind of state of the parameters that begin on this rank and end on another, in CPU memory.

    Each further piece is sent once. All ranks send together, so that none waits for what another has to receive first;
    one that shares no parameter does nothing, which NCCL allows in a group that has summed gradients before.
    """
    group, rank = member.data_parallel_group, member.data_parallel_group.rank()
    found: dict[nn.Parameter, Tensor] = {}
    messages: list[dist.P2POp] = []
    for parameter, (first, *others) in pieces.items():
        is_part_here = any(piece.rank == rank for piece in (first, *others))
        if not others or not is_part_here or kind not in (held := _held(member, parameter)):
            continue
        part = held[kind].to(parameter.device)  # what lies in CPU memory goes where ranks can meet
        if first.rank != rank:
            messages.append(dist.P2POp(dist.isend, part, group=group, group_peer=first.rank))
            continue
        flat = found[parameter] = part.new_empty(parameter.numel())
        flat[: first.stop] = part
        messages += [
            dist.P2POp(dist.irecv, flat[piece.start : piece.stop], group=group, group_peer=piece.rank)
            for piece in others
        ]
    for request in dist.batch_isend_irecv(messages) if messages else ():
        request.wait()
    return {parameter: flat.view(parameter.shape).cpu() for parameter, flat in found.items()}


def _held(member: DistributedOptimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Returns what this rank holds of the state of a parameter, flat, by kind."""
    group, place = member.model_param_group_index_map[parameter]
    main = member.optimizer.param_groups[group]["params"][place]
    state = member.optimizer.state[main]
    mains = {MAIN: main.detach()} if _has_main(member) else {}
    return mains | {kind: state[kind] for kind in STATE if kind in state}


def _sharded(weight: Any, kind: str, tensor: Tensor, copy: int) -> Any:
    """Returns the sharded form of a parameter's state, after that of the weight; copy 0 is the one that counts."""
    weight = replace(weight, replica_id=(*weight.replica_id[:-1], copy))
    return make_sharded_optimizer_tensor(weight, tensor, stored_as(kind))


def _has_main(member: DistributedOptimizer) -> bool:
    """Whether main weights are others than the model's."""
    return bool(member.config.bf16 or member.config.fp16)


def _has_averages(member: DistributedOptimizer) -> bool:
    return any(group.get(AVERAGE) for group in member.optimizer.param_groups)
