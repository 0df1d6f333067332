"""Megatron's self-attention, with queries and keys turned by waves that are the same in all layers."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from neva.families.configs import LanguageConfig
from neva.model.rotary import turned


class DecoderAttention(SelfAttention):
    """Turns queries and keys itself; Megatron's would take cos and sin of its angles in every layer.

    Args:
        language: sizes and form.
        arguments: those of Megatron's layer.
    """

    def __init__(self, *positional: Any, language: LanguageConfig, **arguments: Any) -> None:
        super().__init__(*positional, **arguments)
        self.rotary_dim = language.rotary_dim
        has_own_base = language.form.local_rope_theta is not None
        self.angles = int(has_own_base and language.has_window(self.layer_number - 1))
        self._waves: Tensor | None = None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary_pos_emb: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """See Megatron's; `rotary_pos_emb` [S, 1 or B, 1, T * R] are `Rotary.waves`."""
        assert rotary_pos_emb is not None
        self._waves = rotary_pos_emb.split(self.rotary_dim, dim=-1)[self.angles]
        output: tuple[Tensor, Tensor] = super().forward(hidden_states, attention_mask, **others)
        self._waves = None
        return output

    def get_query_key_value_tensors(self, *positional: Any, **arguments: Any) -> Any:
        """Returns queries and keys, turned, and values."""
        query, key, value = super().get_query_key_value_tensors(*positional, **arguments)
        assert self._waves is not None
        return turned(query, self._waves), turned(key, self._waves), value
