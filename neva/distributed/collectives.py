"""What a process sends and receives: every collective, by its kind and its group."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.attention.bias import CausalBias
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from neva.model import attention

KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "alltoall_": "all-to-all",
    "alltoall_base_": "all-to-all",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
}
"""Operations of torch's `c10d`, through which every call goes, and what they are called here."""

GROUPS = {
    "TENSOR_MODEL_PARALLEL_GROUP": "TP",
    "PIPELINE_MODEL_PARALLEL_GROUP": "PP",
    "DATA_PARALLEL_GROUP": "DP",
    "DATA_PARALLEL_GROUP_WITH_CP": "DP x CP",
    "INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP": "DP x CP",
    "CONTEXT_PARALLEL_GROUP": "CP",
    "MODEL_PARALLEL_GROUP": "TP x PP",
    "EMBEDDING_GROUP": "ends of PP",
    "EXPERT_MODEL_PARALLEL_GROUP": "EP",
    "EXPERT_DATA_PARALLEL_GROUP": "DP of experts",
    "EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP": "TP x EP",
    "EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP": "TP x EP x PP",
    "TENSOR_AND_CONTEXT_PARALLEL_GROUP": "TP x CP",
    "TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP": "TP x DP x CP",
    "mesh_shard": "FSDP's shards",
    "mesh_replicate": "FSDP's replicas",
    "INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP": "all",
    "default_pg": "all",
}
"""Groups by the descriptions that Megatron and FSDP give them."""


class Collective(NamedTuple):
    """One kind of message among one kind of group."""

    kind: str
    group: str
    size: int
    """Ranks of the group."""


class Collectives(TorchDispatchMode):
    """Counts, while it is entered, what this process takes part in; groups of one rank send nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.number: Counter[Collective] = Counter()
        self.bytes: Counter[Collective] = Counter()
        """Of the whole tensor: what all ranks have afterwards, had before, or what is sent from one to the next."""

    def __enter__(self) -> Any:
        """Starts to count. torch cannot make its causal mask of a tensor that such a mode has seen."""
        make = self._make_mask = attention.causal_lower_right

        def unseen(*sizes: int) -> CausalBias:
            with _disable_current_modes():
                return make(*sizes)

        attention.causal_lower_right = unseen
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        attention.causal_lower_right = self._make_mask

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch's."""
        if func.namespace == "c10d":
            self.count(func, args)
        return func(*args, **(kwargs or {}))

    def count(self, func: Any, args: Any) -> None:
        """Counts a call of an operation of `c10d`."""
        name = func._schema.name.removeprefix("c10d::")
        scripted = next(arg for arg in args if isinstance(arg, torch.ScriptObject) and _is_group(arg))
        group = ProcessGroup.unbox(scripted)
        if group.size() == 1 or name not in KINDS:
            return
        found = Collective(KINDS[name], _name_of(group), group.size())
        # where pieces and the whole are both given, the whole is the larger of the two
        sizes = [
            sum(_bytes_of(tensor) for tensor in tree_leaves(arg) if isinstance(tensor, Tensor))
            for arg in args
        ]
        self.number[found] += 1
        self.bytes[found] += max(sizes)


def _is_group(scripted: Any) -> bool:
    return str(scripted._type().qualified_name()).endswith("ProcessGroup")


def _name_of(group: ProcessGroup) -> str:
    described = group.group_desc
    return GROUPS.get(described, described.removesuffix("_GROUP").lower().replace("_", " "))


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
