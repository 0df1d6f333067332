"""Projectors that join quarters and squares, and the views that the tower sees: slow loops in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neva.errors import ConfigError
from neva.families.any_resolution import AnyResolution
from neva.families.connector import connector_named
from neva.families.media_tokens import media_rules
from neva.families.tile_grids import DynamicTiles
from neva.model.build import build_model
from neva.model.quarters import joined, views_of
from neva.model.vision import VisionTower
from tests.model.test_against_transformers import shapes

KINDS = ("mlp2x_gelu_downsample", "mlp1x_gelu_downsample", "mlp_downsample")
VISION = replace(shapes("clip", 2, False)[0], image_tiles=True)


def built(kind: str, inputs: int, outputs: int) -> nn.Module:
    module = connector_named(kind).build(inputs, outputs).double()
    for parameter in module.parameters():  # away from ones and zeros: alpha too
        nn.init.normal_(parameter)
    return module


def halved(image: Tensor) -> Tensor:
    """Between the pixels 2k and 2k + 1: the cubic convolution with a = -0.75 at a distance of one half, edges held."""
    weights = torch.tensor([-0.09375, 0.59375, 0.59375, -0.09375], dtype=image.dtype)
    for dim in (1, 2):
        last = image.shape[dim] - 1
        lines = []
        for line in range(image.shape[dim] // 2):
            places = [min(max(2 * line + shift, 0), last) for shift in (-1, 0, 1, 2)]
            lines.append(
                sum(weight * image.select(dim, place) for weight, place in zip(weights, places, strict=True))
            )
        image = torch.stack(lines, dim=dim)  # type: ignore[arg-type]
    return image


def test_the_tower_sees_the_halved_image_and_its_quarters_whose_features_lie_as_one_map() -> None:
    images = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    views = views_of(images, has_thumbnail=True)
    assert views.shape == (10, 3, 28, 28)
    for number, image in enumerate(images):
        torch.testing.assert_close(views[number], halved(image), atol=1e-12, rtol=0)
        crops = [image[:, top : top + 28, left : left + 28] for top in (0, 28) for left in (0, 28)]
        assert torch.equal(views[2 + 4 * number : 6 + 4 * number], torch.stack(crops))
    assert torch.equal(views_of(images, has_thumbnail=False), views[2:])

    tower = VisionTower(VISION, has_thumbnail=True).double().eval()
    plain = VisionTower(replace(VISION, image_tiles=False)).double().eval()
    plain.load_state_dict(tower.state_dict())
    found = tower(images)
    assert found.shape == (2, 16 + 64, 24)
    for number in range(2):
        torch.testing.assert_close(found[number, :16], plain(views[number][None])[0])
        for row in range(8):
            for column in range(8):
                quarter = plain(views[2 + 4 * number + row // 4 * 2 + column // 4][None])[0]
                expected = quarter[row % 4 * 4 + column % 4]
                torch.testing.assert_close(found[number, 16 + 8 * row + column], expected)
    alone = joined(torch.arange(16.0).view(4, 4, 1), has_thumbnail=False)[0, :, 0].tolist()
    assert alone == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


@pytest.mark.parametrize("kind", KINDS[:2])
def test_quarters_are_added_by_a_strided_convolution(kind: str) -> None:
    inputs, outputs, side = 3, 5, 2
    module = built(kind, inputs, outputs)
    features = torch.randn(2, 5 * side**2, inputs, dtype=torch.float64)
    weights = dict(module.named_parameters())
    kernel, bias = weights["downsample.weight"], weights["downsample.bias"]
    for image, found in zip(features, module(features), strict=True):
        for row in range(side):
            for column in range(side):
                down = bias.clone()
                for y in range(-1, 2):
                    for x in range(-1, 2):
                        line, place = 2 * row + y, 2 * column + x
                        if 0 <= line < 2 * side and 0 <= place < 2 * side:
                            feature = image[side**2 + line * 2 * side + place]
                            down = down + kernel[:, :, y + 1, x + 1] @ feature
                hidden = image[row * side + column] + weights["alpha"] * down
                hidden = weights["0.weight"] @ hidden + weights["0.bias"]
                if "2.weight" in weights:
                    hidden = weights["2.weight"] @ F.gelu(hidden) + weights["2.bias"]
                torch.testing.assert_close(found[row * side + column], hidden, atol=1e-12, rtol=1e-12)
    assert connector_named(kind).build(3, 5).get_parameter("alpha").item() == 0


@pytest.mark.parametrize("side", [4, 3])
def test_squares_are_laid_behind_each_other_as_nemo_does(side: int) -> None:
    inputs, outputs = 3, 5
    module = built("mlp_downsample", inputs, outputs)
    features = torch.randn(2, side**2, inputs, dtype=torch.float64)
    weights = dict(module.named_parameters())
    half = (side + 1) // 2
    found = module(features)
    assert found.shape[1] == half**2 == connector_named("mlp_downsample").tokens_out(side**2)
    for number, image in enumerate(features):
        for column in range(half):  # column by column
            for row in range(half):
                square = []
                for y in (2 * row, 2 * row + 1):
                    for x in (2 * column, 2 * column + 1):
                        is_there = y < side and x < side
                        square.append(image[y * side + x] if is_there else image.new_zeros(inputs))
                hidden = torch.cat(square)
                hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
                hidden = hidden * weights["1.weight"] + weights["1.bias"]
                hidden = F.gelu(weights["2.weight"] @ hidden + weights["2.bias"])
                hidden = weights["4.weight"] @ hidden + weights["4.bias"]
                position = column * half + row
                torch.testing.assert_close(found[number, position], hidden, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_positions_are_those_of_the_built_module(single_process: None, kind: str) -> None:
    module = connector_named(kind).build(24, 48)
    named = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert list(connector_named(kind).parameter_shapes(24, 48).items()) == list(named.items())
    rules = media_rules(VISION, kind)
    assert (rules.tile_size, rules.tile_tokens) == (56, 16), "the positions of one tile"
    model = build_model(VISION, shapes("clip", 2, False)[1], kind).eval()
    assert model.encode_images(torch.randn(3, 3, 56, 56)).shape == (3 * 16, 48)


def test_what_does_not_fit_together_is_refused_with_the_keys() -> None:
    whole = replace(VISION, image_tiles=False)
    assert media_rules(whole, "mlp_downsample").tile_tokens == 4
    assert media_rules(whole, "mlp_downsample", DynamicTiles(1, 4, True)).largest_image.tokens == 5 * 4
    with pytest.raises(ConfigError, match="found .*=mlp2x_gelu: take mlp2x_gelu_downsample or"):
        media_rules(VISION, "mlp2x_gelu")
    with pytest.raises(ConfigError, match="mlp2x_gelu_downsample joins .*: set .*use_image_tile=true"):
        media_rules(whole, "mlp2x_gelu_downsample")
    with pytest.raises(ConfigError, match="image_aspect_ratio must be square, pad or pad_right_bottom"):
        media_rules(VISION, "mlp_downsample", DynamicTiles(1, 4, True))
    with pytest.raises(ConfigError, match="mlp_downsample: take mlp2x_gelu_newline"):
        media_rules(whole, "mlp_downsample", AnyResolution(None))
