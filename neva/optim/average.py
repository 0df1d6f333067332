"""An exponential moving average of the weights that train, in float32, as one more kind of the optimizer's state.

So it is sharded as that state is, saved with it under `optimizer.state.average.<tensor>`, and continued in any layout.
It starts from the first weights and corrects no bias. Source: NeMo's `EMA` callback, whose formula and steps these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neva.optim.kinds import AVERAGE
from neva.optim.offload import state_on_device
from neva.optim.optimizer_state import initialize, members


class WeightAverage:
    """average = decay * average + (1 - decay) * weight, behind every `every_n_steps`-th step, the first one included.

    Args:
        optimizer: of any backend. Its main weights are averaged: those in float32 where the model runs in 16 bits.
        decay: from 0, the newest weights, to 1, the first.
        every_n_steps: steps from one update to the next.
        on_cpu: it lies in CPU memory.
        refresh: has the model compute with the main weights as they are now.
    """

    def __init__(
        self, optimizer: Any, decay: float, every_n_steps: int, on_cpu: bool, refresh: Callable[[], None]
    ) -> None:
        self.optimizer, self.decay, self.every_n_steps = optimizer, decay, every_n_steps
        self.on_cpu, self.refresh = on_cpu, refresh
        self.begin()

    def begin(self) -> None:
        """Starts from the weights as they are."""
        for member in members(self.optimizer):
            initialize(member)
            _mark(member, True)
            for main, state in _mains(member):
                copy = main.detach().clone()
                state[AVERAGE] = copy.cpu() if self.on_cpu else copy

    def forget(self) -> None:
        """Drops the average, so that optimizer state is read without; `begin` starts another one."""
        for member in members(self.optimizer):
            _mark(member, False)
            for _, state in _mains(member):
                state.pop(AVERAGE, None)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights behind step `step` (1 is the first), where it is due."""
        if (step - 1) % self.every_n_steps:
            return
        by_place: dict[tuple[torch.device, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
        for average, main in self._pairs():
            averages, mains = by_place.setdefault((average.device, main.device), ([], []))
            averages.append(average)
            mains.append(main)
        for (here, there), (averages, mains) in by_place.items():
            if here == there:
                torch._foreach_lerp_(averages, mains, 1 - self.decay)
                continue
            for average, main in zip(averages, mains, strict=True):  # one at a time: there is no room for all
                average.copy_(average.to(there).lerp_(main, 1 - self.decay))

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Has the model compute with the average inside, and gives it its weights back, bit for bit.

        Called by every rank. An error inside ends the run: a rank that fails must not wait for the others here.
        """
        self._exchange()
        yield
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, main in self._pairs():
            kept = main.clone()
            main.copy_(average)
            average.copy_(kept)
        self.refresh()

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this rank's share of each average, and of its main weight."""
        for member in members(self.optimizer):
            for main, state in _mains(member):
                yield _shard(state[AVERAGE]), _shard(main.detach())


def average_of(
    ema: DictConfig,
    optimizer: Any,
    offloaded_from: torch.device | None,
    publish: Callable[[Any], None],
) -> WeightAverage | None:
    """Returns what `exp_manager.ema` asks for, None if it asks for none.

    Args:
        ema: the section.
        optimizer: whose main weights are averaged; its state lies in CPU memory if it is `offloaded_from` a device.
        offloaded_from: that device.
        publish: has the model compute with the main weights of an optimizer.
    """
    if not ema.enable:
        return None

    def refresh() -> None:
        with state_on_device(optimizer, offloaded_from):
            publish(optimizer)

    on_cpu = ema.cpu_offload or offloaded_from is not None
    return WeightAverage(optimizer, ema.decay, ema.every_n_steps, on_cpu, refresh)


def _mains(member: Any) -> Iterator[tuple[nn.Parameter, dict[str, Tensor]]]:
    """Yields what an optimizer updates, with its state."""
    for group in member.optimizer.param_groups:
        for main in group["params"]:
            yield main, member.optimizer.state[main]


def _mark(member: Any, has_average: bool) -> None:
    for group in member.optimizer.param_groups:
        group[AVERAGE] = has_average


def _shard(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
