"""A real SLURM on this machine: munge, a controller and a node of two cores, as Debian's slurm-wlm brings them."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.megatron import launcher_free

NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "squeue", "sinfo")
CONFIGURATION = """\
ClusterName=neva
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster(folder: Path, ports: list[int]) -> Iterator[dict[str, str]]:
    """Environment for SLURM's commands while the cluster runs; skips where it cannot be started, with the reason."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs SLURM (Debian's slurm-wlm and munge): no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons need root here")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=socket.gethostname().split(".")[0], folder=folder, ports=ports)
    )
    environment = {**launcher_free(os.environ), "SLURM_CONF": str(configuration)}
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files]
    controller, node = ([name, "-D", "-f", str(configuration)] for name in ("slurmctld", "slurmd"))
    daemons = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (munge, controller, node)
    ]
    try:
        _await_node(folder, environment)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(60)


def _await_node(folder: Path, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    answer = ""
    while time.monotonic() < deadline:
        states = subprocess.run(
            ["sinfo", "--noheader", "--format=%t"], env=environment, capture_output=True, text=True
        )
        answer = states.stdout.strip() or states.stderr.strip()
        if states.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    log = folder / "slurmctld.log"
    pytest.skip(
        f"SLURM does not start here ({answer}): {log.read_text()[-500:] if log.exists() else 'no log'}"
    )
