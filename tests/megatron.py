"""Fixtures for tests that run Megatron: import them in the conftest.py of the folder that needs them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from neva.parallel import groups


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
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
