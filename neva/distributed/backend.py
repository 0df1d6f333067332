"""The ways to spread a model over data-parallel ranks, and what training and checkpoints ask of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from omegaconf import DictConfig

from neva.distributed.fsdp.backend import FSDPBackend
from neva.distributed.megatron_ddp import MegatronDDP
from neva.model.llava import NevaModel
from neva.optim.lightning_adapter import OptimizerProtocol


class Backend(Protocol):
    """One way to spread a model. State is Megatron's sharded form under the names of the whole model's tensors.

    So a checkpoint of one backend continues in any other.
    """

    @property
    def saves_sharded(self) -> bool:
        """Whether each rank writes its shards of a checkpoint; else rank 0 writes all of it."""

    def wrap(self, models: Sequence[NevaModel], device: torch.device) -> list[Any]:
        """Moves a rank's virtual stages to `device`; returns them as Megatron's schedule runs them."""

    def build_optimizer(
        self, chunks: Sequence[Any], model_cfg: DictConfig, clip_grad: float
    ) -> OptimizerProtocol:
        """Builds AdamW over what trains, as a resolved `model` section says; `clip_grad` 0 switches clipping off."""

    def unsharded(self, models: Sequence[NevaModel]) -> AbstractContextManager[None]:
        """Has every rank hold the weights of its stage in full, so that they can be read without the other ranks."""

    def model_state(
        self, models: Sequence[NevaModel], parts: Collection[str], gather_full: bool = False
    ) -> dict[str, Any]:
        """Returns the sharded tensors of the parts by virtual stage; with `gather_full` rank 0 has all of them."""

    def load_model(
        self, models: Sequence[NevaModel], tensors: Mapping[str, Mapping[str, Any]], parts: Collection[str]
    ) -> None:
        """Fills the parts with what was read into `model_state`.

        Raises:
            CheckpointError: tensors are missing or unknown.
        """

    def optimizer_state(
        self,
        optimizer: Any,
        models: Sequence[NevaModel],
        is_loading: bool = False,
        gather_full: bool = False,
    ) -> dict[Any, Any]:
        """Returns the sharded state of the optimizer; with `is_loading` there is some before its first step."""

    def common_state(self, optimizer: Any) -> dict[str, Any]:
        """Returns what is one for all parameters: steps taken, state of the loss scale."""

    def load_optimizer(self, optimizer: Any, state: Mapping[Any, Any], common: Mapping[str, Any]) -> None:
        """Fills the optimizer with what was read into `optimizer_state`, and with `common_state`."""

    def adopt_weights(self, optimizer: Any) -> None:
        """Has an optimizer that begins afresh start from the weights that the model was filled with."""

    def publish_weights(self, optimizer: Any) -> None:
        """Has the model compute with the main weights of the optimizer, which were changed. Called by every rank."""


BACKENDS: tuple[Callable[[DictConfig, int], Backend | None], ...] = (
    FSDPBackend.from_config,
    MegatronDDP.from_config,
)
"""Each returns itself where the section chooses it, else None; the last is what no key chooses."""


def backend_for(model_cfg: DictConfig, node_ranks: int) -> Backend:
    """Returns the backend that a resolved `model` section chooses, on nodes of `node_ranks` processes."""
    return next(found for choose in BACKENDS if (found := choose(model_cfg, node_ranks)) is not None)
