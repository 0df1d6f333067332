"""FSDP: each data-parallel rank keeps a shard of parameters, gradients and optimizer state (torch's `fully_shard`).

A parameter is sharded along its first dimension and all-gathered for as long as its unit runs: a layer of the language
model or of the tower, the embedding, the head, the projector. What belongs to no unit (norms, a tied embedding) is
all-gathered for the whole pass. Gradients are summed, never averaged: Megatron's schedule divides them by the label
tokens of the global batch. With tensor parallel a parameter is what a rank has of the weight, and the ranks that have
the same shard it; experts that ranks share out are sharded over those that hold the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.data_parallel_base import _BaseDataParallel
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from neva.distributed.fsdp.mesh import holders, local
from neva.distributed.fsdp.places import keep_attributes, note_places
from neva.distributed.gradients import finalize_gradients
from neva.model.experts import Experts
from neva.model.llava import NevaModel
from neva.precision import precision_named


@dataclass(frozen=True)
class Sharding:
    """What `model.fsdp_*` choose.

    `strategy` is `full`, `grad` (parameters stay unsharded from the first forward to the last backward pass of a step)
    or `hybrid` (shards within `node_ranks` neighbouring ranks, replicas between them).
    """

    strategy: str
    node_ranks: int
    reduce_dtype: torch.dtype
    cpu_offload: bool


def sharding(model_cfg: DictConfig, node_ranks: int) -> Sharding | None:
    """Returns what the resolved `model` section chooses for nodes of `node_ranks` processes; None without FSDP."""
    if not model_cfg.fsdp:
        return None
    return Sharding(
        model_cfg.fsdp_sharding_strategy,
        node_ranks,
        precision_named(model_cfg.fsdp_grad_reduce_dtype).dtype,
        model_cfg.fsdp_cpu_offload,
    )


class FullyShardedModel(_BaseDataParallel):
    """A sharded model, with the interface of Megatron's own data parallel, which its schedule calls."""

    def __init__(self, model: NevaModel, choice: Sharding, device: torch.device) -> None:
        super().__init__(config=model.config, module=model)
        # what Megatron sums over tensor-parallel ranks, it then sums shard by shard
        self.ddp_config = DistributedDataParallelConfig(use_megatron_fsdp=True)
        self.keeps_unsharded = choice.strategy == "grad"
        # sums that wait for the last micro batch are kept in the reduction's precision
        self.defers_replica_all_reduce = choice.strategy == "hybrid" and choice.reduce_dtype != torch.bfloat16
        shard(model, choice, device)

    def parameters_with_gradients(self) -> Iterator[nn.Parameter]:
        """Yields the trained parameters; each has a gradient once a backward pass is done."""
        return (parameter for parameter in self.module.parameters() if parameter.requires_grad)

    def train(self, mode: bool = True) -> FullyShardedModel:
        """Sets the mode, and frees what a pass without gradients has left all-gathered: no backward pass will.

        With `grad` the next forward pass would else use parameters of before the optimizer step.
        """
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return super().train(mode)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Leaves for later what need not be sent with every micro batch.

        Gradients are reduced to shards each time: full ones would take the memory that sharding saved.
        """
        self._set_last_micro_batch(False)
        try:
            yield
        finally:
            self._set_last_micro_batch(True)

    def _set_last_micro_batch(self, is_last: bool) -> None:
        root = cast(FSDPModule, self.module)
        if self.keeps_unsharded:
            root.set_reshard_after_backward(is_last)
        if self.defers_replica_all_reduce:
            root.set_requires_all_reduce(is_last)

    def finish_grad_sync(self, force_all_reduce: bool | None = False) -> None:
        """Nothing: the backward pass has summed the gradients."""

    def scale_gradients(self, scaling_factor: float | Tensor) -> None:
        """Multiplies all gradients by one number."""
        for parameter in self.parameters_with_gradients():
            gradient = local(parameter.grad)
            gradient.mul_(torch.as_tensor(scaling_factor, device=gradient.device))

    def zero_grad_buffer(self) -> None:
        """Frees the gradients."""
        for parameter in self.module.parameters():
            parameter.grad = None


def fully_sharded(model: NevaModel, choice: Sharding, device: torch.device) -> FullyShardedModel:
    """Shards `model`, moves this rank's shards to `device` unit by unit, and hooks it into Megatron's schedule."""
    chunk = FullyShardedModel(model, choice, device)
    model.config.finalize_model_grads_func = partial(finalize_gradients, lambda of: local(of.grad))
    model.config.no_sync_func = chunk.no_sync
    return chunk


def shard(model: NevaModel, choice: Sharding, device: torch.device) -> None:
    """Cuts the parameters of `model` in place; trained ones become float32 where the model runs in 16 bits."""
    dtype = model.config.params_dtype
    for parameter in model.parameters():
        if dtype == torch.bfloat16 and parameter.requires_grad:
            parameter.data = parameter.data.float()
    note_places(model)
    noted = {name: vars(parameter) for name, parameter in model.named_parameters()}
    options = _options(choice, dtype, device)
    node_ranks = choice.node_ranks if choice.strategy == "hybrid" else None
    expert = parallel_state.get_expert_model_parallel_world_size()
    meshes = {ways: holders(device, ways, node_ranks) for ways in sorted({1, expert})}
    for unit in shared_out(model):
        fully_shard(unit, mesh=meshes[expert], **options)
    whole: list[nn.Module] = [*units(model), model]
    for unit in whole:
        fully_shard(unit, mesh=meshes[1], **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other way to leave out the mean
    keep_attributes(model, noted)
    model.encode_empty_batches = True


def _options(choice: Sharding, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    offload: OffloadPolicy = (
        CPUOffloadPolicy(pin_memory=device.type == "cuda") if choice.cpu_offload else OffloadPolicy()
    )
    return {
        "reshard_after_forward": choice.strategy != "grad",
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=dtype if dtype == torch.bfloat16 else None,
            reduce_dtype=None if dtype == torch.float64 else choice.reduce_dtype,
            cast_forward_inputs=False,  # rotary angles stay in float32
        ),
        "offload_policy": offload,
    }


@contextmanager
def unsharded(model: NevaModel, choice: Sharding) -> Iterator[None]:
    """All-gathers every unit and keeps it so; within, no pass needs the other ranks."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(choice.strategy != "grad", recurse=False)
            module.reshard()


def shared_out(model: NevaModel) -> list[nn.Module]:
    """Returns the experts of each layer where ranks share them out: these are sharded over fewer ranks."""
    if parallel_state.get_expert_model_parallel_world_size() == 1:
        return []
    return [module for module in model.modules() if isinstance(module, Experts)]


def units(model: NevaModel) -> list[nn.Module]:
    """Returns the modules that are all-gathered one after the other; each is entered by its own `forward`."""
    found: list[nn.Module] = []
    for tower in (model.vision_tower, model.second_vision_tower):
        if tower is not None:
            found += [*tower.blocks, tower]
    if model.projector is not None:
        found.append(model.projector)
    return [*found, *model.language_model.blocks]
