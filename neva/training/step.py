"""One global batch through Megatron's schedule: forward, backward, and a loss that no split of the batch changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from neva.data.batch import Batch


@dataclass(frozen=True)
class StepLoss:
    """Sum of the losses over all label tokens of the global batch, and their number, equal on every rank."""

    loss_sum: float
    num_label_tokens: int

    @property
    def mean(self) -> float:
        """Loss per label token; 0 for a batch without labels."""
        return self.loss_sum / max(1, self.num_label_tokens)


def run_global_batch(
    chunks: list[MegatronModule],
    batch: list[Batch],
    device: torch.device,
    forward_only: bool = False,
) -> StepLoss:
    """Runs this rank's share of a global batch, micro batch by micro batch.

    Gradients are summed over micro batches and data-parallel ranks and divided once, by the number of label tokens in
    the whole global batch: the result does not depend on micro batch size, accumulation or data-parallel size.

    Args:
        chunks: wrapped model chunks of this rank.
        batch: micro batches as `neva.data.collate` makes them.
        device: where they are moved to.
        forward_only: no backward pass (validation).
    """
    losses = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, device=device),
        data_iterator=[iter(batch) for _ in chunks] if len(chunks) > 1 else iter(batch),
        model=chunks,
        num_microbatches=len(batch),
        seq_length=batch[0].input_ids.shape[1],
        micro_batch_size=batch[0].input_ids.shape[0],
        forward_only=forward_only,
    )
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for loss_sum_and_tokens in losses:  # only the last pipeline stage has any
        total += loss_sum_and_tokens
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    dist.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
    loss_sum, num_label_tokens = total.tolist()
    return StepLoss(loss_sum, int(num_label_tokens))


def _forward_step(data: Iterator[Batch], model: MegatronModule, device: torch.device) -> Any:
    micro = next(data).to(device)
    return model(micro.input_ids, micro.pixel_values, labels=micro.labels), _sum_loss


def _sum_loss(losses_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what Megatron's schedule asks for: the summed loss, the number of tokens, and what to report."""
    num_tokens = torch.tensor(losses_L.numel(), dtype=torch.int, device=losses_L.device)
    loss_sum = losses_L.sum()
    return loss_sum, num_tokens, torch.stack([loss_sum.detach().double(), num_tokens.double()])
