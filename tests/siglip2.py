"""A tiny SigLIP 2 NaFlex of transformers with its image processor, and images of every odd shape."""

from __future__ import annotations

from typing import Any

from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from tests.convert.tiny import scramble
from tests.idefics2 import picture

PATCH, SIDE = 7, 28
"""Pixels of a patch, and of the square that has as many patches as there are learned positions."""

PICTURES = [
    picture(*size) for size in ((64, 64), (150, 40), (30, 90), (10, 11), (77, 63), (401, 5), (28, 28))
]


def build(seed: int = 0) -> Any:
    """Returns a random tower of transformers."""
    config = Siglip2VisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_patches=(SIDE // PATCH) ** 2,
        patch_size=PATCH,
    )
    return scramble(Siglip2VisionModel._from_config(config, attn_implementation="sdpa"), seed)


def processor(max_num_patches: int) -> Siglip2ImageProcessorPil:
    """Returns transformers' image processor for it."""
    return Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=max_num_patches)
