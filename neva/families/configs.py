"""Configurations of tower and language model: what every family's `config.json` and our YAML are read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower. Image sizes are pixels of a square side."""

    model_type: str
    image_size: int
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_hidden_size: int
    hidden_act: str
    layer_norm_eps: float
    select_layer: int
    class_token_length: int
    image_tiles: bool = False
    """Whether images have twice the side, and the tower sees their quarters."""

    @property
    def num_tokens(self) -> int:
        """Patch features of one picture that the tower sees, without class tokens."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_features(self) -> int:
        """Patch features of the map of one image, of which the connector makes positions."""
        return self.num_tokens * (4 if self.image_tiles else 1)

    @property
    def input_size(self) -> int:
        """Side of an image that the model takes."""
        return self.image_size * (2 if self.image_tiles else 1)


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of a LLaMA-type language model; `padded_vocab_size` counts the rows of embedding and head.

    `family` is the Hugging Face `model_type` of a family that the sizes do not tell; None: they do.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    padded_vocab_size: int
    max_positions: int
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    rms_norm_eps: float
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    sliding_window: int | None
    family: str | None = None


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """Returns the next multiple of `divisible_by * tensor_parallel_size` from `vocab_size` on (Megatron's rule)."""
    multiple = divisible_by * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple
