"""DINOv2's `config.json` (transformers 5.23, `models/dinov2`). Its table is not written: it cannot be exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neva.families.configs import VisionConfig
from neva.families.values import whole
from neva.families.vision import VisionFamily
from neva.registry import VISION_FAMILIES


@dataclass(frozen=True)
class Dinov2Family(VisionFamily):
    """The feed-forward width is a multiple of the hidden one."""

    def read(self, config: Mapping[str, Any], select_layer: int) -> VisionConfig:
        """See `VisionFamily`."""
        values = {**self.defaults, **config}
        width = whole(values, "hidden_size") * whole(values, "mlp_ratio")
        return super().read({"intermediate_size": width, **config}, select_layer)


VISION_FAMILIES.register(
    "dinov2",
    Dinov2Family(
        "dinov2",
        {
            "hidden_size": 768,
            "mlp_ratio": 4,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 14,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        },
        class_tokens=1,
    ),
)
