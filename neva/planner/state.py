"""Bytes of parameters, gradients and optimizer state on one rank: counted, not estimated.

The rules are those of the objects that training builds: Megatron's `DistributedDataParallel` holds a float32 gradient
for every trained parameter, its mixed-precision optimizer a float32 copy of it, Adam two float32 moments and a
float32 step counter a tensor. The distributed optimizer lays parameters into one padded buffer and cuts that into
equal shards. FSDP keeps float32 shards of what trains and gradients of the same size. A moving average of the weights
is sharded as Adam's moments are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from omegaconf import DictConfig

from neva.config.keys.optim import DISTRIBUTED_OPTIMIZERS
from neva.constants import ADAPTERS, ALL_PARTS, SECOND_TOWER
from neva.planner.buffer import sharded_buffer
from neva.planner.tensors import Weight
from neva.precision import FLOAT32, Precision

FLOAT_BYTES = FLOAT32.num_bytes
MOMENTS = FLOAT32.adam_bytes
STEP = FLOAT_BYTES
PLAIN_OPTIMIZER = "fused_adam"


@dataclass(frozen=True)
class RankState:
    """Bytes that stay for the whole run on the fullest rank of a stage."""

    parameters: int
    gradients: int
    optimizer: int
    parameters_by_part: dict[str, int]

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.optimizer

    def __add__(self, other: RankState) -> RankState:
        parts = {
            part: size + other.parameters_by_part.get(part, 0)
            for part, size in self.parameters_by_part.items()
        }
        return RankState(
            self.parameters + other.parameters,
            self.gradients + other.gradients,
            self.optimizer + other.optimizer,
            parts,
        )


class StateSharding(Protocol):
    """How data (times context) parallel ranks share out what stays for the whole run.

    `label` names it in tables, `keys` and `optimizer_name` choose it in a recipe.
    """

    @property
    def label(self) -> str: ...

    @property
    def optimizer_name(self) -> str: ...

    @property
    def keys(self) -> Mapping[str, Any]: ...

    def is_possible(self, tensor: int, pipeline: int, ranks: int, gpus: int) -> bool:
        """Whether it goes with such model parallelism and shards something over `ranks`, on nodes of `gpus`."""

    def state(
        self, weights: Sequence[Weight], precision: Precision, ranks: int, node_ranks: int, extra: int = 0
    ) -> RankState:
        """Counts the state of one rank: of a stage's weights, sharded over `ranks`, `node_ranks` of them on a node.

        `extra`: bytes of optimizer state for a trained parameter beside Adam's and the main weights.
        """

    def gathered(self, largest_unit: int, precision: Precision) -> int:
        """Bytes of what is all-gathered for a moment, given the elements of the largest unit."""


@dataclass(frozen=True)
class Replicated:
    """Every rank holds everything."""

    label: str = "-"
    optimizer_name: str = PLAIN_OPTIMIZER
    keys: Mapping[str, Any] = field(default_factory=dict)

    def is_possible(self, tensor: int, pipeline: int, ranks: int, gpus: int) -> bool:
        """Always."""
        return True

    def state(
        self, weights: Sequence[Weight], precision: Precision, ranks: int, node_ranks: int, extra: int = 0
    ) -> RankState:
        """Counts what every rank holds."""
        trained, parts = _trained(weights), _by_part(weights, precision)
        numel = sum(weight.numel for weight in trained)
        optimizer = numel * (precision.adam_bytes + extra) + STEP * len(trained)
        return RankState(sum(parts.values()), numel * FLOAT_BYTES, optimizer, parts)

    def gathered(self, largest_unit: int, precision: Precision) -> int:
        """Nothing."""
        return 0


@dataclass(frozen=True)
class OptimizerSharded(Replicated):
    """Megatron's distributed optimizer: main weights and moments are sharded."""

    label: str = "optimizer"
    optimizer_name: str = DISTRIBUTED_OPTIMIZERS[0]

    def is_possible(self, tensor: int, pipeline: int, ranks: int, gpus: int) -> bool:
        """Where there are ranks to share it out."""
        return ranks > 1

    def state(
        self, weights: Sequence[Weight], precision: Precision, ranks: int, node_ranks: int, extra: int = 0
    ) -> RankState:
        """Counts the padded buffer and the fullest shard."""
        trained, parts = _trained(weights), _by_part(weights, precision)
        buffer, shards = sharded_buffer(trained, ranks)
        padding = buffer - sum(weight.numel for weight in trained)
        parameters = sum(parts.values()) + precision.num_bytes * padding
        optimizer = max(count * (precision.adam_bytes + extra) + STEP * tensors for count, tensors in shards)
        return RankState(parameters, buffer * FLOAT_BYTES, optimizer, parts)


