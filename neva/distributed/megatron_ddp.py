"""Megatron's data parallel: every rank holds its stage in full; gradients are summed, state may be sharded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MixedPrecisionOptimizer
from omegaconf import DictConfig

from neva.config.keys.optim import DISTRIBUTED_OPTIMIZERS
from neva.config.parts import part_rules
from neva.constants import ALL_PARTS, part_of
from neva.distributed.gradients import finalize_gradients
from neva.errors import CheckpointError
from neva.model.llava import NevaModel
from neva.optim import optimizer_state
from neva.optim.megatron import LossScale, build_optimizer
from neva.precision import precision_named

EXTRA_STATE = "_extra_state"
"""Suffix of Megatron's objects that carry nothing outside Transformer Engine."""


@dataclass(frozen=True)
class MegatronDDP:
    """A `Backend`; with `shards_optimizer` main weights and Adam's state are sharded over the ranks."""

    shards_optimizer: bool
    saves_sharded: bool = True

    @classmethod
    def from_config(cls, model_cfg: DictConfig, node_ranks: int) -> MegatronDDP:
        """Returns the backend, which fits any section."""
        return cls(model_cfg.optim.name in DISTRIBUTED_OPTIMIZERS)

    def wrap(self, models: Sequence[NevaModel], device: torch.device) -> list[Any]:
        """See `Backend`."""
        return [*data_parallel([model.to(device) for model in models], self.shards_optimizer)]

    def build_optimizer(
        self, chunks: Sequence[Any], model_cfg: DictConfig, clip_grad: float
    ) -> MegatronOptimizer:
        """See `Backend`."""
        return build_optimizer(
            list(chunks),
            model_cfg.optim,
            {name: rule.lr_ratio for name, rule in part_rules(model_cfg).items()},
            clip_grad,
            precision_named(model_cfg.precision).dtype,
            self.shards_optimizer,
            LossScale(
                model_cfg.native_amp_init_scale, model_cfg.native_amp_growth_interval, model_cfg.hysteresis
            ),
        )

    def unsharded(self, models: Sequence[NevaModel]) -> AbstractContextManager[None]:
        """See `Backend`; they are held in full always."""
        return nullcontext()

    def model_state(
        self, models: Sequence[NevaModel], parts: Collection[str], gather_full: bool = False
    ) -> dict[str, Any]:
        """See `Backend`."""
        return {
            str(number): {
                name: value
                for name, value in model.sharded_state_dict().items()
                if part_of(name) in parts and not name.endswith(EXTRA_STATE)
            }
            for number, model in enumerate(models)
        }

    def load_model(
        self, models: Sequence[NevaModel], tensors: Mapping[str, Mapping[str, Any]], parts: Collection[str]
    ) -> None:
        """See `Backend`."""
        for number, model in enumerate(models):
            missing, unexpected = model.load_state_dict(tensors[str(number)], strict=False)
            lost = [name for name in missing if part_of(name) in parts and not name.endswith(EXTRA_STATE)]
            if lost or unexpected:
                raise CheckpointError(
                    f"checkpoint does not fit the model: missing {lost}, unexpected {unexpected}"
                )

    def optimizer_state(
        self,
        optimizer: MegatronOptimizer,
        models: Sequence[NevaModel],
        is_loading: bool = False,
        gather_full: bool = False,
    ) -> dict[Any, Any]:
        """See `Backend`. The optimizer finds the names of its parameters among those of the whole model."""
        return optimizer_state.sharded(optimizer, self.model_state(models, ALL_PARTS), is_loading)

    def common_state(self, optimizer: MegatronOptimizer) -> dict[str, Any]:
        """See `Backend`."""
        return optimizer_state.common_state(optimizer)

    def load_optimizer(
        self, optimizer: MegatronOptimizer, state: Mapping[Any, Any], common: Mapping[str, Any]
    ) -> None:
        """See `Backend`."""
        optimizer_state.load(optimizer, state, common)

    def adopt_weights(self, optimizer: MegatronOptimizer) -> None:
        """See `Backend`; in 16 bits it has main weights of its own."""
        optimizer.reload_model_params()

    def publish_weights(self, optimizer: MegatronOptimizer) -> None:
        """See `Backend`; what Megatron's optimizers do behind a step."""
        for member in optimizer_state.members(optimizer):
            if isinstance(member, MixedPrecisionOptimizer):
                member._copy_main_params_to_model_params()
            if isinstance(member, DistributedOptimizer):
                for chunk in member.model_chunks:
                    chunk.start_param_sync()


def data_parallel(
    models: Sequence[NevaModel], distributed_optimizer: bool = False
) -> list[DistributedDataParallel]:
    """Wraps a rank's virtual stages for Megatron: gradient buffers for what trains, summed in float32 over the ranks.

    With `distributed_optimizer`, each data-parallel rank receives the gradients of its shard of the parameters.
    """
    model_config = models[0].config
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=model_config.params_dtype in (torch.bfloat16, torch.float16),
        use_distributed_optimizer=distributed_optimizer,
    )
    chunks = [
        DistributedDataParallel(config=model_config, ddp_config=config, module=model) for model in models
    ]
    model_config.finalize_model_grads_func = partial(finalize_gradients, attrgetter("main_grad"))
    no_sync = [chunk.no_sync for chunk in chunks]
    model_config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
    return chunks
