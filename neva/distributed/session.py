"""How the processes of a run meet, compare what they run, monitor each other and part."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from neva.distributed import consistency, groups, rank_map, rendezvous
from neva.distributed.monitor import FailureMonitor
from neva.errors import RankError


class ProcessSession:
    """The processes of one run, from their rendezvous to their end; a single process has nobody to meet.

    Args:
        fingerprint: tells what has to be the same on every rank; reads files where it is told to, on one rank of each
            node.
        timeout_s: how long a collective may take.
        join_timeout_s: how long the processes wait for each other at the start.
    """

    def __init__(
        self, fingerprint: Callable[[bool], Mapping[str, str | None]], timeout_s: float, join_timeout_s: float
    ) -> None:
        self.fingerprint = fingerprint
        self.timeout_s = timeout_s
        self.join_timeout_s = join_timeout_s
        self.store: dist.Store | None = None
        """Through which the processes met; None: there is but one."""
        self.monitor: FailureMonitor | None = None
        self.user_error: RankError | None = None
        """What stopped the run, on whichever rank, if the user can mend it; known once the session is closed."""
        self.device = torch.device("cpu")

    def start(
        self,
        rank: int,
        size: int,
        host: str,
        port: int,
        local_rank: int,
        children: list[subprocess.Popen[Any]],
    ) -> None:
        """Joins the process group and compares what the ranks are about to run.

        Args:
            rank: of this process.
            size: number of processes.
            host: rank 0's machine.
            port: where rank 0 keeps the store.
            local_rank: among the processes of this machine.
            children: processes that this one started. The list is emptied once the monitor looks after them:
                Lightning's own observer, which reads it, would kill this process before it has said why it ends.

        Raises:
            LaunchError: they cannot reach each other, or differ.
        """
        if size == 1:
            self.device = groups.init_process_group(0, 1, self.timeout_s)
            return
        self.store = store = rendezvous.rendezvous_store(rank, size, host, port, self.join_timeout_s)
        self.monitor = FailureMonitor(rank, store, host, rank == 0 or local_rank == 0, [*children])
        children.clear()
        self.device = groups.init_process_group(rank, size, self.timeout_s, store)
        consistency.compare_ranks(self.fingerprint(local_rank == 0))

    def log_ranks(self) -> None:
        """Logs where every rank sits."""
        if self.monitor is not None:
            rank_map.log_rank_map(self.device)

    def report_failure(self, error: BaseException) -> None:
        """Stops the other ranks, unless all end by agreement: ranks that differ, or preemption."""
        agreed = isinstance(error, consistency.RankMismatch) or (
            isinstance(error, SystemExit) and not error.code
        )
        if self.monitor is not None and not agreed:
            self.monitor.report(error)

    def close(self) -> None:
        """Leaves the other processes; keeps what stopped them."""
        if self.monitor is not None:
            self.monitor.close()
            self.user_error = self.monitor.user_error
            self.monitor = None
