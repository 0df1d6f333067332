"""SigLIP's `config.json`, tensors and image processor (transformers 5.23, `models/siglip`; equal in 4.x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.families.clip.config import CLIP_DEFAULTS
from neva.families.clip.encoder import (
    EncoderFamily,
    embedding_shapes,
    encoder_shapes,
    linear_shapes,
    norm_shapes,
)
from neva.families.configs import VisionConfig
from neva.families.mapping import Shape
from neva.families.vision_table import POOLING
from neva.registry import VISION_FAMILIES


@dataclass(frozen=True)
class SiglipFamily(EncoderFamily):
    """A bias in the patch embedding, and attention pooling behind the layers."""

    def write(self, vision: VisionConfig, pooling_head: bool) -> dict[str, Any]:
        """See `VisionFamily`."""
        return {**super().write(vision, pooling_head), "vision_use_head": pooling_head}

    def tensor_shapes(self, vision: VisionConfig, pooling_head: bool) -> dict[str, Shape]:
        """See `VisionFamily`."""
        embeddings = embedding_shapes(vision) | {"embeddings.patch_embedding.bias": (vision.hidden_size,)}
        return embeddings | encoder_shapes(vision) | (_pooling_shapes(vision) if pooling_head else {})


def _pooling_shapes(vision: VisionConfig) -> dict[str, Shape]:
    hidden, ffn = vision.hidden_size, vision.ffn_hidden_size
    shapes: dict[str, Shape] = {"head.probe": (1, 1, hidden), **norm_shapes("head.layernorm", hidden)}
    shapes |= {
        "head.attention.in_proj_weight": (3 * hidden, hidden),
        "head.attention.in_proj_bias": (3 * hidden,),
    }
    shapes |= linear_shapes("head.attention.out_proj", hidden, hidden)
    return shapes | linear_shapes("head.mlp.fc1", ffn, hidden) | linear_shapes("head.mlp.fc2", hidden, ffn)


WITHOUT_HEAD = ("embeddings.patch_embedding.", "embeddings.", "encoder.", "post_layernorm.")
"""Modules of the tower in their order, but for the pooling head."""

VISION_FAMILIES.register(
    "siglip",
    SiglipFamily(
        "siglip",
        {**CLIP_DEFAULTS, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        class_tokens=0,
        classes=("SiglipVisionConfig", "SiglipVisionModel"),
        exported_type="siglip_vision_model",
        image_processor="SiglipImageProcessor",
        unused=(POOLING,),
        module_order=(*WITHOUT_HEAD, "head.probe", "head.attention.", "head.layernorm.", "head.mlp."),
        layer_order=("layer_norm1.", "self_attn.", "layer_norm2.", "mlp."),
    ),
)
