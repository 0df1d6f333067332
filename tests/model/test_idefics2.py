"""Idefics2's tower and perceiver: pictures of their own shapes, equal to transformers' padded and masked ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from neva.errors import ConfigError
from neva.families.connector import connector_named
from neva.families.media_tokens import media_rules
from neva.families.own_shapes import NativeShape
from neva.families.tiling import View
from neva.families.vision import vision_family
from neva.families.vision_reading import vision_config_from_hf
from neva.families.vision_table import tower_shapes
from neva.model.vision import VisionTower
from tests.idefics2 import EDGES, LATENTS, PERCEIVER, PICTURES, build

KIND = "perceiver_n5_d2_h4x8_g2_m52"


def parts(model):
    """Our tower and connector with the weights of a transformers model, put in by name."""
    vision = vision_config_from_hf(model.config.to_dict())
    tower = VisionTower(vision).eval()
    tower.model.load_state_dict(model.model.vision_model.state_dict())
    perceiver = connector_named(KIND).build(vision.hidden_size, PERCEIVER["hidden_size"])
    theirs = model.model.connector.state_dict()
    renamed = {
        name.replace("perceiver_resampler.", "").replace("self_attn.", ""): theirs[name] for name in theirs
    }
    perceiver.load_state_dict(renamed)
    return vision, tower, perceiver


@pytest.mark.parametrize("splits", [False, True])
@torch.no_grad()
def test_each_picture_alone_is_what_it_is_among_others_padded_and_masked(splits: bool) -> None:
    model = build()
    vision, tower, perceiver = parts(model)
    assert vision.post_layernorm and vision.select_layer == -1 and vision.class_token_length == 0
    processor = Idefics2ImageProcessorPil(do_image_splitting=splits, size=EDGES)
    padded = processor(PICTURES, return_tensors="pt")
    theirs = model.model.get_image_features(**padded).pooler_output
    expected = torch.cat(theirs).view(-1, LATENTS, PERCEIVER["hidden_size"])
    mask, pixels = padded["pixel_attention_mask"][0], padded["pixel_values"][0]
    found = []
    for values, inside in zip(pixels, mask, strict=True):
        height, width = int(inside[:, 0].sum()), int(inside[0].sum())
        seen = values[None, :, : height // 7 * 7, : width // 7 * 7]
        found.append(perceiver(tower(seen))[0])
    # float32 sums over other lengths, of numbers up to 10
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)


@torch.no_grad()
def test_a_picture_of_zeros_is_a_picture() -> None:
    """Grey is zero once it is normalised; transformers takes an image of zeros for padding and leaves it out."""
    _, tower, perceiver = parts(build())
    zero = torch.zeros(1, 3, 35, 28)
    found = perceiver(tower(zero))
    assert found.shape == (1, LATENTS, PERCEIVER["hidden_size"])
    torch.testing.assert_close(found, perceiver(tower(zero + 1e-7)), atol=1e-5, rtol=0)


def test_a_patch_has_the_position_of_its_place_in_the_picture() -> None:
    """By hand: of 9 places in a row, patch i of n stands in that which holds the fraction i / n."""
    model = build()
    vision, tower, _ = parts(model)
    table = torch.zeros(81, 24)
    table[:, 0] = torch.arange(81.0)
    tower.model.embeddings.position_embedding.weight.data.copy_(table)
    for name in ("weight", "bias"):
        getattr(tower.model.embeddings.patch_embedding, name).data.zero_()
    for rows, columns in ((9, 9), (3, 9), (4, 5), (1, 8)):
        patches = torch.ones(1, rows, columns, dtype=torch.bool)
        found = tower.model.embeddings(torch.zeros(1, 3, 7 * rows, 7 * columns), patches)[0, :, 0]
        expected = [
            i * 9 // rows * 9 + j * 9 // columns for i, j in itertools.product(range(rows), range(columns))
        ]
        assert found.tolist() == expected


def test_names_and_shapes_are_those_of_the_built_tower() -> None:
    vision = vision_config_from_hf(build().config.to_dict())
    family = vision_family("idefics2_vision")
    told = [(name, tuple(weight.shape)) for name, weight in family.build(vision).named_parameters()]
    assert dict(told) == tower_shapes(vision, pooling_head=False)
    assert told == list(family.module_shapes(vision).items())


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((980, 980), [(980, 980)]),
        ((1960, 700), [(378, 980)]),  # 350 by the ratio, 378 the least
        ((100, 3000), [(980, 378)]),
        ((500, 401), [(401, 500)]),
    ],
)
def test_sizes_are_by_hand_those_of_idefics2(size: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    views = NativeShape(378, 980, False).views(*size, 980, 14)
    assert [view.resized for view in views] == expected
    assert all(view[:2] == tuple(side // 14 * 14 for side in view.resized) for view in views)


def test_quarters_stand_before_the_whole_in_reading_order() -> None:
    views = NativeShape(10, 100, True).views(61, 41, 63, 7)
    assert [view.box for view in views] == [
        (0, 0, 30, 20),
        (30, 0, 61, 20),
        (0, 20, 30, 41),
        (30, 20, 61, 41),
        None,
    ]
    assert views[-1] == View(35, 56, (41, 61))


def test_what_cannot_be_is_refused_with_its_key() -> None:
    vision = vision_config_from_hf(build().config.to_dict())
    for tiling, message in (
        (NativeShape(30, 20, False), "shortest_edge=30 is more than longest_edge=20"),
        (NativeShape(6, 20, False), "shortest_edge=6 is less than the tower's patch of 7"),
    ):
        with pytest.raises(ConfigError, match=message):
            media_rules(vision, KIND, tiling)
    with pytest.raises(ConfigError, match="do_image_splitting=true needs a projector .* found .*mlp2x_gelu"):
        media_rules(vision, "mlp2x_gelu", NativeShape(7, 20, True))
    assert media_rules(vision, KIND, NativeShape(7, 20, True)).image(50, 40).pieces == [LATENTS] * 5
