"""FSDP as a backend: each rank keeps shards of parameters, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from neva.config.parts import part_rules
from neva.distributed.fsdp import fsdp_state
from neva.distributed.fsdp.adamw import ShardedAdamW
from neva.distributed.fsdp.sharding import Sharding, fully_sharded, sharding, unsharded
from neva.model.llava import NevaModel


@dataclass(frozen=True)
class FSDPBackend:
    """A `Backend` for models of one stage."""

    choice: Sharding
    saves_sharded: bool = True

    @classmethod
    def from_config(cls, model_cfg: DictConfig, node_ranks: int) -> FSDPBackend | None:
        """Returns the backend where `model.fsdp` chooses it."""
        choice = sharding(model_cfg, node_ranks)
        return None if choice is None else cls(choice, model_cfg.fsdp_sharded_checkpoint)

    def wrap(self, models: Sequence[NevaModel], device: torch.device) -> list[Any]:
        """See `Backend`."""
        (model,) = models
        return [fully_sharded(model, self.choice, device)]

    def build_optimizer(self, chunks: Sequence[Any], model_cfg: DictConfig, clip_grad: float) -> ShardedAdamW:
        """See `Backend`."""
        (chunk,) = chunks
        ratios = {name: rule.lr_ratio for name, rule in part_rules(model_cfg).items()}
        return ShardedAdamW(chunk, model_cfg.optim, ratios, clip_grad)

    def unsharded(self, models: Sequence[NevaModel]) -> AbstractContextManager[None]:
        """See `Backend`."""
        (model,) = models
        return unsharded(model, self.choice)

    def model_state(
        self, models: Sequence[NevaModel], parts: Collection[str], gather_full: bool = False
    ) -> dict[str, Any]:
        """See `Backend`."""
        (model,) = models
        return {"0": fsdp_state.model_state(model, parts, gather_full)}

    def load_model(
        self, models: Sequence[NevaModel], tensors: Mapping[str, Mapping[str, Any]], parts: Collection[str]
    ) -> None:
        """See `Backend`."""
        (model,) = models
        fsdp_state.load_model(model, parts, tensors.get("0", {}))

    def optimizer_state(
        self,
        optimizer: ShardedAdamW,
        models: Sequence[NevaModel],
        is_loading: bool = False,
        gather_full: bool = False,
    ) -> dict[Any, Any]:
        """See `Backend`."""
        return fsdp_state.optimizer_state(optimizer, is_loading, gather_full)

    def common_state(self, optimizer: ShardedAdamW) -> dict[str, Any]:
        """See `Backend`; there is no loss scale."""
        steps = [float(state["step"]) for state in optimizer.optimizer.state.values() if "step" in state]
        return {"step": max(steps, default=0.0), "loss_scale": None}

    def load_optimizer(
        self, optimizer: ShardedAdamW, state: Mapping[Any, Any], common: Mapping[str, Any]
    ) -> None:
        """See `Backend`."""
        fsdp_state.load_optimizer(optimizer, state, common["step"])

    def adopt_weights(self, optimizer: ShardedAdamW) -> None:
        """See `Backend`; the shards that it updates are the weights themselves."""

    def publish_weights(self, optimizer: ShardedAdamW) -> None:
        """See `Backend`, and `adopt_weights`; whatever evaluates gathers them anew."""
