"""Adam's state by parameter: one form for every optimizer, under the names of the model's tensors.

A checkpoint holds `optimizer.state.<kind>.<tensor>` whether the state was sharded or not, so a run
continues with another optimizer, layout or number of ranks. Kinds are `exp_avg`, `exp_avg_sq`, where weights are in 16
bits `fp32_param`, and where a moving average of the weights is kept `average`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.optimizer import (
    get_param_id_to_sharded_param_map,
    make_sharded_optimizer_tensor,
)
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
MAIN = "fp32_param"
AVERAGE = "average"
"""Also a flag of the groups of an optimizer that has it: a rank may hold shards of none of their parameters."""
STATE = (*MOMENTS, AVERAGE)
"""What `torch.optim` keeps of a parameter, beside the steps taken."""


def sharded(
    optimizer: MegatronOptimizer, model_tensors: dict[str, Any], is_loading: bool
) -> dict[int, dict[str, Any]]:
    """Returns the sharded tensors of each kind of state, by number of the parameter, named after the model's.

    With `is_loading` an optimizer that has not stepped gets the state that is read into, and one that is sharded asks
    for what this rank has a part of.
    """
    state: dict[int, dict[str, Any]] = {}
    for member in members(optimizer):
        first, of_member = len(state), _sharded(member, model_tensors, is_loading)
        state |= {first + number: kinds for number, kinds in of_member.items()}
    return state


def _sharded(member: Any, model_tensors: dict[str, Any], is_loading: bool) -> dict[int, dict[str, Any]]:
    if is_loading:
        initialize(member)
    if isinstance(member, DistributedOptimizer):
        if is_loading:
            return _read_into(member, model_tensors)
        state = member.sharded_param_state_fully_reshardable(model_tensors, metadata={})
        averages = _whole_averages(member, model_tensors)
        return {
            number: {**_renamed(member, kinds), **averages.get(number, {})} for number, kinds in state.items()
        }
    parameters = [parameter for parameter, _ in _whole(member)]
    named = get_param_id_to_sharded_param_map(model_tensors, parameters)
    return {
        number: {
            kind: make_sharded_optimizer_tensor(named[number], tensor, f"optimizer.state.{kind}")
            for kind, tensor in kinds.items()
        }
        for number, (_, kinds) in enumerate(_whole(member))
    }


def load(optimizer: MegatronOptimizer, state: Mapping[int, Any], common: Mapping[str, Any]) -> None:
    """Fills the optimizer with what `sharded` described and `common_state` returned."""
    first = 0
    for member in members(optimizer):
        first += _load(member, state, first, common["step"])
        scaler = getattr(member, "grad_scaler", None)
        if scaler is not None and common["loss_scale"] is not None:
            scaler.load_state_dict(common["loss_scale"])


def _load(member: Any, state: Mapping[int, Any], first: int, step: float) -> int:
    """Fills one optimizer from the parameters whose numbers begin with `first`; returns how many they are."""
    if isinstance(member, DistributedOptimizer):
        count = _load_shards(member, state, first)
    else:
        whole = list(_whole(member))
        count = len(whole)
        for number, (_, kinds) in enumerate(whole, first):
            for kind, tensor in kinds.items():
                tensor.copy_(state[number][kind])
    for values in member.optimizer.state.values():
        # a counter of its own for each parameter, beside it: fused Adam advances it in place
        values["step"] = torch.tensor(float(step), device=values[MOMENTS[0]].device)
    return count


def common_state(optimizer: MegatronOptimizer) -> dict[str, Any]:
    """Returns the steps taken and the state of the loss scale (None without one)."""
    all_members = members(optimizer)
    states = [values for member in all_members for values in member.optimizer.state.values()]
    steps = [float(values["step"]) for values in states if "step" in values]
    scaler = getattr(all_members[0], "grad_scaler", None)
    return {"step": max(steps, default=0.0), "loss_scale": scaler.state_dict() if scaler else None}


def members(optimizer: MegatronOptimizer) -> list[Any]:
    """The optimizers with parameters; Megatron chains one for those of experts that ranks share out to the others'."""
    members = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    return [member for member in members if member.optimizer is not None]


def _whole(member: Any) -> Iterator[tuple[nn.Parameter, dict[str, Tensor]]]:
    """Yields each parameter of an optimizer that holds whole ones, with its state."""
    if hasattr(member, "float16_groups"):
        halves = zip(chain(*member.float16_groups), chain(*member.fp32_from_float16_groups), strict=True)
        for parameter, main in halves:
            yield parameter, {MAIN: main.detach(), **_state(member, main)}
        singles = chain(*member.fp32_from_fp32_groups)
    else:
        singles = member.get_parameters()
    for parameter in singles:
        yield parameter, _state(member, parameter)


def _state(member: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    state = member.optimizer.state[parameter]
    return {kind: state[kind] for kind in STATE if kind in state}


def initialize(member: Any) -> None:
    """Gives an optimizer that has not stepped the state that `torch.optim` would begin with."""
    for parameter in (parameter for group in member.optimizer.param_groups for parameter in group["params"]):
        if not member.optimizer.state[parameter]:
            step = torch.zeros((), device=parameter.device)
            moments = {kind: torch.zeros_like(parameter.detach()) for kind in MOMENTS}
            member.optimizer.state[parameter] = {"step": step, **moments}


def _read_into(member: DistributedOptimizer, model_tensors: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Returns what this rank reads: whole tensors, for the parameters that it has a part of, and none for others.

    Megatron's own form would have each data-parallel rank read all of them. The rank that has the first element of a
    parameter reads it in the name of those that have further parts.
    """
    parameters = _parameters(member)
    named = get_param_id_to_sharded_param_map(model_tensors, parameters)
    kinds = [*MOMENTS, *([MAIN] if _has_main(member) else []), *([AVERAGE] if _has_averages(member) else [])]
    found: dict[int, dict[str, Any]] = {}
    for number, parameter in enumerate(parameters):
        found[number] = {}
        if parameter not in member.model_param_group_index_map:
            continue
        is_first = member._get_model_param_range_map(parameter)["param"].start == 0
        tensor = named[number]
        tensor = replace(tensor, replica_id=(*tensor.replica_id[:-1], 0 if is_first else 1))
        for kind in kinds:
            whole = torch.empty(parameter.shape, dtype=torch.float32)
            found[number][kind] = make_sharded_optimizer_tensor(tensor, whole, f"optimizer.state.{kind}")
    return found


def _has_main(member: DistributedOptimizer) -> bool:
    """Whether main weights are others than the model's."""
    return bool(member.config.bf16 or member.config.fp16)


def _has_averages(member: DistributedOptimizer) -> bool:
    return any(group.get(AVERAGE) for group in member.optimizer.param_groups)


def _whole_averages(member: DistributedOptimizer, model_tensors: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Returns the sharded form of the averages, whole on every data-parallel rank; Megatron knows the moments alone."""
    if not _has_averages(member):
        return {}
    parameters = _parameters(member)
    named = get_param_id_to_sharded_param_map(model_tensors, parameters)
    return {
        number: {
            AVERAGE: make_sharded_optimizer_tensor(
                named[number], _whole_average(member, parameter), f"optimizer.state.{AVERAGE}"
            )
        }
        for number, parameter in enumerate(parameters)
    }


def _whole_average(member: DistributedOptimizer, parameter: nn.Parameter) -> Tensor:
    """Returns the average of a parameter, of which each data-parallel rank has a part or nothing, in CPU memory."""
    whole = torch.zeros(parameter.numel(), device=parameter.device)
    if parameter in member.model_param_group_index_map:
        group, place = member.model_param_group_index_map[parameter]
        main = member.optimizer.param_groups[group]["params"][place]
        mine = member._get_model_param_range_map(parameter)["param"]
        whole[mine.start : mine.end] = member.optimizer.state[main][AVERAGE]
    dist.all_reduce(whole, group=member.data_parallel_group)
    return whole.view(parameter.shape).cpu()


def _parameters(member: DistributedOptimizer) -> list[nn.Parameter]:
    """Returns the parameters in the order in which Megatron numbers them."""
    return [parameter for buffer in member.buffers for parameter in buffer.param_index_map]


def _renamed(member: DistributedOptimizer, kinds: dict[str, Any]) -> dict[str, Any]:
    """Gives the main weight its name; where it is the weight itself it is left out."""
    main = kinds.pop("param")
    if _has_main(member):
        key = main.key.replace("optimizer.state.param.", f"optimizer.state.{MAIN}.", 1)
        kinds[MAIN] = replace(main, key=key)
    return kinds


def _load_shards(member: DistributedOptimizer, state: Mapping[int, Any], first: int) -> int:
    for values in member.optimizer.state.values():
        values.pop("step", None)  # Megatron expects what is read alone
    parameters = _parameters(member)
    whole = {
        number: {MAIN: parameter, **state.get(first + number, {})}
        for number, parameter in enumerate(parameters)
    }
    member.load_parameter_state_from_fully_reshardable(whole)
    return len(parameters)
