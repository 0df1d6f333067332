"""Images and videos as LLaVA-OneVision lays them out: transformers' own functions are the reference."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from neva.data.collate import feature_order
from neva.data.feature_order import bilinear, order_of
from neva.data.media.placeholders import image_media
from neva.data.media.reader import MediaReader
from neva.errors import ConfigError
from neva.families.any_resolution import CappedResolution
from neva.families.configs import VisionConfig
from neva.families.media_tokens import MediaRules, MediumLayout, media_rules
from neva.model.merge import in_order
from tests.conftest import random_image
from tests.data.test_media import PROCESSORS

TILE, PATCH, SIDE, MOST = 64, 16, 4, 3
PINPOINTS = [[TILE * rows, TILE * columns] for rows in range(1, 7) for columns in range(1, 7)]
VISION = VisionConfig("siglip", TILE, PATCH, 8, 2, 2, 16, "gelu", 1e-5, -1, 0)
SIZES = st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=3)
MODEL = SimpleNamespace(
    config=SimpleNamespace(
        vision_config=SimpleNamespace(image_size=TILE, patch_size=PATCH), image_grid_pinpoints=PINPOINTS
    )
)


def rules_of(most: int = MOST) -> MediaRules:
    return media_rules(VISION, "linear_newline", CappedResolution(None, most))


def features(layouts: list[MediumLayout], newline: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features of all tiles, and what the model makes of them by the order of the layouts."""
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(sum(layout.tiles for layout in layouts), SIDE**2, 5, generator=generator)
    order = feature_order(layouts)
    assert order is not None
    return tiles, in_order(torch.cat([tiles, newline.expand(len(tiles), 1, 5)], dim=1), order)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([1, 3, 9]))
def test_features_of_images_lie_as_in_llava_onevision_and_are_counted_as_its_processor_does(
    sizes: list[tuple[int, int]], most: int
) -> None:
    rules = rules_of(most)
    layouts = [rules.image(*size) for size in sizes]
    newline = torch.full((5,), -1.0)
    tiles, found = features(layouts, newline)
    heights_first = torch.tensor([(height, width) for width, height in sizes])
    expected, counts = LlavaOnevisionModel.pack_image_features(
        MODEL,  # type: ignore[arg-type]
        list(tiles.split([layout.tiles for layout in layouts])),
        heights_first,
        image_newline=newline,
        vision_aspect_ratio=f"anyres_max_{most}",
    )
    # places between rows and columns are float32 in both, and rounded otherwise in vector instructions
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)
    counter = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=PINPOINTS),
        num_image_tokens=SIDE**2,
        vision_aspect_ratio=f"anyres_max_{most}",
    )
    counter._get_unpadded_features = lambda *args: LlavaOnevisionProcessor._get_unpadded_features(
        counter,  # type: ignore[arg-type]
        *args,
    )
    for (width, height), layout, count in zip(sizes, layouts, counts.tolist(), strict=True):
        counted = LlavaOnevisionProcessor._get_number_of_features(counter, height, width, TILE, TILE)  # type: ignore[arg-type]
        assert layout.tokens == len(order_of(layout)) == counted == count


def test_each_of_several_images_is_one_tile_with_a_newline_behind_it() -> None:
    layouts = [rules_of().image(*size, is_alone=False) for size in ((300, 50), (64, 64))]
    newline = torch.full((5,), -1.0)
    tiles, found = features(layouts, newline)
    expected, _ = LlavaOnevisionModel.pack_image_features(
        MODEL,  # type: ignore[arg-type]
        list(tiles.split(1)),
        torch.tensor([[50, 300], [64, 64]]),
        image_newline=newline,
    )
    assert torch.equal(found, torch.cat(expected))


