"""Rotary position embedding of all kinds that transformers has for text: how fast each pair of elements is turned.

The frequencies are transformers' own (`modeling_rope_utils`); Megatron has three of the kinds, and none by length.

Dimensions: S positions, R elements of a head that are turned, T sets of angles (2 where layers with a window have a
base of their own, first those without; else 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from neva.families.configs import LanguageConfig
from neva.families.rope import BY_LENGTH, LONGROPE, ORIGINAL


class Rotary:
    """The angles of a model's positions."""

    def __init__(self, language: LanguageConfig) -> None:
        self.language = language
        self.scaling: dict[str, Any] = dict(language.rope_scaling or {})
        self.kind = self.scaling.get("rope_type", "default")
        self.original_length: float | None = self.scaling[ORIGINAL] if self.kind in BY_LENGTH else None
        """Up to which length the frequencies are the same, where they depend on it."""
        self.has_local = language.form.local_rope_theta is not None
        self._last: tuple[tuple[int, torch.device], Tensor] | None = None

    @property
    def turning_length(self) -> int | None:
        """Length from which on all positions of a sequence have other angles; None: they keep theirs as it grows."""
        return int(self.scaling[ORIGINAL]) + 1 if self.kind == LONGROPE else None

    @property
    def attention_factor(self) -> float:
        """What turned queries and keys are multiplied by."""
        return self.frequencies(None)[1]

    def frequencies(self, length: int | None) -> tuple[Tensor, float]:
        """Returns radians a position, float32 [R / 2], in sequences of that length, and the attention factor."""
        theta = self.language.rope_theta
        if self.kind == "default":
            return plain_frequencies(theta, self.language.rotary_dim), 1.0
        parameters = {**self.scaling, "rope_theta": theta}
        longest = int(parameters.get(ORIGINAL, self.language.max_positions))
        config = _HeadConfig(self.language.rotary_dim, longest, parameters)
        with torch.device("cpu"):  # a model may be built without memory
            return ROPE_INIT_FUNCTIONS[self.kind](config, torch.device("cpu"), seq_len=length)

    def angles(self, length: int, device: torch.device) -> Tensor:
        """Returns radians, float32 [S, 1, 1, T * R], of the positions of a whole sequence; kept for the next call."""
        if self._last is None or self._last[0] != (length, device):
            positions = torch.arange(length, device=device, dtype=torch.float32)
            self._last = ((length, device), self._turned(positions, length)[:, None, None])
        return self._last[1]

    def angles_of_last(self, length: int, device: torch.device) -> Tensor:
        """Returns radians, float32 [1, T * R], of the last position of a sequence."""
        return self._turned(torch.tensor([length - 1.0], device=device, dtype=torch.float32), length)

    def _turned(self, positions_S: Tensor, length: int) -> Tensor:
        sets = [self.frequencies(length)[0]]
        if (local := self.language.form.local_rope_theta) is not None:
            sets.append(plain_frequencies(local, self.language.rotary_dim))
        halves = [torch.outer(positions_S, frequencies.to(positions_S.device)) for frequencies in sets]
        return torch.cat([half for half in halves for _ in range(2)], dim=-1)


class _HeadConfig:
    """What transformers' functions ask a model's configuration for, of a head of which all is turned."""

    def __init__(self, head_dim: int, longest: int, parameters: dict[str, Any]) -> None:
        self.head_dim, self.max_position_embeddings, self.rope_parameters = head_dim, longest, parameters
        self.hidden_size, self.num_attention_heads = head_dim, 1

    def standardize_rope_params(self) -> None:
        """They are."""


def plain_frequencies(theta: float, size: int) -> Tensor:
    """Returns radians a position, float32 [size / 2] (https://arxiv.org/abs/2104.09864)."""
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)
