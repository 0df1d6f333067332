"""CLIP's `config.json`, tensors and image processor (transformers 5.23, `models/clip`; equal in 4.x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.families.clip.encoder import EncoderFamily, embedding_shapes, encoder_shapes, norm_shapes
from neva.families.configs import VisionConfig
from neva.families.mapping import Shape
from neva.registry import VISION_FAMILIES

CLIP_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class ClipFamily(EncoderFamily):
    """A class token, and a norm before the layers."""

    def tensor_shapes(self, vision: VisionConfig, pooling_head: bool) -> dict[str, Shape]:
        """See `VisionFamily`."""
        hidden = vision.hidden_size
        embeddings = embedding_shapes(vision) | {"embeddings.class_embedding": (hidden,)}
        pre_norm = norm_shapes("pre_layrnorm", hidden)  # transformers' spelling
        return embeddings | pre_norm | encoder_shapes(vision)

    def processor_settings(self, size: int) -> dict[str, Any]:
        """Resizes the shorter side, then crops."""
        return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


VISION_FAMILIES.register(
    "clip",
    ClipFamily(
        "clip",
        CLIP_DEFAULTS,
        class_tokens=1,
        classes=("CLIPVisionConfig", "CLIPVisionModel"),
        exported_type="clip_vision_model",
        image_processor="CLIPImageProcessor",
        module_order=(
            "embeddings.class_embedding",
            "embeddings.",
            "pre_layrnorm.",
            "encoder.",
            "post_layernorm.",
        ),
        layer_order=("self_attn.", "layer_norm1.", "mlp.", "layer_norm2."),
    ),
)
