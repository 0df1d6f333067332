"""One global batch through Megatron's schedule: forward, backward, and a loss that no split of the batch changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from neva.data.batch import Batch
from neva.model.llava import NevaModel


@dataclass(frozen=True)
class StepLoss:
    """Sum of the losses over all label tokens of the global batch, and their number, equal on every rank."""

    loss_sum: float
    num_label_tokens: int

    @property
    def mean(self) -> float:
        """Loss per label token; 0 for a batch without labels."""
        return self.loss_sum / max(1, self.num_label_tokens)


def data_parallel(
    models: Sequence[NevaModel], distributed_optimizer: bool = False
) -> list[DistributedDataParallel]:
    """Wraps a rank's model pieces for Megatron: gradient buffers for what trains, summed in float32 over the ranks.

    With `distributed_optimizer`, each data-parallel rank receives the gradients of its share of the parameters.
    """
    model_config = models[0].config
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=model_config.params_dtype in (torch.bfloat16, torch.float16),
        use_distributed_optimizer=distributed_optimizer,
    )
    chunks = [
        DistributedDataParallel(config=model_config, ddp_config=config, module=model) for model in models
    ]
    model_config.finalize_model_grads_func = finalize_gradients
    no_sync = [chunk.no_sync for chunk in chunks]
    model_config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
    return chunks


def finalize_gradients(
    chunks: list[DistributedDataParallel], num_tokens: Tensor | None, **arguments: Any
) -> None:
    """Sums tower and projector gradients over the tensor-parallel ranks, then does what Megatron does."""
    gradients = [parameter.main_grad for chunk in chunks for parameter in chunk.module.image_parameters()]
    if gradients and parallel_state.get_tensor_model_parallel_world_size() > 1:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=parallel_state.get_tensor_model_parallel_group())
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
    finalize_model_grads(chunks, num_tokens, **arguments)


def run_global_batch(
    chunks: list[DistributedDataParallel],
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


def _forward_step(data: Iterator[Batch], model: DistributedDataParallel, device: torch.device) -> Any:
    micro = next(data).to(device)
    return model(micro.input_ids, micro.pixel_values, labels=micro.labels), _sum_loss


def _sum_loss(losses_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what Megatron's schedule asks for: the summed loss, the number of tokens, and what to report."""
    num_tokens = torch.tensor(losses_L.numel(), dtype=torch.int, device=losses_L.device)
    loss_sum = losses_L.sum()
    return loss_sum, num_tokens, torch.stack([loss_sum.detach().double(), num_tokens.double()])
