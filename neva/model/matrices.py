"""Which matrices a decoder layer multiplies with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def decoder_matrices(layer: Any) -> Iterator[Any]:
    """Yields the parallel matrices of one of Megatron's layers: of attention, then of its MLP or of all experts."""
    yield from (layer.self_attention.linear_qkv, layer.self_attention.linear_proj)
    mlp = layer.mlp
    if hasattr(mlp, "linear_fc1"):
        yield from (mlp.linear_fc1, mlp.linear_fc2)
        return
    for expert in (*mlp.experts.local_experts, *([] if mlp.shared_experts is None else [mlp.shared_experts])):
        yield from (expert.linear_fc1, expert.linear_fc2)
