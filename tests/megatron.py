"""Fixtures for tests that run Megatron: import them in the conftest.py of the folder that needs them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

import pytest

from neva.parallel import groups
from neva.parallel.launch import LAUNCH_VARIABLES


@pytest.fixture
def single_process() -> Iterator[None]:
    """Megatron's process groups on one process, seeded."""
    groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.Layout(), seed=1234)
    yield
    groups.destroy()


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
