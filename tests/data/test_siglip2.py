"""`image_aspect_ratio=naflex`: sizes and pixels are those of SigLIP 2's image processor, positions counted once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    convert_image_to_patches,
    get_image_size_for_max_num_patches,
)

from neva.data.media.placeholders import Medium
from neva.data.media.processor import build_image_processor
from neva.data.media.reader import MediaReader
from neva.errors import ConfigError
from neva.families.media_tokens import media_rules
from neva.families.own_shapes import FlexibleShape
from neva.families.pictures import split_pictures
from neva.families.vision_reading import vision_config_from_hf
from tests.siglip2 import PATCH, PICTURES, SIDE, build, processor

TOWER = vision_config_from_hf(build().config.to_dict())


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), most=st.sampled_from([1, 9, 256, 1024]))
@settings(max_examples=300, deadline=None)
def test_sizes_are_those_of_the_processor(width: int, height: int, most: int) -> None:
    rules = media_rules(TOWER, "mlp2x_gelu", FlexibleShape(most))
    layout = rules.image(width, height)
    (view,) = layout.views
    assert view.resized == view[:2] == get_image_size_for_max_num_patches(height, width, PATCH, most)
    assert layout.tokens == view.height // PATCH * (view.width // PATCH) <= rules.largest_image.tokens == most


@pytest.mark.parametrize("most", [9, 60])
def test_pixels_are_those_of_the_processor_of_a_folder(tmp_path, most: int) -> None:
    theirs = processor(most)
    theirs.save_pretrained(tmp_path)
    cfg = {"from_pretrained": str(tmp_path), "model_type": "siglip2", "image_size": SIDE, "input_size": None}
    rules = media_rules(TOWER, "perceiver_n5_d1_h4x8", FlexibleShape(most))
    reader = MediaReader(rules, build_image_processor(OmegaConf.create(cfg)), "naflex", False, video=None)
    expected = theirs(PICTURES, return_tensors="pt")
    for image, patches, mask in zip(
        PICTURES, expected["pixel_values"], expected["pixel_attention_mask"], strict=True
    ):
        medium = Medium("image", image)
        layout = reader.layout(medium)
        assert layout.tokens == 5
        (pixels,) = split_pictures(reader.pixels(medium, layout), layout.pictures)
        assert torch.equal(
            torch.tensor(convert_image_to_patches(pixels.numpy(), PATCH)), patches[mask.bool()]
        )


def test_a_projector_that_needs_squares_is_refused() -> None:
    with pytest.raises(ConfigError, match="image_aspect_ratio=naflex shows pictures that are no squares"):
        media_rules(TOWER, "pixel_shuffle2_mlp2x_gelu", FlexibleShape(16))
