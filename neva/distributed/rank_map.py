"""Which rank sits where: host, device and coordinates along the parallel axes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

logger = logging.getLogger(__name__)

COLUMNS = ("rank", "host", "device", "tp", "pp", "cp", "dp", "ep")


def log_rank_map(device: torch.device) -> None:
    """Logs one line a rank, once, on rank 0. Called by every rank."""
    mine = (
        dist.get_rank(),
        socket.gethostname(),
        str(device),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_context_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_expert_model_parallel_rank(),
    )
    rows: list[tuple[object, ...]] = [()] * dist.get_world_size()
    dist.all_gather_object(rows, mine)
    if dist.get_rank() == 0:
        logger.info("%s ranks\n%s", len(rows), table([COLUMNS, *rows]))


def table(rows: Sequence[Sequence[object]]) -> str:
    """Returns the rows with their columns aligned."""
    texts = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )
