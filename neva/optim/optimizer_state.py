"""Adam's state by parameter: one form for every optimizer, under the names of the model's tensors.

A checkpoint holds `optimizer.state.<kind>.<tensor>` whether the state was sharded or not, so a run
continues with another optimizer, layout or number of ranks. Kinds are `exp_avg`, `exp_avg_sq`, where weights are in 16
bits `fp32_param`, and where a moving average of the weights is kept `average`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from megatron.core.dist_checkpointing.optimizer import (
    get_param_id_to_sharded_param_map,
    make_sharded_optimizer_tensor,
)
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

from neva.optim import distributed_state
from neva.optim.kinds import MAIN, MOMENTS, STATE, stored_as


def sharded(
    optimizer: MegatronOptimizer, model_tensors: dict[str, Any], is_loading: bool
) -> dict[int, dict[str, Any]]:
    """Returns the sharded tensors of each kind of state, by number of the parameter, named after the model's.

    With `is_loading` an optimizer that has not stepped gets the state that is read into, and one that is sharded asks
    for what this rank has a part of; else it returns what this rank writes. Called by every rank.
    """
    state: dict[int, dict[str, Any]] = {}
    first = 0
    for member in members(optimizer):
        of_member = _sharded(member, model_tensors, is_loading)
        # an empty dict would be taken for what is common to the ranks
        state |= {first + number: kinds for number, kinds in of_member.items() if kinds}
        first += len(of_member)
    return state


def _sharded(member: Any, model_tensors: dict[str, Any], is_loading: bool) -> dict[int, dict[str, Any]]:
    if is_loading:
        initialize(member)
    if isinstance(member, DistributedOptimizer):
        form = distributed_state.read_into if is_loading else distributed_state.written
        return form(member, model_tensors)
    parameters = [parameter for parameter, _ in _whole(member)]
    named = get_param_id_to_sharded_param_map(model_tensors, parameters)
    return {
        number: {
            kind: make_sharded_optimizer_tensor(named[number], tensor, stored_as(kind))
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
        count = distributed_state.load(member, state, first)
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
