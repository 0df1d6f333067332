"""Fixtures for tests that run Megatron: import them in the conftest.py of the folder that needs them."""

from __future__ import annotations

import itertools
import os
import queue
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from neva.cli import main
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
    context = warm_processes()
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


def warm_processes() -> BaseContext:
    """Returns what starts processes that have imported neva's training already, which takes ten seconds of a core.

    They are forked from a server that has imported it once and has no threads; the server is the first call's.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["neva.training.run"])
    return context


def run_neva(words: Sequence[str], log: Path, size: int) -> list[int | None]:
    """Runs `neva WORDS` as the `size` processes of one node and returns their exit codes.

    What they print goes to `log`. They have what processes of a run are told by the one that starts them.
    """
    said: dict[str, str] = {}
    if size > 1:
        (port,) = free_ports(1)
        said = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(size),
            "NODE_RANK": "0",
        }
    context = warm_processes()
    processes = [
        context.Process(
            target=_main, args=(list(words), log, {**said, "LOCAL_RANK": str(rank)} if said else {})
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _main(words: list[str], log: Path, said: dict[str, str]) -> None:
    become({**launcher_free(os.environ), "OMP_NUM_THREADS": "1", **said}, log, log)
    sys.exit(main(words))


def run_command(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs `python COMMAND`, a script or `-m MODULE` and its arguments, in `folder` and that environment.

    As `subprocess.run` would, in a process that has imported training already.
    """
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name, "out"), Path(name, "err")
        process = warm_processes().Process(
            target=_command, args=(list(command), folder, dict(environment), out, err)
        )
        process.start()
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode or 0, out.read_text(), err.read_text())


def _command(command: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.chdir(folder)
    become({**environment, "OMP_NUM_THREADS": "1"}, out, err)
    sys.orig_argv = [sys.executable, *command]  # with which a run starts its other processes
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def become(environment: Mapping[str, str], out: Path, err: Path) -> None:
    """Makes this process, forked from a warm one, that of a command which prints to these files."""
    os.environ.clear()
    os.environ.update(environment)
    for standard, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), standard)
    torch.set_num_threads(1)
    # for workers of the loader, as in any run: a fork takes over how it was made itself
    mp.set_start_method("fork", force=True)


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
        _clear_sharding_prop_cache()  # torch would go on with a group of the same ranks that is gone


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
