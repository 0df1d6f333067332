"""A perceiver resampler (https://arxiv.org/abs/2103.03206) as Idefics2 has it (transformers 5.23, `models/idefics2`).

Dimensions: T tiles, P patches of a tile, H tower width, Q latents, D hidden, K keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6


class GatedLayer(nn.Module):
    """Two matrices in, of which one is a gate, and one out; no biases."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(inputs, inner, bias=False)
        self.up_proj = nn.Linear(inputs, inner, bias=False)
        self.down_proj = nn.Linear(inner, outputs, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the same dimensions with `outputs` as the last."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class PerceiverLayer(nn.Module):
    """Latents attend to the features, and to themselves unless `separate`."""

    def __init__(self, width: int, heads: int, groups: int, head_dim: int, separate: int) -> None:
        super().__init__()
        self.head_dim, self.separate = head_dim, bool(separate)
        self.input_latents_norm = nn.RMSNorm(width, eps=EPSILON)
        self.input_context_norm = nn.RMSNorm(width, eps=EPSILON)
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, groups * head_dim, bias=False)
        self.v_proj = nn.Linear(width, groups * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=EPSILON)
        self.mlp = GatedLayer(width, 4 * width, width)

    def forward(self, latents_TQD: Tensor, context_TPD: Tensor) -> Tensor:
        """Returns [T, Q, D]."""
        latents, context = self.input_latents_norm(latents_TQD), self.input_context_norm(context_TPD)
        seen_TKD = context if self.separate else torch.cat([context, latents], dim=1)
        query, key, value = (
            projection(hidden).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for projection, hidden in (
                (self.q_proj, latents),
                (self.k_proj, seen_TKD),
                (self.v_proj, seen_TKD),
            )
        )
        attended = F.scaled_dot_product_attention(query, key, value, enable_gqa=query.size(1) != key.size(1))
        latents_TQD = latents_TQD + self.o_proj(attended.transpose(1, 2).flatten(2))
        return latents_TQD + self.mlp(self.post_attention_layernorm(latents_TQD))


class Perceiver(nn.Module):
    """Features, projected to the width of the language model, become as many positions as there are latents.

    The latents are drawn: Idefics2's begin as ones, so that all of them would learn the same.
    """

    def __init__(
        self,
        vision_hidden_size: int,
        hidden_size: int,
        latents: int,
        depth: int,
        heads: int,
        head_dim: int,
        groups: int,
        inner: int,
        separate: int,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, hidden_size) * 0.02)
        self.modality_projection = (
            GatedLayer(vision_hidden_size, inner, hidden_size)
            if inner
            else nn.Linear(vision_hidden_size, hidden_size, bias=False)
        )
        self.layers = nn.ModuleList(
            PerceiverLayer(hidden_size, heads, groups, head_dim, separate) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(hidden_size, eps=EPSILON)

    def forward(self, features_TPH: Tensor) -> Tensor:
        """Returns [T, Q, D]."""
        context_TPD = self.modality_projection(features_TPH)
        latents_TQD = self.latents.expand(len(features_TPH), -1, -1)
        for layer in self.layers:
            latents_TQD = layer(latents_TQD, context_TPD)
        return self.norm(latents_TQD)
