"""ViT's and DeiT's `config.json` (transformers 5.23, `models/vit` and `models/deit`)."""

from __future__ import annotations

from typing import Any

from neva.families.clip.config import CLIP_DEFAULTS
from neva.families.vision import VisionFamily
from neva.registry import VISION_FAMILIES

_KEYS = ("qkv_bias", "pooler_output_size", "pooler_act")
_DEFAULTS: dict[str, Any] = {
    **CLIP_DEFAULTS,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "pooler_act": "tanh",
}

for _model_type, _class_tokens in (("vit", 1), ("deit", 2)):  # DeiT's second one is for distillation
    VISION_FAMILIES.register(
        _model_type,
        VisionFamily(
            _model_type,
            _DEFAULTS,
            class_tokens=_class_tokens,
            exported_type=_model_type,
            image_processor="ViTImageProcessor",
            layers="layers",
            last_norm="layernorm",
            positions="embeddings.position_embeddings",
            unused=("pooler.",),
            other_keys=_KEYS,
        ),
    )