@dataclass(frozen=True)
class FullySharded:
    """torch's `fully_shard`: each parameter cut along its first dimension, every shard as large as the first.

    A trained shard is float32, its own main weight. Under `grad` the shards of all ranks, all-gathered in the
    precision of the model, lie beside it from the first forward to the last backward pass of a step. Under `hybrid`
    each node holds a copy.
    """

    strategy: str
    label: str
    optimizer_name: str = PLAIN_OPTIMIZER

    @property
    def keys(self) -> Mapping[str, Any]:
        """The keys of FSDP."""
        return {"model.fsdp": True, "model.fsdp_sharding_strategy": self.strategy}

    def is_possible(self, tensor: int, pipeline: int, ranks: int, gpus: int) -> bool:
        """Of one stage only; within one node hybrid is full."""
        return pipeline == 1 and ranks > (gpus // tensor if self.strategy == "hybrid" else 1)

    def state(
        self, weights: Sequence[Weight], precision: Precision, ranks: int, node_ranks: int, extra: int = 0
    ) -> RankState:
        """Counts the shards and, under `grad`, the all-gathered parameters."""
        ways = node_ranks if self.strategy == "hybrid" else ranks
        parts = dict.fromkeys(_parts(weights), 0)
        for weight in weights:
            kept = FLOAT_BYTES if weight.is_trained else precision.num_bytes
            shard = _shard(weight, ways)
            parts[weight.part] += weight.bytes_of(shard, kept)
            if self.strategy == "grad":  # gathered, too
                parts[weight.part] += weight.bytes_of(shard * ways, precision.num_bytes)
        trained = _trained(weights)
        numel = sum(_shard(weight, ways) for weight in trained)
        optimizer = numel * (MOMENTS + extra) + STEP * len(trained)
        return RankState(sum(parts.values()), numel * FLOAT_BYTES, optimizer, parts)

    def gathered(self, largest_unit: int, precision: Precision) -> int:
        """The largest unit (a layer, an embedding) and the next, unless all are, and a unit's float32 gradient."""
        units = 0 if self.strategy == "grad" else 2
        return largest_unit * (FLOAT_BYTES + units * precision.num_bytes)


SHARDINGS: dict[str, StateSharding] = {
    "none": Replicated(),
    "optimizer": OptimizerSharded(),
    "fsdp_grad": FullySharded("grad", "FSDP grad"),
    "fsdp_hybrid": FullySharded("hybrid", "FSDP hybrid"),
    "fsdp_full": FullySharded("full", "FSDP full"),
}
"""Least communication first."""


def rank_state(
    sharding: StateSharding,
    weights: Sequence[Weight],
    precision: Precision,
    ranks: int,
    node_ranks: int,
    expert: int,
    extra: int = 0,
) -> RankState:
    """Counts the state of one rank, of whose data (times context) parallel `ranks` each `expert` share out experts."""
    experts = [weight for weight in weights if weight.is_expert]
    found = sharding.state(
        [weight for weight in weights if not weight.is_expert], precision, ranks, node_ranks, extra
    )
    if not experts:
        return found
    return found + sharding.state(experts, precision, ranks // expert, max(1, node_ranks // expert), extra)


def sharding_of(model_cfg: DictConfig) -> str:
    """Returns the key of `SHARDINGS` that a resolved `model` section chooses."""
    if model_cfg.fsdp:
        return f"fsdp_{model_cfg.fsdp_sharding_strategy}"
    return "optimizer" if model_cfg.optim.name in DISTRIBUTED_OPTIMIZERS else "none"


def _trained(weights: Sequence[Weight]) -> list[Weight]:
    return [weight for weight in weights if weight.is_trained]


def _by_part(weights: Sequence[Weight], precision: Precision) -> dict[str, int]:
    """Bytes of whole weights by part."""
    return {
        part: sum(w.bytes_of(w.numel, precision.num_bytes) for w in weights if w.part == part)
        for part in _parts(weights)
    }


def _parts(weights: Sequence[Weight]) -> list[str]:
    """Returns the parts of a model; few have a second tower, or adapters."""
    here = {weight.part for weight in weights}
    return [part for part in ALL_PARTS if part in here or part not in (SECOND_TOWER, ADAPTERS)]


def _shard(weight: Weight, ways: int) -> int:
    """Elements of the first shard."""
    return -(-weight.shape[0] // ways) * (weight.numel // weight.shape[0])
