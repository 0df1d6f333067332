"""Rotary position embedding of all kinds that transformers has for text.

The frequencies are transformers' own (`modeling_rope_utils`); Megatron has three of the kinds, and none by length.
Cos and sin are taken once a step, not in every layer.

Dimensions: S positions, B micro batch, H heads, D head size, R elements of a head that are turned, T sets of angles
(2 where layers with a window have a base of their own, first those without; else 1).
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
        self._last: tuple[tuple[int, torch.device, torch.dtype], Tensor] | None = None

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

    def waves(self, length: int, like: Tensor) -> Tensor:
        """Returns what `turned` takes, [S, 1, 1, T * R], for the positions of a sequence; kept for the next call.

        Of each set the cosines of its pairs and then their sines, with the attention factor, of the dtype of `like`.
        """
        key = (length, like.device, like.dtype)
        if self._last is None or self._last[0] != key:
            pairs = self._pairs(_positions(length, like.device), length)
            waves = torch.cat([wave for pair in pairs for wave in (pair.cos(), pair.sin())], dim=-1)
            self._last = key, (waves * self.attention_factor).to(like.dtype)[:, None, None]
        return self._last[1]

    def angles(self, length: int, device: torch.device) -> Tensor:
        """Returns radians, float32 [S, T * R], of the positions of a whole sequence; each pair's stand twice."""
        return _twice(self._pairs(_positions(length, device), length))

    def angles_of_last(self, length: int, device: torch.device) -> Tensor:
        """Returns radians, float32 [1, T * R], of the last position of a sequence."""
        return _twice(self._pairs(_positions(length, device)[-1:], length))

    def _pairs(self, positions_S: Tensor, length: int) -> list[Tensor]:
        """Returns radians, float32 [S, R / 2], of each set."""
        sets = [self.frequencies(length)[0]]
        if (local := self.language.form.local_rope_theta) is not None:
            sets.append(plain_frequencies(local, self.language.rotary_dim))
        return [torch.outer(positions_S, frequencies.to(positions_S.device)) for frequencies in sets]


class _HeadConfig:
    """What transformers' functions ask a model's configuration for, of a head of which all is turned."""

    def __init__(self, head_dim: int, longest: int, parameters: dict[str, Any]) -> None:
        self.head_dim, self.max_position_embeddings, self.rope_parameters = head_dim, longest, parameters
        self.hidden_size, self.num_attention_heads = head_dim, 1

    def standardize_rope_params(self) -> None:
        """They are."""


def _positions(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, device=device, dtype=torch.float32)


def _twice(sets: list[Tensor]) -> Tensor:
    return torch.cat([pairs for pairs in sets for _ in range(2)], dim=-1)


def turned(heads_SBHD: Tensor, waves_SB1R: Tensor) -> Tensor:
    """Returns queries or keys [S, B, H, D] of which the first R elements are turned; halves are pairs, as in LLaMA.

    One pass over memory where layers are compiled (https://arxiv.org/abs/2104.09864). Laid out as [B, H, S, D] a CPU's
    attention would read them faster, but its output would lie so too, and be copied and kept twice.
    """
    half = waves_SB1R.size(-1) // 2
    cos, sin = waves_SB1R.split(half, dim=-1)
    first, second, rest = heads_SBHD.split([half, half, heads_SBHD.size(-1) - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def plain_frequencies(theta: float, size: int) -> Tensor:
    """Returns radians a position, float32 [size / 2] (https://arxiv.org/abs/2104.09864)."""
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)
