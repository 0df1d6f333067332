"""Two machines on one: network namespaces with names and addresses of their own, joined by a cable (a veth pair)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Host:
    """A namespace, and the name and address of its end of the cable."""

    namespace: str
    name: str
    address: str

    def start(
        self, command: Sequence[str], environment: dict[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Starts `command` there, under a host name of its own, with its output in `log`."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname {self.name}; exec "$@"', "sh", *command]
        with log.open("wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *named],
                env={**environment, "GLOO_SOCKET_IFNAME": self.name}, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that see each other and nothing else; skips where namespaces are not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command `ip` (Debian's iproute2)")
    first, second = (Host(f"neva{os.getpid()}-{n}", f"h{n}", f"10.77.0.{n}") for n in (1, 2))
    try:
        made = _ip(f"netns add {first.namespace}", check=False)
        if made.returncode:
            pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
        _ip(f"netns add {second.namespace}")
        _ip(
            f"link add {first.name} netns {first.namespace} type veth peer name {second.name} netns {second.namespace}"
        )
        for host in (first, second):
            _ip(f"-n {host.namespace} address add {host.address}/24 dev {host.name}")
            for device in ("lo", host.name):
                _ip(f"-n {host.namespace} link set {device} up")
        yield first, second
    finally:
        for host in (first, second):
            _ip(f"netns del {host.namespace}", check=False)


def _ip(arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, check=check)
