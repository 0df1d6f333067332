"""DINOv2's `config.json`, with registers and without (transformers 5.23, `models/dinov2`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neva.families.configs import VisionConfig
from neva.families.values import whole
from neva.families.vision import REGISTERS, VisionFamily
from neva.registry import VISION_FAMILIES

DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "mlp_ratio": 4,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}


@dataclass(frozen=True)
class Dinov2Family(VisionFamily):
    """The feed-forward width is a multiple of the hidden one."""

    layers: str | None = "encoder.layer"
    last_norm: str | None = "layernorm"
    positions: str | None = "embeddings.position_embeddings"
    unused: tuple[str, ...] = ("embeddings.mask_token",)
    image_processor: str | None = "BitImageProcessor"
    other_keys: tuple[str, ...] | None = ("qkv_bias", "layerscale_value", "use_swiglu_ffn", REGISTERS)

    def read(self, config: Mapping[str, Any], select_layer: int | tuple[int, ...]) -> VisionConfig:
        """See `VisionFamily`."""
        values = {**self.defaults, **config}
        width = whole(values, "hidden_size") * whole(values, "mlp_ratio")
        return super().read({**config, "intermediate_size": width}, select_layer)

    def sizes(self, vision: VisionConfig) -> dict[str, Any]:
        """See `VisionFamily`."""
        sizes = super().sizes(vision)
        return {**sizes, "mlp_ratio": sizes.pop("intermediate_size") // vision.hidden_size}

    def processor_settings(self, size: int) -> dict[str, Any]:
        """Resizes the shorter side, then crops."""
        return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


VISION_FAMILIES.register("dinov2", Dinov2Family("dinov2", DEFAULTS, class_tokens=1, exported_type="dinov2"))
VISION_FAMILIES.register(
    "dinov2_with_registers",
    Dinov2Family(
        "dinov2_with_registers",
        {**DEFAULTS, REGISTERS: 4},
        class_tokens=1,
        exported_type="dinov2_with_registers",
    ),
)
