"""Which kind of device a run is on: what `trainer.accelerator` says, against what the machine has."""

from __future__ import annotations

import os

import torch

from neva.errors import ConfigError


def choose(accelerator: str) -> None:
    """Makes the rest of the process use what `trainer.accelerator` names; called before anything is on a device.

    Args:
        accelerator: `gpu`, `cpu` (GPUs are hidden from torch) or `auto` (a GPU where there is one).

    Raises:
        ConfigError: `gpu`, but torch finds none.
    """
    if accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=gpu, but torch finds no GPU on this machine: choose auto or cpu, or install the CUDA "
            "build of torch (docs/install.md)"
        )
