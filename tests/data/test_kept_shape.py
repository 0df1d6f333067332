"""`image_aspect_ratio=keep`: sizes by NeVA's rule, pixels by transformers, positions counted once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neva.data.collate import collate, picture_shapes
from neva.data.dataset import Sample
from neva.data.media.placeholders import Medium
from neva.data.media.processor import build_image_processor
from neva.data.media.reader import MediaReader
from neva.errors import ConfigError
from neva.families.connector import Connector
from neva.families.media_tokens import media_rules
from neva.families.own_shapes import KeptShape
from neva.families.pictures import split_pictures
from neva.registry import CONNECTORS
from tests.conftest import random_image
from tests.data.test_media import PROCESSORS, vision_cfg
from tests.data.test_tiles import PATCH, TILE, VISION
from tests.families.toys import HalvingConnector, registered

RULES = media_rules(VISION, "linear", KeptShape())
READER = MediaReader(RULES, PROCESSORS["clip"], "keep", False, video=None)


def as_in_neva(width: int, height: int, side: int) -> tuple[int, int]:
    """Patches down and across in NeVA: `shortest_edge = int(min(448 / aspect, 224))` for a tower of 224 pixels."""
    aspect = max(width, height) / min(width, height)
    shortest = int(min(2 * side / aspect, side))
    longest = int(shortest * max(width, height) / min(width, height))
    across, down = (longest, shortest) if width >= height else (shortest, longest)
    return down // PATCH, across // PATCH


@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_an_image_has_the_patches_that_neva_gives_it(width: int, height: int) -> None:
    layout = RULES.image(width, height)
    (view,) = layout.views
    rows, columns = view.height // PATCH, view.width // PATCH
    expected_rows, expected_columns = as_in_neva(width, height, TILE)
    if min(expected_rows, expected_columns):  # where NeVA leaves no patch, there is one
        assert (rows, columns) == (expected_rows, expected_columns)
    assert layout.tokens == rows * columns <= RULES.largest_image.tokens == 2 * (TILE // PATCH) ** 2
    assert view.height % PATCH == view.width % PATCH == 0 and view.resized == view[:2]


@pytest.mark.parametrize("size", [(64, 64), (100, 80), (80, 100), (300, 50), (33, 900), (1, 1), (7, 5)])
def test_pixels_are_those_of_the_towers_processor_without_a_crop(size: tuple[int, int]) -> None:
    image = random_image(*size, seed=3)
    layout = READER.layout(Medium("image", image))
    (view,) = layout.views
    square = {"height": view.height, "width": view.width}
    processor = type(PROCESSORS["clip"])(size=square, do_center_crop=False)
    expected = processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
    (picture,) = split_pictures(READER.pixels(Medium("image", image), layout), layout.pictures)
    assert torch.equal(picture, expected)


def sample(name: str, *sizes: tuple[int, int]) -> Sample:
    media = [Medium("image", Image.new("RGB", size, (10 * at, 0, 0))) for at, size in enumerate(sizes, 1)]
    layouts = [READER.layout(medium) for medium in media]
    pixels = [READER.pixels(medium, layout) for medium, layout in zip(media, layouts, strict=True)]
    ids = torch.arange(5 + len(name))
    return Sample(ids, ids, torch.cat([READER.no_pixels(), *pixels]), name, tuple(layouts))


def test_a_micro_batch_has_its_own_pictures_in_reading_order() -> None:
    samples = [sample("a", (30, 60)), sample("text"), sample("longest", (64, 64), (200, 50))]
    first, second = collate([[row] for row in samples], 2, pad_id=0, pad_to_multiple_of=1, same_length=False)
    assert first.record_ids == ["longest", "text"] and second.record_ids == ["a"]
    assert [picture[:2] for picture in first.pictures] == [(64, 64), (32, 128)]
    assert first.pictures == picture_shapes(samples[2].media) and first.feature_order is None
    assert torch.equal(first.pixel_values, samples[2].pixel_values)
    assert torch.equal(second.pixel_values, samples[0].pixel_values)
    (alone,) = collate([[samples[1]]], 1, pad_id=0, pad_to_multiple_of=1, same_length=False)
    assert alone.pictures == [] and alone.pixel_values.shape == (0,)


def test_a_projector_that_needs_squares_is_refused() -> None:
    class Squares(HalvingConnector):
        needs_square = True

    with (
        registered(CONNECTORS, r"halve\d", Squares),
        pytest.raises(ConfigError, match="keep shows pictures that are no squares, which .* halve1 needs"),
    ):
        media_rules(VISION, "halve1", KeptShape())
    assert not Connector.needs_square


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_processor_of_another_input_size_makes_its_squares(kind: str, tmp_path: Path) -> None:
    """A folder's settings grow with the input: DINOv2's resize to 256 and crop of 224 become 512 and 448."""
    cfg = vision_cfg(model_type=kind, image_size=16, input_size=32)
    image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    assert build_image_processor(cfg)(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    square = {"height": 224, "width": 224}
    settings = {**PROCESSORS["clip"].to_dict(), "size": {"shortest_edge": 256}, "crop_size": square}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    cfg = vision_cfg(from_pretrained=str(tmp_path), image_size=224, input_size=448)
    processor = build_image_processor(cfg)
    assert processor.size.shortest_edge == 512
    assert (processor.crop_size.height, processor.crop_size.width) == (448, 448)


def test_rules_of_another_input_size_count_its_patches() -> None:
    larger = media_rules(replace(VISION, input_size=2 * TILE), "linear")
    assert larger.tile_size == 2 * TILE and larger.image(5, 5).tokens == 4 * VISION.num_tokens
