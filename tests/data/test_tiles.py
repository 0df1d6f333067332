"""Tiles, their pixels and the order of their features: those of transformers' LLaVA-NeXT and GOT-OCR2 (InternVL)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from neva.data.collate import feature_order
from neva.data.feature_order import order_of
from neva.data.media import tiles as tiles_module
from neva.data.media.processor import to_tile_pixels
from neva.errors import ConfigError
from neva.families.any_resolution import AnyResolution
from neva.families.configs import VisionConfig
from neva.families.media_tokens import MediaRules, MediumLayout, media_rules
from neva.families.tile_grids import DynamicTiles, FixedGrid
from neva.families.tiling import Tiling
from tests.conftest import random_image
from tests.data.test_media import PROCESSORS

TILE, PATCH, SIDE = 64, 16, 4
PINPOINTS = [[64, 128], [128, 64], [128, 128], [192, 64], [64, 192], [192, 128]]
VISION = VisionConfig("clip", TILE, PATCH, 8, 2, 2, 16, "gelu", 1e-5, -2, 1)
SIZES = [(64, 64), (100, 80), (80, 100), (300, 50), (33, 500), (1, 1), (7, 5), (129, 127), (64, 2000)]
ANYRES = AnyResolution(tuple(map(tuple, PINPOINTS)))


def rules_of(tiling: Tiling) -> MediaRules:
    return media_rules(VISION, "linear_newline" if tiling.is_map else "linear", tiling)


def pixels(image: Image.Image, rules: MediaRules) -> torch.Tensor:
    layout = rules.image(*image.size)
    assert layout.grid is not None
    found = to_tile_pixels(image, PROCESSORS["clip"], layout.grid, TILE, rules.tiling.pads)
    assert found.shape == (layout.tiles, 3, TILE, TILE)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_anyres_tiles_are_those_of_llava_next_bit_for_bit(size: tuple[int, int]) -> None:
    image = random_image(*size, seed=3)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
    )
    expected = processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(pixels(image, rules_of(ANYRES)), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bounds", [(1, 12), (2, 6), (1, 1)])
def test_dynamic_tiles_are_those_of_internvl_bit_for_bit(
    size: tuple[int, int], bounds: tuple[int, int]
) -> None:
    image = random_image(*size, seed=4)
    processor = GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE},
        crop_to_patches=True,
        min_patches=bounds[0],
        max_patches=bounds[1],
    )
    expected = processor.preprocess(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels(image, rules_of(DynamicTiles(*bounds, use_thumbnail=True))), expected)


def test_a_fixed_grid_is_cut_row_by_row_with_the_whole_image_behind() -> None:
    image = random_image(3 * TILE, 2 * TILE, seed=5)  # fills the grid: nothing is resized
    found = pixels(image, rules_of(FixedGrid(2, 3, use_thumbnail=True)))
    assert len(found) == 7
    right_below = image.crop((2 * TILE, TILE, 3 * TILE, 2 * TILE))
    processor: Any = PROCESSORS["clip"]
    assert torch.equal(found[5], processor.preprocess(right_below, return_tensors="pt")["pixel_values"][0])
    assert len(pixels(image, rules_of(FixedGrid(2, 3, use_thumbnail=False)))) == 6
    assert len(pixels(image, rules_of(FixedGrid(1, 1, use_thumbnail=True)))) == 1


def packed(features: list[torch.Tensor], sizes: list[tuple[int, int]], newline: torch.Tensor) -> torch.Tensor:
    """transformers' own laying out of features [tiles, tokens, D] of images of some width and height."""
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=TILE, patch_size=PATCH), image_grid_pinpoints=PINPOINTS
    )
    heights_first = torch.tensor([(height, width) for width, height in sizes])
    found, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),  # type: ignore[arg-type]
        features,
        heights_first,
        "default",
        image_newline=newline,
    )
    return torch.cat(found)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=3))
