"""The other processes of this node: the first one starts them, with the command that it was itself started with."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from neva.distributed.launch import LOCAL, Launch
from neva.errors import LaunchError


def require_program(place: Launch, devices: int) -> None:
    """Raises LaunchError where the other processes cannot be started, as there is no file to start again."""
    if place.launcher != LOCAL or devices == 1:
        return
    is_module = sys.modules["__main__"].__spec__ is not None
    if hasattr(sys, "ps1") or not (is_module or Path(sys.argv[0]).is_file()):
        raise LaunchError(
            f"trainer.devices={devices} starts the program once for each process, and this one is in no file (python "
            "-c, standard input, a notebook): put it into a .py file, or give trainer.devices=1"
        )


def start_others(place: Launch, devices: int) -> list[subprocess.Popen[Any]]:
    """Starts the processes 1 to `devices - 1` of this node; none where a launcher has started all of them.

    They, and this process, share the processor's threads, unless OMP_NUM_THREADS says otherwise.
    """
    if place.launcher != LOCAL or devices == 1:
        return []
    environment = os.environ
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    environment.setdefault("MASTER_PORT", str(_free_port()))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    shared = {**environment, "WORLD_SIZE": str(place.world_size), "NODE_RANK": str(place.node_rank)}
    command = [sys.executable, *sys.orig_argv[1:]]
    return [
        subprocess.Popen(command, env={**shared, "LOCAL_RANK": str(local_rank)})
        for local_rank in range(1, devices)
    ]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
