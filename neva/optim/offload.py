"""Optimizer state that waits in CPU memory while the model computes, and comes back for the step.

Activations are gone when the optimizer steps, so the two never need GPU memory at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from neva.optim.kinds import AVERAGE
from neva.optim.optimizer_state import members

CPU = torch.device("cpu")
STEP = "step"
"""Adam's counter: a number for each parameter, not worth a copy."""


@contextmanager
def state_on_device(optimizer: Any, device: torch.device | None) -> Iterator[None]:
    """Has main weights and moments on `device` inside, in CPU memory afterwards; None: leaves them where they are."""
    if device is None:
        yield
        return
    move(optimizer, device)
    try:
        yield
    finally:
        move(optimizer, CPU)


def move(optimizer: Any, device: torch.device) -> None:
    """Moves the main weights and the moments of a Megatron optimizer over 16-bit parameters.

    A moving average of the weights stays in CPU memory, where it was made.
    """
    for member in members(optimizer):
        for group in member.optimizer.param_groups:
            for main in group["params"]:
                main.data = main.data.to(device)
        for state in member.optimizer.state.values():
            for kind, tensor in state.items():
                if kind not in (STEP, AVERAGE):
                    state[kind] = tensor.to(device)
