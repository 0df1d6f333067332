"""Core attention over `scaled_dot_product_attention`, and a norm, for Megatron's layer spec.

Megatron's local attention builds its mask with a literal CUDA device and materialises the scores; its local norm
refuses sequence parallel. On a GPU, SDPA picks the FlashAttention kernel, so Transformer Engine is not needed.

Dimensions: S query positions, K key positions (under context parallel S is a shard of K), B micro batch,
H heads of this rank, G query groups of this rank, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from neva.model.context import chunk_ends, gather_sequence


class SDPAttention(MegatronModule):
    """Causal (optionally sliding-window) attention; the slot `core_attention` of a Megatron layer."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,  # cp_comm_type: keys and values are gathered
    ) -> None:
        super().__init__(config=config)
        assert pg_collection is not None
        self.context_group = pg_collection.cp
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout
        self.window = config.window_size[0] + 1 if config.window_size is not None else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attends.

        Args:
            query: [S, B, H, D].
            key, value: [K, B, G, D].
            attention_mask: bool [B, 1, S, K], True where a query may look; None means causal.

        Returns:
            [S, B, H*D].
        """
        assert attention_bias is None and packed_seq_params is None
        if self.context_group.size() > 1:
            return self._attend_to_whole_sequence(query, key, value)
        if attention_mask is None and self.window is not None and key.size(0) > self.window:
            attention_mask = sliding_window_mask(query.size(0), key.size(0), self.window, query.device)
        return self._attend(query, key, value, attention_mask)

    def _attend_to_whole_sequence(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Gathers keys and values; each of the two chunks of queries looks at what ends with itself."""
        key_value = gather_sequence(torch.cat([key, value], dim=-1), self.context_group)
        outputs = []
        for chunk, end in zip(query.chunk(2), chunk_ends(len(key_value), self.context_group), strict=True):
            seen_key, seen_value = key_value[:end].chunk(2, dim=-1)
            if self.window is not None and end > self.window:
                mask: Tensor = sliding_window_mask(len(chunk), end, self.window, query.device)
            else:
                mask = causal_lower_right(len(chunk), end)
            outputs.append(self._attend(chunk, seen_key, seen_value, mask))
        return torch.cat(outputs)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out_BHSD = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=mask,
            is_causal=mask is None and query.size(0) > 1,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.softmax_scale,
            enable_gqa=query.size(2) != key.size(2),
        )
        return out_BHSD.permute(2, 0, 1, 3).flatten(2)


def sliding_window_mask(num_queries: int, num_keys: int, window: int, device: torch.device) -> Tensor:
    """Returns the bool mask [S, K] in which the last `num_queries` positions see `window` keys, themselves included."""
    query_positions = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    distance = query_positions - torch.arange(num_keys, device=device)[None, :]
    return (distance >= 0) & (distance < window)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` that tells Megatron to sum its gradient over ranks under sequence parallel."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
