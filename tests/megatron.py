"""Fixtures for tests that run Megatron: import them in the conftest.py of the folder that needs them."""

from __future__ import annotations

import itertools
import queue
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from neva.data.batch import Batch
from neva.distributed import groups
from neva.distributed.launch import LAUNCH_VARIABLES


@pytest.fixture
def single_process() -> Iterator[None]:
    """Megatron's process groups on one process, seeded.

    They stay for the next test: what Megatron wraps for data parallel is never freed, and its groups would keep their
    threads. The end of the session leaves them.
    """
    groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), seed=1234)
    yield


def ranks_tell(worker: Callable[..., None], size: int, count: int, *arguments: Any) -> list[Any]:
    """Runs `worker(rank, *arguments, results)` in `size` processes and returns the `count` things that they put."""
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=worker, args=(rank, *arguments, results)) for rank in range(size)]
    for process in processes:
        process.start()
    told: list[Any] = []
    while len(told) < count:
        try:
            told.append(results.get(timeout=1))
        except queue.Empty:
            failed = [process.exitcode for process in processes if process.exitcode]
            assert not failed, f"processes ended with {failed}, see above"
    for process in processes:
        process.join()
    return told


def meetings(rank: int, size: int, port: int) -> Iterator[None]:
    """Yields again and again, each time in fresh process groups of `size` processes; the old ones are left.

    Megatron makes some twenty groups for a layout, and gloo keeps threads for each as long as it lives: layouts that
    follow each other in one set of groups would soon have thousands.
    """
    store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0)
    for number in itertools.count():
        groups.init_process_group(rank, size, store=dist.PrefixStore(str(number), store))
        yield
        dist.barrier()
        groups.destroy()


def unnamed_batch(input_ids: torch.Tensor, labels: torch.Tensor, pixel_values: torch.Tensor) -> Batch:
    """A micro batch of records without names; the labels are shifted."""
    return Batch(input_ids, labels, pixel_values, [""] * len(input_ids), input_ids.numel())


@pytest.fixture
def free_port() -> int:
    """A port on this machine that was free a moment ago."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports on this machine that were free a moment ago."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def launcher_free(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what a launcher says, as a user's shell has it."""
    return {
        name: value
        for name, value in environment.items()
        if name not in LAUNCH_VARIABLES and not name.startswith("SLURM_")
    }
