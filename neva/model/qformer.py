"""BLIP-2's Q-Former (https://arxiv.org/abs/2301.12597), by transformers' own module.

Dimensions: T tiles, P patches of a tile, H tower width, Q queries, W their width, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel


class QFormer(nn.Module):
    """Features become as many positions as there are queries; no dropout, as everywhere."""

    def __init__(
        self,
        vision_hidden_size: int,
        hidden_size: int,
        queries: int,
        depth: int,
        heads: int,
        head_dim: int,
        inner: int,
        every: int,
    ) -> None:
        super().__init__()
        width = heads * head_dim
        self.query_tokens = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.qformer: Any = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=inner,
                encoder_hidden_size=vision_hidden_size,
                cross_attention_frequency=every,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        self.language_projection = nn.Linear(width, hidden_size)

    def forward(self, features_TPH: Tensor) -> Tensor:
        """Returns [T, Q, D]."""
        queries_TQW = self.query_tokens.expand(len(features_TPH), -1, -1)
        seen = self.qformer(query_embeds=queries_TQW, encoder_hidden_states=features_TPH)
        projected: Tensor = self.language_projection(seen.last_hidden_state)
        return projected
