"""Sizes of tower and language model, computed from a resolved configuration for every room."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf


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

    @property
    def num_tokens(self) -> int:
        """Positions that one image takes in a sequence."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of a LLaMA-type language model; `padded_vocab_size` counts the rows of embedding and head."""

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


def vision_config_of(model_cfg: DictConfig) -> VisionConfig:
    """The tower of a resolved `model` section."""
    tower = model_cfg.mm_cfg.vision_encoder
    return VisionConfig(
        model_type=tower.model_type,
        image_size=tower.image_size,
        patch_size=tower.patch_dim,
        hidden_size=tower.hidden_size,
        num_layers=tower.num_layers,
        num_heads=tower.num_attention_heads,
        ffn_hidden_size=tower.ffn_hidden_size,
        hidden_act=tower.hidden_act,
        layer_norm_eps=tower.layernorm_epsilon,
        select_layer=tower.vision_select_layer,
        class_token_length=tower.class_token_length,
    )


def language_config_of(model_cfg: DictConfig) -> LanguageConfig:
    """The language model of a resolved `model` section."""
    rope_scaling = model_cfg.rope_scaling
    return LanguageConfig(
        num_layers=model_cfg.num_layers,
        hidden_size=model_cfg.hidden_size,
        ffn_hidden_size=model_cfg.ffn_hidden_size,
        num_heads=model_cfg.num_attention_heads,
        num_query_groups=model_cfg.num_query_groups,
        head_dim=model_cfg.kv_channels,
        vocab_size=model_cfg.vocab_size,
        padded_vocab_size=padded_vocab_size(
            model_cfg.vocab_size, model_cfg.make_vocab_size_divisible_by, model_cfg.tensor_model_parallel_size
        ),
        max_positions=model_cfg.max_position_embeddings,
        rope_theta=model_cfg.rotary_base,
        rope_scaling=None if rope_scaling is None else OmegaConf.to_container(rope_scaling),  # type: ignore[arg-type]
        rms_norm_eps=model_cfg.layernorm_epsilon,
        tied=model_cfg.share_embeddings_and_output_weights,
        qkv_bias=model_cfg.add_qkv_bias,
        qk_norm=model_cfg.qk_layernorm,
        sliding_window=model_cfg.window_size,
    )


def stage_layers(
    num_layers: int, pipeline: int, first: int | None = None, last: int | None = None
) -> list[int] | None:
    """Layers of each pipeline stage, `first` and `last` as given; None when the rest cannot be dealt evenly."""
    ends = {0: first, pipeline - 1: last} if pipeline > 1 else {}
    given = {stage: layers for stage, layers in ends.items() if layers is not None}
    left, stages = num_layers - sum(given.values()), pipeline - len(given)
    if (left % stages or left < stages) if stages else left:
        return None
    return [given.get(stage, left // stages if stages else 0) for stage in range(pipeline)]


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """The next multiple of `divisible_by * tensor_parallel_size` from `vocab_size` on (Megatron's rule)."""
    multiple = divisible_by * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple
