"""Idefics2's tower: SigLIP with positions by fraction (transformers 5.23, `models/idefics2`; equal in 4.x).

A patch has the learned position of the place, as a share of height and width, at which it lies in its picture (NaViT,
https://arxiv.org/abs/2307.06304). So pictures may have any shape, and none is padded here: a picture alone has the
features that it has among others in transformers, padded and masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.families.clip.config import CLIP_DEFAULTS
from neva.families.clip.encoder import EncoderFamily, embedding_shapes, encoder_shapes
from neva.families.configs import VisionConfig
from neva.families.mapping import Shape
from neva.families.siglip.config import WITHOUT_HEAD
from neva.families.vision_table import POOLING
from neva.registry import VISION_FAMILIES

BILINEAR = 2
"""Pillow's number of the filter that the hub's Idefics2 resizes with."""


@dataclass(frozen=True)
class Idefics2VisionFamily(EncoderFamily):
    """SigLIP's tensors without its pooling; no layout of LLaVA holds such a tower."""

    wrapper: str = ""
    positions: str | None = None
    also_loads: tuple[str, ...] = ("siglip",)

    def tensor_shapes(self, vision: VisionConfig, pooling_head: bool) -> dict[str, Shape]:
        """See `VisionFamily`."""
        bias = {"embeddings.patch_embedding.bias": (vision.hidden_size,)}
        return embedding_shapes(vision) | bias | encoder_shapes(vision)

    def build(self, vision: VisionConfig) -> Any:
        """See `VisionFamily`."""
        from transformers.models.idefics2.modeling_idefics2 import (
            Idefics2VisionConfig,
            Idefics2VisionTransformer,
        )

        config = Idefics2VisionConfig(**self.sizes(vision))
        config._attn_implementation = "sdpa"
        return Idefics2VisionTransformer(config)

    def first_arguments(self, module: Any, pixel_values: Any, is_other: bool) -> dict[str, Any]:
        """Returns the mask that tells how many patches a picture has in each direction: it is all picture."""
        number, _, height, width = pixel_values.shape
        patches = (number, height // module.patch_size, width // module.patch_size)
        return {"patch_attention_mask": pixel_values.new_ones(patches, dtype=bool)}

    def processor_settings(self, size: int) -> dict[str, Any]:
        """See `VisionFamily`."""
        return {**super().processor_settings(size), "resample": BILINEAR}


VISION_FAMILIES.register(
    "idefics2_vision",
    Idefics2VisionFamily(
        "idefics2_vision",
        {**CLIP_DEFAULTS, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        image_processor="SiglipImageProcessor",
        unused=(POOLING,),
        module_order=WITHOUT_HEAD,
        layer_order=(
            *(f"self_attn.{part}_proj." for part in ("k", "v", "q", "out")),
            "layer_norm1.",
            "mlp.",
            "layer_norm2.",
        ),
    ),
)
