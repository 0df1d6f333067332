"""How the processes of a run meet: in a store at MASTER_ADDR:MASTER_PORT, or one sentence on why they did not."""

from __future__ import annotations

import datetime
import errno
import os
import socket
import time

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from neva.errors import LaunchError

_PAUSE_S = 0.5


def rendezvous_store(rank: int, world_size: int, host: str, port: int, timeout_s: float) -> dist.Store:
    """Returns the store through which the process group is built, once all processes have joined it.

    Args:
        rank: 0 keeps the store (under torchrun its agent does), the others connect to it.
        world_size: number of processes that are waited for.
        host: name or address of rank 0's machine.
        port: a port of that machine.
        timeout_s: how long the others are waited for.

    Raises:
        LaunchError: the port is taken or cannot be reached, or not all processes came in time.
    """
    if rank > 0:
        await_port(host, port, timeout_s)
    elif "TORCHELASTIC_USE_AGENT_STORE" not in os.environ:
        refuse_taken_port(port)
    waited = datetime.timedelta(seconds=timeout_s)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    try:
        store, _, _ = next(iter(rendezvous("env://", rank, world_size, timeout=waited)))
    except dist.DistError as error:
        reason = str(error).strip().splitlines()[0]
        raise LaunchError(
            f"not all {world_size} processes met at {host}:{port} within {timeout_s:g} s ({reason}): start the command "
            "on every node with the same trainer.num_nodes and trainer.devices, check MASTER_ADDR (one node needs "
            "none), or raise trainer.join_timeout_s"
        ) from error
    return store


def await_port(host: str, port: int, timeout_s: float) -> None:
    """Returns when something listens at `host:port`.

    Raises:
        LaunchError: nothing does within `timeout_s`, with the last reason.
    """
    begin = time.monotonic()
    reason = "no answer"
    while (left_s := begin + timeout_s - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), timeout=left_s).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(min(_PAUSE_S, max(0.0, left_s)))
    raise LaunchError(
        f"{socket.gethostname()} could not reach MASTER_ADDR:MASTER_PORT {host}:{port} within {timeout_s:g} s "
        f"({reason}): start the first node, check its address and firewall, or raise trainer.join_timeout_s"
    )


def refuse_taken_port(port: int) -> None:
    """Raises LaunchError when another program listens at `port` of this machine, or this one may not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            is_taken = error.errno == errno.EADDRINUSE
            why = "is taken by another program" if is_taken else f"cannot be used ({error.strerror})"
            raise LaunchError(
                f"MASTER_PORT={port} of {socket.gethostname()} {why}: choose a free port"
            ) from error
