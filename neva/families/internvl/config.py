"""InternViT's `config.json` as transformers has it (5.23, `models/internvl`; the hub's OpenGVLab/…-hf folders)."""

from __future__ import annotations

from typing import Any

from neva.families.vision import VisionFamily
from neva.registry import VISION_FAMILIES

_MORE: dict[str, Any] = {
    "attention_bias": False,
    "use_qk_norm": False,
    "norm_type": "layer_norm",
    "layer_scale_init_value": 0.1,
    "use_absolute_position_embeddings": True,
    "use_mask_token": False,
    "use_mean_pooling": True,
}

VISION_FAMILIES.register(
    "internvl_vision",
    VisionFamily(
        "internvl_vision",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 448,
            "patch_size": 14,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            **_MORE,
        },
        class_tokens=1,
        exported_type="internvl_vision",
        image_processor="CLIPImageProcessor",
        layers="encoder.layer",
        last_norm="layernorm",
        positions="embeddings.position_embeddings",
        unused=("embeddings.mask_token",),
        other_keys=tuple(_MORE),
    ),
)
