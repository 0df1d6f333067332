"""What is done with gradients when a global batch is through, whoever holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from torch import Tensor


def finalize_gradients(
    gradient_of: Callable[[Any], Tensor], chunks: list[Any], num_tokens: Tensor | None, **arguments: Any
) -> None:
    """Sums tower and projector gradients over the tensor-parallel ranks, then does what Megatron does."""
    _sum_image_gradients(chunks, gradient_of)
    finalize_model_grads(chunks, num_tokens, **arguments)


def _sum_image_gradients(chunks: Sequence[Any], gradient_of: Callable[[Any], Tensor]) -> None:
    """Each tensor-parallel rank encodes other tiles."""
    gradients = [gradient_of(parameter) for chunk in chunks for parameter in chunk.module.image_parameters()]
    if not gradients or parallel_state.get_tensor_model_parallel_world_size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=parallel_state.get_tensor_model_parallel_group())
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
