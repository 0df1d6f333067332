"""DINOv3's `config.json` (transformers 5.23, `models/dinov3_vit`): rotary positions, so that any size is its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.families.vision import REGISTERS, VisionFamily
from neva.registry import VISION_FAMILIES

_MORE: dict[str, Any] = {
    REGISTERS: 0,
    "rope_theta": 100.0,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "layerscale_value": 1.0,
    "use_gated_mlp": False,
    "pos_embed_rescale": 2.0,
}


@dataclass(frozen=True)
class Dinov3Family(VisionFamily):
    """Every layer is given the angles of its patches."""

    def layer_arguments(self, tower: Any, pixel_values: Any) -> dict[str, Any]:
        """See `VisionFamily`."""
        return {"position_embeddings": tower.rope_embeddings(pixel_values)}


VISION_FAMILIES.register(
    "dinov3_vit",
    Dinov3Family(
        "dinov3_vit",
        {
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            **_MORE,
        },
        class_tokens=1,
        exported_type="dinov3_vit",
        image_processor="ViTImageProcessor",
        layers="model.layer",
        last_norm="norm",
        unused=("embeddings.mask_token",),
        other_keys=tuple(_MORE),
    ),
)
