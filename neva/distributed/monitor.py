"""One rank fails, all stop: every process holds a TCP connection to rank 0 that says so, or that breaks when it dies.

A collective alone does not: over NCCL a rank waits for one that is gone until the timeout, and no log says whose error
came first. The kernel closes a dead process's connections at once, however busy its interpreter was, and TCP's
keepalive finds a lost host, so that there are no heartbeats that a long pause could miss.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import selectors
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from neva.distributed import error_summary
from neva.errors import RankError, UserError, print_problems

logger = logging.getLogger(__name__)

GRACE_S = 10.0
"""How long a process may take to end by itself once a failure is known: it draws curves, prints its traceback."""

_POLL_S = 0.5
_CAUSE_S = 2.0
"""How long a rank that only lost a connection waits to hear why."""

_KEY = "neva/monitor"
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""Seconds until the first probe, seconds between probes, probes: a lost host is noticed after 30 s."""


@dataclass
class _Peer:
    """A connection, and whose it is: unknown (rank -1) until it has said so."""

    connection: socket.socket
    name: str = ""
    rank: int = -1
    pending: bytes = b""
    has_left: bool = False


class FailureMonitor:
    """The connections of this process, read by a thread of its own.

    Args:
        rank: of this process.
        store: where rank 0 leaves the port and the token that its peers must know.
        host: rank 0's machine.
        logs: whether this process says why the run stops; one process a machine does.
        children: processes that this one started and that must not outlive it.
    """

    def __init__(
        self,
        rank: int,
        store: dist.Store,
        host: str,
        logs: bool,
        children: Sequence[subprocess.Popen[Any]] = (),
    ) -> None:
        self.rank, self.logs, self.children = rank, logs, children
        self.place = f"rank {rank} on {socket.gethostname()}"
        self.name = f"{self.place} (process {os.getpid()})"
        self.failure: str | None = None
        self.user_error: RankError | None = None
        """What stopped the run, if the user can mend it."""
        self.error: BaseException | None = None
        self.failed = threading.Event()
        self.closing = False
        self.selector = selectors.DefaultSelector()
        self.peers: list[_Peer] = []
        self.lock = threading.RLock()
        self.exit_timer: threading.Timer | None = None
        if rank == 0:
            self._listen(store)
        else:
            self._connect(store, host)
        self.thread = threading.Thread(target=self._run, name="neva-monitor", daemon=True)
        self.thread.start()

    # What the training loop calls

    def report(self, error: BaseException) -> None:
        """Tells every process that this one failed; the run ends within `GRACE_S`."""
        self.error = error
        if error_summary.is_secondary(error):
            self.failed.wait(_CAUSE_S)
        user_error = None
        if isinstance(error, UserError):
            lines = (f"{self.place}: {problem}" for problem in str(error).splitlines())
            user_error = RankError("\n".join(lines), error.exit_code)
        self._fail(f"{self.name} failed: {error_summary.describe(error)}", tell=True, user_error=user_error)

    def close(self) -> None:
        """Leaves; after a failure, children that do not end by themselves are killed."""
        with self.lock:
            self.closing = True
            self._send({"left": True})
        if self.exit_timer is not None:
            self.exit_timer.cancel()
            self._end_children(GRACE_S)
        self.thread.join(timeout=2 * _POLL_S)

    # Setting up

    def _listen(self, store: dist.Store) -> None:
        self.token = secrets.token_hex(8)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self.listener = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=1024)
        store.set(_KEY, f"{self.listener.getsockname()[1]} {self.token}")
        self.selector.register(self.listener, selectors.EVENT_READ)

    def _connect(self, store: dist.Store, host: str) -> None:
        port, self.token = store.get(_KEY).decode().split()
        connection = socket.create_connection((host, int(port)), timeout=60)
        self._add(_Peer(connection, name=f"rank 0 on {host}", rank=0))
        self._send({"token": self.token, "rank": self.rank, "name": self.name})

    def _add(self, peer: _Peer) -> None:
        peer.connection.settimeout(None)
        peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                peer.connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.peers.append(peer)
        self.selector.register(peer.connection, selectors.EVENT_READ, peer)

    # The thread

    def _run(self) -> None:
        while not self.closing:
            for key, _ in self.selector.select(timeout=_POLL_S):
                if key.data is None:
                    self._add(_Peer(self.listener.accept()[0]))
                else:
                    self._read(key.data)
        for registered in list(self.selector.get_map().values()):
            registered.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()

    def _read(self, peer: _Peer) -> None:
        try:
            received = peer.connection.recv(65536)
        except OSError:
            received = b""
        *lines, peer.pending = (peer.pending + received).split(b"\n")
        for line in lines:
            self._handle_message(peer, line)
        if not received:
            self._drop(peer)

    def _handle_message(self, peer: _Peer, line: bytes) -> None:
        """Acts on a message; a connection that does not begin with the token is not of this run, and ignored."""
        if peer.rank < 0 and self.token.encode() not in line:
            return
        message = json.loads(line)
        peer.rank, peer.name = message.get("rank", peer.rank), message.get("name", peer.name)
        peer.has_left |= "left" in message
        if "failed" in message:
            problems, exit_code = message.get("problems"), message.get("exit_code")
            user_error = None if problems is None else RankError(problems, exit_code)
            self._fail(message["failed"], tell=self.rank == 0, user_error=user_error)

    def _drop(self, peer: _Peer) -> None:
        self.selector.unregister(peer.connection)
        peer.connection.close()
        self.peers.remove(peer)
        if peer.rank >= 0 and not peer.has_left and not self.closing:
            self._fail(
                f"{peer.name} ended without a word: killed, or its machine is lost", tell=self.rank == 0
            )

    def _fail(self, failure: str, tell: bool, user_error: RankError | None = None) -> None:
        """Takes note of the first failure, the one that counts, and passes it on."""
        with self.lock:
            if self.failure is not None:
                return
            self.failure, self.user_error = failure, user_error
            if tell:
                problems = user_error and {"problems": user_error.message, "exit_code": user_error.exit_code}
                self._send({"failed": failure, **(problems or {})})
            if self.logs:
                self._say_why()
            elif user_error is not None:
                user_error.is_printed = True  # by the process of this machine that logs
            self.exit_timer = threading.Timer(GRACE_S, self._exit)
            self.exit_timer.daemon = True
            self.exit_timer.start()
            self.failed.set()

    def _say_why(self) -> None:
        """At once: a launcher that sees one process end may kill this one, or it is stuck in a collective."""
        if self.user_error is not None:
            print_problems(self.user_error)
        else:
            logger.error("%s; all processes stop", self.failure)

    def _send(self, message: dict[str, Any]) -> None:
        for peer in list(self.peers):
            try:
                peer.connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                logger.debug("%s is gone", peer.name)

    def _exit(self) -> None:
        """The main thread is stuck, most likely in a collective: nothing but the end of the process frees it."""
        self._end_children(0)
        if self.user_error is not None:
            os._exit(self.user_error.exit_code)
        traceback.print_exception(self.error)
        sys.stderr.flush()
        os._exit(1)

    def _end_children(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for child in self.children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
