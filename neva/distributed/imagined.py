"""The groups of one rank of a cluster that is not there: sizes and neighbours are real, messages go nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from neva.distributed import cuda_on_cpu, groups

FAKE = "fake"
"""torch's backend that sends nothing."""

META = torch.device("meta")


@contextmanager
def imagined_rank(rank: int, world_size: int, layout: groups.ParallelSizes, seed: int) -> Iterator[None]:
    """Has this process be rank `rank` of `world_size`, with Megatron's groups of the layout, on torch's fake backend.

    CUDA's names mean torch's meta device inside. Groups that the rank is no member of are left out: of thousands of
    ranks they are most of the work.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    devices = dist.Backend.backend_capability[FAKE]
    devices += [META.type] * (META.type not in devices)
    create: Any = parallel_state.create_group

    def own_groups(
        ranks: Any = None, timeout: Any = None, backend: Any = None, *given: Any, **named: Any
    ) -> Any:
        if ranks is not None and rank not in ranks:
            return dist.GroupMember.NON_GROUP_MEMBER
        return create(ranks, timeout, None, *given, **named)  # those over gloo are of the fake backend, too

    dist.init_process_group(FAKE, store=FakeStore(), rank=rank, world_size=world_size)
    parallel_state.create_group = own_groups
    try:
        with cuda_on_cpu.on_device(META):
            groups.init_model_parallel(layout, seed)
            yield
    finally:
        parallel_state.create_group = create
        groups.destroy()


def place_of_rank() -> dict[str, int]:
    """Returns this process's number along each axis."""
    return {
        "pp": parallel_state.get_pipeline_model_parallel_rank(),
        "tp": parallel_state.get_tensor_model_parallel_rank(),
        "cp": parallel_state.get_context_parallel_rank(),
        "ep": parallel_state.get_expert_model_parallel_rank(),
        "dp": parallel_state.get_data_parallel_rank(),
    }
