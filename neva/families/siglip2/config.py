"""SigLIP 2 NaFlex's `config.json`, tensors and patches (transformers 5.23, `models/siglip2`; equal in 4.49 and later).

A SigLIP whose patch embedding is a matrix over the numbers of a patch, and whose learned positions are interpolated to
the patches of each picture (https://arxiv.org/abs/2502.14786). transformers pads the pictures of a batch to as many
patches and masks that; here a picture is not padded, which is the same to it. SigLIP 2 of one resolution is a `siglip`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neva.errors import ConfigError
from neva.families.clip.config import CLIP_DEFAULTS
from neva.families.configs import VisionConfig
from neva.families.mapping import Shape
from neva.families.siglip.config import WITHOUT_HEAD, SiglipFamily
from neva.families.values import side, whole
from neva.families.vision_table import POOLING
from neva.registry import VISION_FAMILIES

BILINEAR = 2
"""Pillow's number of the filter that its image processor resizes with."""


@dataclass(frozen=True)
class Siglip2Family(SiglipFamily):
    """Its `config.json` has a number of learned positions in place of a size of images."""

    positions: str | None = None

    def read(self, config: Mapping[str, Any], select_layer: int | tuple[int, ...]) -> VisionConfig:
        """See `VisionFamily`. The images that it was trained with are the square of its learned positions.

        Raises:
            ConfigError: they are no square.
        """
        values = {**self.defaults, **config}
        patches = whole(values, "num_patches")
        rows = math.isqrt(patches)
        if rows * rows != patches:
            raise ConfigError(f"num_patches is {patches}, expected the square of a whole number")
        return super().read({**config, "image_size": rows * side(values, "patch_size")}, select_layer)

    def sizes(self, vision: VisionConfig) -> dict[str, Any]:
        """See `VisionFamily`."""
        sizes = super().sizes(vision)
        return {"num_patches": (sizes.pop("image_size") // vision.patch_size) ** 2, **sizes}

    def tensor_shapes(self, vision: VisionConfig, pooling_head: bool) -> dict[str, Shape]:
        """See `VisionFamily`."""
        patch = {
            "embeddings.patch_embedding.weight": (vision.hidden_size, 3 * vision.patch_size**2),
        }
        return {**super().tensor_shapes(vision, pooling_head), **patch}

    def embedded(self, module: Any, pixel_values: Any, is_other: bool) -> Any:
        """See `VisionFamily`. The numbers of a patch lie row by row, colours last.

        Positions are interpolated bilinearly, smoothed where there are fewer patches than positions; in float32 where
        the tower has less, as transformers does on a CPU.
        """
        import torch
        from torch.nn.functional import interpolate

        size = module.patch_size
        grid = [length // size for length in pixel_values.shape[-2:]]
        cut = pixel_values.unflatten(3, (grid[1], size)).unflatten(2, (grid[0], size))
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        weight = module.position_embedding.weight
        learned = weight.view(*[module.position_embedding_size] * 2, -1).permute(2, 0, 1)[None]
        precise = learned.to(torch.promote_types(weight.dtype, torch.float32))
        positions = interpolate(precise, grid, mode="bilinear", align_corners=False, antialias=True)
        return module.patch_embedding(patches) + positions[0].flatten(1).T.to(weight.dtype)

    def processor_settings(self, size: int) -> dict[str, Any]:
        """See `VisionFamily`."""
        return {**super().processor_settings(size), "resample": BILINEAR}


VISION_FAMILIES.register(
    "siglip2",
    Siglip2Family(
        "siglip2",
        {
            **{key: value for key, value in CLIP_DEFAULTS.items() if key != "image_size"},
            "num_patches": 256,
            "patch_size": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
        classes=("Siglip2VisionConfig", "Siglip2VisionModel"),
        exported_type="siglip2_vision_model",
        image_processor="SiglipImageProcessor",
        takes_pixels_alone=False,
        unused=(POOLING,),
        module_order=(*WITHOUT_HEAD, "head.probe", "head.attention.", "head.layernorm.", "head.mlp."),
        layer_order=(
            "layer_norm1.",
            *(f"self_attn.{part}_proj." for part in ("k", "v", "q", "out")),
            "layer_norm2.",
            "mlp.",
        ),
    ),
)