def test_anyres_features_lie_as_in_llava_next_and_are_counted_as_its_processor_does(
    sizes: list[tuple[int, int]],
) -> None:
    rules = rules_of(ANYRES)
    layouts = [rules.image(*size) for size in sizes]
    newline = torch.full((1,), -1.0)
    tiles = torch.arange(sum(layout.tiles for layout in layouts) * SIDE**2).float().view(-1, SIDE**2, 1)
    order = feature_order(layouts)
    assert order is not None
    with_newline = torch.cat([tiles, newline.expand(len(tiles), 1, 1)], dim=1)
    found = with_newline[order[:, 0], order[:, 1]]
    expected = packed(list(tiles.split([layout.tiles for layout in layouts])), sizes, newline)
    assert torch.equal(found, expected)
    counter = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=PINPOINTS),
        patch_size=PATCH,
        num_additional_image_tokens=0,
        _get_unpadded_features=lambda *args: LlavaNextProcessor._get_unpadded_features(None, *args),  # type: ignore[arg-type]
    )
    for (width, height), layout in zip(sizes, layouts, strict=True):
        counted = LlavaNextProcessor._get_number_of_features(counter, height, width, TILE, TILE)  # type: ignore[arg-type]
        assert layout.tokens == len(order_of(layout)) == counted


def test_videos_and_single_tiles_take_all_features_in_their_order() -> None:
    rules = rules_of(DynamicTiles(1, 4, use_thumbnail=True))
    assert feature_order([rules.video(3), rules.image(10, 10)]) is None
    assert rules.video(3).tokens == 3 * SIDE**2
    # A projector with a newline has one feature more a tile, which a video passes over.
    order = feature_order([rules_of(ANYRES).video(2)])
    assert order is not None and order.tolist() == [[tile, at] for tile in range(2) for at in range(SIDE**2)]
    assert feature_order([]) is None


def test_the_largest_image_bounds_all_others() -> None:
    for tiling in (ANYRES, AnyResolution(None), DynamicTiles(1, 6, True), FixedGrid(2, 3, True)):
        rules = rules_of(tiling)
        draw = np.random.default_rng(0)
        layouts = [rules.image(*size) for size in draw.integers(1, 900, (300, 2)).tolist()]
        assert max(layout.tokens for layout in layouts) <= rules.largest_image.tokens
        assert max(layout.tiles for layout in layouts) <= rules.largest_image.tiles
    assert rules_of(AnyResolution(None)).largest_image == MediumLayout(
        5, 16, True, rules_of(AnyResolution(None)).largest_image.grid, (0, 8, 0, 8)
    )


@pytest.mark.parametrize("size", [(3, 90_000), (90_000, 3)])
@pytest.mark.parametrize("tiling", [ANYRES, DynamicTiles(1, 12, True)])
def test_strips_become_tiles_in_memory_that_their_length_does_not_raise(
    size: tuple[int, int], tiling: Tiling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles_module, "LARGEST_BETWEEN", 2**16)
    made: list[int] = []
    resize = Image.Image.resize

    def counted(image: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        made.append(size[0] * image.height)  # between the directions: columns come first
        return resize(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", counted)
    found = pixels(Image.new("RGB", size, (200, 0, 0)), rules_of(tiling))
    assert found.isfinite().all()
    assert max(made) <= max(2**16, size[0] * size[1], 12 * TILE * TILE * 12)


def test_parts_that_do_not_fit_each_other_are_refused_with_the_key() -> None:
    with pytest.raises(ConfigError, match="mm_mlp_adapter_type=mlp2x_gelu: take mlp2x_gelu_newline"):
        media_rules(VISION, "mlp2x_gelu", ANYRES)
    for wrong in ([64, 100], [0, 64], [64], [-64, 64]):
        with pytest.raises(
            ConfigError, match=r"image_grid_pinpoints has .* multiples of the tower's image_size"
        ):
            rules_of(AnyResolution((tuple(wrong),)))
    with pytest.raises(ConfigError, match="image_grid_pinpoints is empty"):
        rules_of(AnyResolution(()))
    with pytest.raises(ConfigError, match="min_num_tiles=5 is more than max_num_tiles=4"):
        rules_of(DynamicTiles(5, 4, True))
