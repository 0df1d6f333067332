"""Hidden states from one pipeline stage to the next, where Megatron's schedules do not run: in generation."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor


class StageLink:
    """What this rank's pipeline stage receives and sends; all its stages take part in every call in the same order."""

    def __init__(self) -> None:
        self._group = parallel_state.get_pipeline_model_parallel_group()
        ranks = dist.get_process_group_ranks(self._group)
        self._ranks, self._place = ranks, ranks.index(dist.get_rank())
        self.is_first = self._place == 0
        """Whether this stage embeds tokens."""
        self.is_last = self._place == len(ranks) - 1
        """Whether this stage has the head."""

    def received(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns what the stage before has sent."""
        tensor = torch.empty(shape, dtype=dtype, device=device)
        dist.recv(tensor, self._ranks[self._place - 1], self._group)
        return tensor

    def send(self, hidden: Tensor) -> None:
        """Sends to the next stage."""
        dist.send(hidden.contiguous(), self._ranks[self._place + 1], self._group)

    def of_last(self, found: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Returns what the last stage has found, a float32 tensor of `shape`, on every stage."""
        if len(self._ranks) == 1:
            assert found is not None
            return found
        tensor = torch.empty(shape, device=device) if found is None else found.float().contiguous()
        dist.broadcast(tensor, self._ranks[-1], self._group)
        return tensor
