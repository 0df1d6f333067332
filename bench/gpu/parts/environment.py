"""What the report was made on."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from importlib.metadata import version

import torch

from bench.gpu.sheet import Sheet

PACKAGES = ("torch", "megatron-core", "nemo-toolkit", "lightning", "transformers", "numpy")
OPTIONAL = {"Transformer Engine": "transformer_engine", "Apex": "apex", "flash-attn": "flash_attn"}


def environment(sheet: Sheet) -> None:
    """A row each for GPU, driver, versions, and packages that neva does without."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        sheet.add(
            "GPU",
            found=f"{found.name}, {found.total_memory / 2**30:.1f} GiB, {torch.cuda.device_count()} of it",
        )
        sheet.add("driver", found=driver())
        nccl = ".".join(str(number) for number in torch.cuda.nccl.version())
        sheet.add(
            "CUDA, cuDNN, NCCL",
            found=f"{torch.version.cuda}, {torch.backends.cudnn.version()}, {nccl}",
        )
    else:
        sheet.add("GPU", found="none: tiny sizes on a CPU")
    sheet.add("Python, CPUs", found=f"{platform.python_version()}, {os.cpu_count()}")
    for package in PACKAGES:
        sheet.add(package, found=version(package))
    for name, module in OPTIONAL.items():
        sheet.add(name, found="present" if importlib.util.find_spec(module) else "absent")


def driver() -> str:
    """Returns the version that nvidia-smi tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "no nvidia-smi"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
