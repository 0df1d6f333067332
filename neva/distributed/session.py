"""How a strategy's ranks come together, agree, watch each other and part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from neva.distributed import consistency, groups, rank_map, rendezvous
from neva.distributed.monitor import FailureMonitor


class ProcessSession:
    """The processes of one run, from the first token to the last; with one process all of it is nothing.

    Args:
        facts: tells what has to be the same on every rank; reads files, so it is asked where there are several.
        timeout_s: how long a collective may take.
        join_timeout_s: how long the processes wait for each other at the start.
    """

    def __init__(
        self, facts: Callable[[], Mapping[str, str]], timeout_s: float, join_timeout_s: float
    ) -> None:
        self.facts = facts
        self.timeout_s = timeout_s
        self.join_timeout_s = join_timeout_s
        self.watch: FailureMonitor | None = None
        self.device = torch.device("cpu")

    def gather(self, strategy: DDPStrategy) -> None:
        """Joins the process group and compares what the ranks are about to run.

        Raises:
            ConfigError: they cannot reach each other, or differ.
        """
        rank, size, environment = strategy.global_rank, strategy.world_size, strategy.cluster_environment
        assert environment is not None
        if size == 1:
            self.device = groups.init_process_group(0, 1, self.timeout_s)
            return
        host, port = str(environment.main_address), int(environment.main_port)
        store = rendezvous.open_store(rank, size, host, port, self.join_timeout_s)
        launcher = strategy.launcher
        children: list[Any] = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
        logs = rank == 0 or strategy.local_rank == 0
        self.watch = FailureMonitor(rank, store, host, logs, children)
        self.device = groups.init_process_group(rank, size, self.timeout_s, store)
        consistency.compare_ranks(self.facts())

    def show(self) -> None:
        """Logs where every rank sits."""
        if self.watch is not None:
            rank_map.log_rank_map(self.device)

    def report(self, error: BaseException) -> None:
        """Stops the other ranks; not for an end that was agreed upon: ranks that differ, or preemption."""
        agreed = isinstance(error, consistency.RankMismatch) or (
            isinstance(error, SystemExit) and not error.code
        )
        if self.watch is not None and not agreed:
            self.watch.report(error)

    def leave(self) -> None:
        """Says goodbye."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None
