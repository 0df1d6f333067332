"""Process groups: from the launch environment to Megatron's parallel state."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from neva.distributed import cuda_on_cpu
from neva.distributed.gloo import share_device


@dataclass(frozen=True)
class ParallelSizes:
    """Sizes of the parallel axes; data parallel is what the world size leaves."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    virtual_pipeline: int | None = None
    expert: int = 1
    """Of the data- and context-parallel ranks, so many share out the experts of a layer."""


def init_process_group(
    rank: int, world_size: int, timeout_s: float = 1800.0, store: dist.Store | None = None
) -> torch.device:
    """Joins the process group (NCCL on GPUs, gloo elsewhere) and returns this process's device.

    A single process meets nobody: it needs no launcher and no port. Several meet in `store`, else at the MASTER_ADDR
    and MASTER_PORT of the environment. A collective that takes longer than `timeout_s` raises.
    """
    device = cuda_on_cpu.install()
    share_device()
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        timeout = datetime.timedelta(seconds=timeout_s)
        store = dist.HashStore() if world_size == 1 else store
        if store is not None:
            store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return device


def init_model_parallel(layout: ParallelSizes, seed: int, timeout_s: float = 1800.0) -> None:
    """Builds Megatron's groups, whose collectives raise after `timeout_s`, and seeds its random trackers."""
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.virtual_pipeline,
            context_parallel_size=layout.context,
            expert_model_parallel_size=layout.expert,
            distributed_timeout_minutes=timeout_s / 60,
        )
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Seeds what a training step draws, so that a resumed run draws the same.

    Tensor-parallel ranks draw alike, all others differ.
    """
    ranks = (
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    digest = hashlib.sha256(f"{seed}:{step}:{ranks}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def gathered(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Returns what each rank gives, in the order of the ranks. Called by every rank; `group` has all of them."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def gathered_by_data_parallel(values: torch.Tensor) -> torch.Tensor:
    """Returns [data-parallel ranks, n] of what each of them gives, [n] on its device. Called by every rank."""
    gathered = values.new_empty((data_parallel_size(), len(values)))
    dist.all_gather(list(gathered), values, group=parallel_state.get_data_parallel_group())
    return gathered


@dataclass(frozen=True)
class PipelineStage:
    """A pipeline stage on this rank; `virtual` is its number where a rank holds several virtual stages."""

    virtual: int | None
    is_first: bool
    is_last: bool


def pipeline_stages() -> list[PipelineStage]:
    """Returns the (virtual) stages that this rank holds, in their order."""
    size = parallel_state.get_virtual_pipeline_model_parallel_world_size()
    numbers = [None] if size is None else list(range(size))
    return [
        PipelineStage(
            number,
            parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=number),
            parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=number),
        )
        for number in numbers
    ]


def destroy() -> None:
    """Leaves all groups. Gloo aborts in its destructor when a process ends without this."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def data_parallel_rank() -> int:
    """Returns this process's rank along the data-parallel axis."""
    return parallel_state.get_data_parallel_rank()


def leads_model() -> bool:
    """Whether this process is the first of those that hold one copy of the model together."""
    return dist.get_rank(parallel_state.get_model_parallel_group()) == 0


def leads_share() -> bool:
    """Whether this process is the first of those that compute one share of a step together."""
    return leads_model() and parallel_state.get_context_parallel_rank() == 0


def data_parallel_size() -> int:
    """Returns the size of the data-parallel axis."""
    return parallel_state.get_data_parallel_world_size()
