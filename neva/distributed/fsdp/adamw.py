"""AdamW on FSDP's shards, with the interface of Megatron's optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import OptimizerConfig
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neva.distributed.fsdp.mesh import copy_of, local
from neva.distributed.fsdp.sharding import FullyShardedModel
from neva.optim.lightning_adapter import require_finite
from neva.optim.rules import is_vector, lr_ratio

CLIP_EPSILON = 1e-6
"""Megatron's addend to the norm before it divides by it."""


class ShardedAdamW:
    """Each rank updates its shard of every trained parameter; the gradient norm is that of the whole model.

    Args:
        chunk: the sharded model.
        optim_cfg: `model.optim`.
        lr_ratios: factor on the learning rate by part; absent means 1.
        clip_grad: largest global gradient norm; 0 switches clipping off.
    """

    def __init__(
        self,
        chunk: FullyShardedModel,
        optim_cfg: DictConfig,
        lr_ratios: Mapping[str, float],
        clip_grad: float,
    ) -> None:
        named = chunk.module.named_parameters()
        self.named = {name: parameter for name, parameter in named if parameter.requires_grad}
        self.config = OptimizerConfig(params_dtype=chunk.config.params_dtype, clip_grad=clip_grad)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.named, lr_ratios, optim_cfg.weight_decay),
            lr=optim_cfg.lr,
            betas=tuple(optim_cfg.betas),
            eps=self.config.adam_eps,
            fused=True,
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups with their `lr_mult`, `wd_mult` and current `lr`."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Frees the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def step(self) -> tuple[bool, float, None]:
        """Clips and updates. Returns whether it did, the gradient norm before clipping, and None.

        Raises:
            GradientNotFinite: with nothing updated.
        """
        norm = require_finite(self._clip())
        self.optimizer.step()
        return True, norm, None

    def get_loss_scale(self) -> Tensor:
        """One: there is no float16 here."""
        return torch.ones(1)

    def _clip(self) -> float:
        norm = total_norm(list(self.named.values()))
        gradients = [local(parameter.grad) for parameter in self.named.values()]
        factor = self.config.clip_grad / (norm + CLIP_EPSILON)
        if 0 < factor < 1:  # 0: clipping is off; what compares with nothing is NaN, which is refused
            torch._foreach_mul_(gradients, factor)
        return norm


def total_norm(parameters: Sequence[nn.Parameter]) -> float:
    """Returns the norm of the whole model's gradients; what several ranks hold counts once."""
    counted = [
        local(of.grad) for of in parameters if copy_of(of) == 0 and param_is_not_tensor_parallel_duplicate(of)
    ]
    first = parameters[0]
    assert isinstance(first, DTensor)
    square = nn.utils.get_total_norm(counted).to(first.device_mesh.device_type, first.dtype).square()
    dist.all_reduce(square)
    return float(square.sqrt())


def parameter_groups(
    named: Mapping[str, nn.Parameter], lr_ratios: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Returns groups as Megatron makes them: no decay for vectors, a learning-rate ratio by part."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault((0.0 if is_vector(parameter) else 1.0, lr_ratio(name, lr_ratios)), []).append(
            parameter
        )
    return [
        {"params": members, "wd_mult": wd_mult, "lr_mult": lr_mult, "weight_decay": weight_decay * wd_mult}
        for (wd_mult, lr_mult), members in groups.items()
    ]
