"""Gradients that ranks of one group have parts of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor


def sum_image_gradients(chunks: Sequence[Any], gradient_of: Callable[[Any], Tensor]) -> None:
    """Sums the gradients of tower and projector over the tensor-parallel ranks, each of which encodes other tiles."""
    gradients = [gradient_of(parameter) for chunk in chunks for parameter in chunk.module.image_parameters()]
    if not gradients or parallel_state.get_tensor_model_parallel_world_size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=parallel_state.get_tensor_model_parallel_group())
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
