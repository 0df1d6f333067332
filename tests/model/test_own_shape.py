"""Images of another size or shape than the tower was trained with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from neva.families.configs import VisionConfig
from neva.families.media_tokens import PictureShape
from neva.families.pictures import share_out
from neva.model.of_own_shape import encode_pictures
from neva.model.vision import VisionTower
from tests.model.test_against_transformers import shapes


def tower_of(kind: str) -> VisionConfig:
    if kind in ("clip", "siglip"):
        return shapes(kind, 2, False)[0]
    clip = shapes("clip", 2, False)[0]
    return replace(clip, model_type=kind, hidden_act="gelu", ffn_hidden_size=4 * clip.hidden_size)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_positions_are_interpolated_as_transformers_does(kind: str) -> None:
    """Equal to transformers' own switch; that it is bicubic is looked at for one tower, by hand."""
    vision = replace(tower_of(kind), input_size=42)
    ours = VisionTower(vision).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for height, width in ((42, 42), (28, 56), (14, 28)):
        images = torch.randn(2, 3, height, width)
        switch = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
        states = ours.model(images, output_hidden_states=True, **switch).hidden_states
        expected = states[vision.select_layer][:, vision.class_token_length :]
        torch.testing.assert_close(ours(images), expected, atol=1e-6, rtol=1e-6)
        assert ours(images).shape[1] == vision.num_features(height, width)
    assert vision.num_tokens == 36


def test_interpolated_positions_are_bicubic() -> None:
    vision = tower_of("siglip")
    ours = VisionTower(replace(vision, select_layer=0, input_size=42)).eval()
    images = torch.randn(1, 3, 28, 42)
    embeddings = ours.model.embeddings
    patches = embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
    side = vision.image_size // vision.patch_size
    learned = embeddings.position_embedding.weight.view(side, side, -1)
    expected = patches + bicubic(learned, 28 // vision.patch_size, 42 // vision.patch_size).flatten(0, 1)
    torch.testing.assert_close(ours(images), expected, atol=1e-6, rtol=1e-6)


def bicubic(table: Tensor, rows: int, columns: int) -> Tensor:
    """Keys' kernel with a = -0.75, edges repeated, pixel centres at halves: each direction on its own."""

    def weights(old: int, new: int) -> Tensor:
        matrix = torch.zeros(new, old)
        for index in range(new):
            centre = (index + 0.5) * old / new - 0.5
            first = int(torch.tensor(centre).floor())
            for tap in range(first - 1, first + 3):
                x, a = abs(centre - tap), -0.75
                near = (a + 2) * x**3 - (a + 3) * x**2 + 1
                weight = near if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
                matrix[index, min(max(tap, 0), old - 1)] += weight
        return matrix

    return torch.einsum(
        "ri,cj,ijd->rcd", weights(table.size(0), rows), weights(table.size(1), columns), table
    )


SHAPES = [(2, 3), (1, 1), (2, 3), (3, 1), (1, 1), (3, 2)]
PICTURES = [PictureShape(height, width, height * width) for height, width in SHAPES]


def project(pixels: Tensor) -> Tensor:
    return pixels.flatten(2).transpose(1, 2) ** 2


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_pictures_that_ranks_share_out_are_those_of_a_slow_loop(ranks: int) -> None:
    pixels = [torch.randn(3, height, width) for height, width in SHAPES]
    flat = torch.cat([picture.flatten() for picture in pixels])
    expected = torch.cat([project(picture[None])[0] for picture in pixels])
    blocks: dict[int, Tensor] = {}

    def encode(rank: int, order: Tensor | None = None) -> Tensor:
        def gather(block: Tensor) -> Tensor:
            blocks[rank] = block
            return torch.cat([blocks.get(other, torch.zeros_like(block)) for other in range(ranks)])

        return encode_pictures(flat, PICTURES, order, project, gather, rank, ranks)

    for rank in range(ranks):
        encode(rank)
    assert torch.equal(encode(0), expected)
    assert len({block.shape for block in blocks.values()}) == 1
    order = torch.tensor([[5, 1], [0, 4], [0, 0]])
    first = torch.tensor([0, 6, 7, 13, 16, 17])
    assert torch.equal(encode(0, order), expected[first[order[:, 0]] + order[:, 1]])


def test_ranks_get_about_as_many_pixels_and_each_picture_once() -> None:
    shares = share_out(PICTURES, 3)
    assert sorted(number for share in shares for number in share) == list(range(len(PICTURES)))
    loads = [sum(SHAPES[number][0] * SHAPES[number][1] for number in share) for share in shares]
    assert max(loads) - min(loads) <= 3 and sum(loads) == 23


def test_features_are_counted_on_both_sides() -> None:
    wrong = [PictureShape(2, 3, 5)]
    with pytest.raises(ValueError, match="2 x 3 pixels has 6 features, the data counts 5"):
        encode_pictures(torch.zeros(18), wrong, None, project, lambda block: block, 0, 1)