@pytest.mark.parametrize("side", [SIDE, 5])
def test_frames_are_pooled_and_a_newline_ends_the_video(side: int) -> None:
    layout = media_rules(
        VisionConfig("siglip", side * PATCH, PATCH, 8, 2, 2, 16, "gelu", 1e-5, -1, 0),
        "linear_newline",
        CappedResolution(None, MOST),
    ).video(3)
    frames = torch.randn(3, side**2, 5, generator=torch.Generator().manual_seed(1))
    newline = torch.full((5,), -1.0)
    order = feature_order([layout])
    assert order is not None
    found = in_order(torch.cat([frames, newline.expand(3, 1, 5)], dim=1), order)
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=side * PATCH, patch_size=PATCH))
    pooled = LlavaOnevisionModel.apply_pooling(SimpleNamespace(config=config), frames)  # type: ignore[arg-type]
    expected = torch.cat([pooled.flatten(0, 1), newline[None]])
    assert layout.tokens == len(expected) == 3 * ((side + 1) // 2) ** 2 + 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # as above


def test_media_of_a_batch_have_one_order_and_gradients_reach_every_feature_they_are_made_of() -> None:
    rules = rules_of()
    layouts = [rules.image(64, 64), rules.image(400, 400), rules.video(2), rules.image(9, 9, is_alone=False)]
    newline = torch.full((5,), -1.0)
    tiles, found = features(layouts, newline)
    assert found.dtype == torch.float32 and len(found) == sum(layout.tokens for layout in layouts)
    order = feature_order(layouts)
    assert order is not None and order[..., 2].sum(1).sub(1).abs().max() < 1e-6  # weights of a mean
    gathered = torch.cat([tiles, newline.expand(len(tiles), 1, 5)], dim=1).double().requires_grad_()
    in_order(gathered, order).sum().backward()
    assert gathered.grad is not None
    # what a mean takes from all features is what it gives
    torch.testing.assert_close(gathered.grad[:, :, 0].sum(), torch.tensor(float(len(found))).double())
    half = in_order(gathered.detach().bfloat16(), order)
    torch.testing.assert_close(half, found.bfloat16(), rtol=0, atol=0.03)  # rounded before and behind


@pytest.mark.parametrize(("size", "target"), [((7, 9), (3, 4)), ((27, 27), (14, 14)), ((5, 3), (5, 2))])
def test_weights_are_those_of_interpolate(size: tuple[int, int], target: tuple[int, int]) -> None:
    values = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(2))
    rows, columns, weights = (torch.from_numpy(np.ascontiguousarray(part)) for part in bilinear(size, target))
    found = (values[0, 0][rows, columns] * weights).sum(1).view(target)
    expected = torch.nn.functional.interpolate(values, target, mode="bilinear")[0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # as above


@pytest.mark.parametrize("sizes", [[(64, 64)], [(300, 50)], [(33, 500)], [(100, 80), (80, 100), (64, 64)]])
def test_pixels_are_those_of_its_image_processor_bit_for_bit(sizes: list[tuple[int, int]]) -> None:
    images = [random_image(*size, seed=6) for size in sizes]
    processor = PROCESSORS["siglip"]
    reader = MediaReader(rules_of(), processor, "anyres_max_3", exif_transpose=False, video=None)
    own = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        resample=processor.resample,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
    )
    expected = own.preprocess([images], return_tensors="pt")["pixel_values"]
    for medium, wanted in zip(image_media(images), expected, strict=True):
        assert torch.equal(reader.pixels(medium, reader.layout(medium)), wanted)


def test_the_largest_image_bounds_all_others() -> None:
    for most in (3, 9):
        rules = rules_of(most)
        sizes = [*np.random.default_rng(0).integers(1, 900, (3000, 2)).tolist(), *PINPOINTS]
        assert max(rules.image(*size).tokens for size in sizes) <= rules.largest_image.tokens


def test_frames_with_text_between_them_are_refused() -> None:
    with pytest.raises(ConfigError, match="one newline behind a video: model.data.sep_token_between_frames"):
        media_rules(VISION, "linear_newline", CappedResolution(None, 9), separates_frames=True)
