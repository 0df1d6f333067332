"""The ranks that a weight is sharded over, and what of it lies on this one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

REPLICATE, SHARD = "replicate", "shard"


def holders(device: torch.device, expert: int, node_ranks: int | None) -> DeviceMesh:
    """Returns the ranks that hold the same weights, or with `expert` parallel over 1 the same experts.

    They are a line, or with `node_ranks` nodes of so many processes times ranks of a node.
    """
    if node_ranks is None:
        group = (
            parallel_state.get_data_parallel_group(with_context_parallel=True)
            if expert == 1
            else parallel_state.get_expert_data_parallel_group()
        )
        return DeviceMesh.from_group(group, device.type, mesh_dim_names=(SHARD,))
    apart = expert * parallel_state.get_tensor_model_parallel_world_size()
    shape = (dist.get_world_size() // node_ranks, node_ranks // apart, apart)
    return init_device_mesh(device.type, shape, mesh_dim_names=(REPLICATE, SHARD, "apart"))[REPLICATE, SHARD]


def first_row(tensor: DTensor) -> int:
    """Returns the number of the first row of this rank's shard."""
    mesh = tensor.device_mesh
    return mesh.get_local_rank(SHARD) * -(-tensor.shape[0] // mesh.size(mesh.ndim - 1))


def copy_of(tensor: Tensor) -> int:
    """Returns the number of this rank's shard among the copies of it, which `hybrid` makes."""
    assert isinstance(tensor, DTensor)
    mesh = tensor.device_mesh
    return mesh.get_local_rank(REPLICATE) if REPLICATE in (mesh.mesh_dim_names or ()) else 0


def local(tensor: Tensor | None) -> Tensor:
    """Returns this rank's shard, which may be empty, as a view of the tensor's memory."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()
