"""Megatron's self-attention with what it lacks: two sets of angles, and the factor of scaled RoPE."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from neva.families.configs import LanguageConfig


class DecoderAttention(SelfAttention):
    """Chooses its angles, and scales what is turned.

    Args:
        language: sizes and form.
        attention_factor: what turned queries and keys are multiplied by.
        arguments: those of Megatron's layer.
    """

    def __init__(
        self, *positional: Any, language: LanguageConfig, attention_factor: float, **arguments: Any
    ) -> None:
        super().__init__(*positional, **arguments)
        self.rotary_dim = language.rotary_dim
        has_own_base = language.form.local_rope_theta is not None
        self.angles = int(has_own_base and language.has_window(self.layer_number - 1))
        self.attention_factor = attention_factor

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary_pos_emb: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """See Megatron's; `rotary_pos_emb` [S, 1 or B, 1, T * R] are the angles of all sets."""
        assert rotary_pos_emb is not None
        angles = rotary_pos_emb.split(self.rotary_dim, dim=-1)[self.angles]
        output: tuple[Tensor, Tensor] = super().forward(
            hidden_states, attention_mask, rotary_pos_emb=angles, **others
        )
        return output

    def get_query_key_value_tensors(self, *positional: Any, **arguments: Any) -> Any:
        """Returns queries, keys and values, the first two multiplied by the factor where they are turned."""
        query, key, value = super().get_query_key_value_tensors(*positional, **arguments)
        if self.attention_factor != 1:
            query, key = self._scaled(query), self._scaled(key)
        return query, key, value

    def _scaled(self, heads: Tensor) -> Tensor:
        turned, rest = heads.split([self.rotary_dim, heads.size(-1) - self.rotary_dim], dim=-1)
        return torch.cat([turned * self.attention_factor, rest], dim=-1)
