"""How many GPUs this machine offers, asked without torch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from neva.errors import ConfigError
from neva.launchers.words import Words

REMEDY = "set GPUS_PER_NODE to the number of processes of a node"


def gpus_here(environment: Mapping[str, str]) -> int:
    """Returns GPUS_PER_NODE, else the number in CUDA_VISIBLE_DEVICES, else what nvidia-smi lists.

    Raises:
        ConfigError: GPUS_PER_NODE is no number, or there is no GPU.
    """
    if "GPUS_PER_NODE" in environment:
        read = Words(environment)
        count = read.whole("GPUS_PER_NODE", 1)
        read.finish()
        return count
    visible = [word for word in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    count = len(visible) if "CUDA_VISIBLE_DEVICES" in environment else _listed()
    if count == 0:
        raise ConfigError(f"found no GPU on this machine, expected one or more: {REMEDY}")
    return count


def _listed() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())
