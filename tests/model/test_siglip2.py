"""SigLIP 2 NaFlex: a picture alone is what transformers makes of it among others, padded and masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neva.errors import ConfigError
from neva.families.vision import vision_family
from neva.families.vision_reading import vision_config_from_hf
from neva.families.vision_table import tower_shapes
from neva.model.vision import VisionTower
from tests.siglip2 import PATCH, PICTURES, build, processor

LAYERS = (0, -2, -1)


def tower_of(model: Any, layers: int | tuple[int, ...] = LAYERS) -> VisionTower:
    """Our tower with the weights of transformers', put in by name."""
    ours = VisionTower(vision_config_from_hf(model.config.to_dict(), layers)).eval()
    ours.model.load_state_dict(model.state_dict())
    return ours


def inputs(max_num_patches: int) -> dict[str, Tensor]:
    return dict(processor(max_num_patches)(PICTURES, return_tensors="pt"))


def picture_of(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Undoes `convert_image_to_patches`: [1, 3, height, width] of padded patches [P, numbers], by a slow loop."""
    image = patches.new_zeros(1, 3, rows * PATCH, columns * PATCH)
    for row in range(rows):
        for column in range(columns):
            patch = patches[row * columns + column].view(PATCH, PATCH, 3).permute(2, 0, 1)
            image[0, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = patch
    return image


def alone(ours: VisionTower, batch: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    shapes = batch["spatial_shapes"].tolist()
    return [
        ours(picture_of(patches.to(dtype), *shape))[0]
        for patches, shape in zip(batch["pixel_values"], shapes, strict=True)
    ]


def padded(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    states = model(**batch, output_hidden_states=True).hidden_states
    joined = torch.cat([states[layer] for layer in LAYERS], dim=-1)
    lengths = batch["spatial_shapes"].prod(1).tolist()
    return [features[:length] for features, length in zip(joined, lengths, strict=True)]


@pytest.mark.parametrize("most", [9, 16, 60])
@torch.no_grad()
def test_each_picture_alone_is_what_it_is_among_others_padded_and_masked(most: int) -> None:
    """With fewer patches than learned positions, as many, and more."""
    model, batch = build(), inputs(most)
    assert (batch["pixel_attention_mask"].sum(1) == batch["spatial_shapes"].prod(1)).all()
    found = alone(tower_of(model), batch, torch.float32)
    for mine, theirs in zip(found, padded(model, batch), strict=True):
        # float32 sums over other lengths, of numbers up to 10
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def smoothed(learned: Tensor, shapes: Tensor, max_length: int) -> Tensor:
    """Positions [N, max_length, D] by a slow loop: a triangle over the places that a patch covers."""

    def weights(old: int, new: int) -> Tensor:
        reach = max(old / new, 1.0)
        matrix = torch.zeros(new, old, dtype=torch.float64)
        for index in range(new):
            centre = (index + 0.5) * old / new
            for place in range(old):
                matrix[index, place] = max(0.0, 1 - abs(place + 0.5 - centre) / reach)
        return matrix / matrix.sum(1, keepdim=True)

    rows = []
    for height, width in shapes.tolist():
        across, down = weights(learned.size(1), width), weights(learned.size(0), height)
        table = torch.einsum("ri,cj,ijd->rcd", down, across, learned).flatten(0, 1)
        rows.append(torch.cat([table, table[:1].expand(max_length - len(table), -1)]))
    return torch.stack(rows)


def test_gradients_are_those_of_the_padded_pictures() -> None:
    """In float64, with positions interpolated by a loop of our own: transformers' rounds them to float32."""
    model, batch = build().double(), inputs(20)
    ours = tower_of(model).double()
    batch["pixel_values"] = batch["pixel_values"].double()
    model.embeddings.resize_positional_embeddings = smoothed
    draw = torch.Generator().manual_seed(1)
    theirs, mine = padded(model, batch), alone(ours, batch, torch.float64)
    weights = [torch.randn(each.shape, generator=draw, dtype=torch.float64) for each in theirs]
    for features in (theirs, mine):
        sum((each * weight).sum() for each, weight in zip(features, weights, strict=True)).backward()
    expected = dict(model.named_parameters())
    for name, weight in ours.model.named_parameters():
        if ours.family.is_used(name, ours.config):
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad, expected[name].grad, atol=1e-9, rtol=1e-9)
        else:
            assert weight.grad is None
    assert expected["embeddings.position_embedding.weight"].grad.abs().max() > 0.1


def test_names_and_shapes_are_those_of_the_built_tower() -> None:
    vision = vision_config_from_hf(build().config.to_dict())
    family = vision_family("siglip2")
    told = [(name, tuple(weight.shape)) for name, weight in family.build(vision).named_parameters()]
    assert dict(told) == tower_shapes(vision, pooling_head=True)
    assert told == list(family.module_shapes(vision).items())


def test_the_config_of_the_hub_is_read_and_written() -> None:
    hub = {
        "model_type": "siglip2",
        "vision_config": {"model_type": "siglip2_vision_model", "hidden_size": 1152},
    }
    vision = vision_config_from_hf(
        {**hub, "vision_config": {**hub["vision_config"], "num_attention_heads": 16}}
    )
    assert (vision.image_size, vision.patch_size, vision.num_tokens) == (256, 16, 256)
    written = vision_family("siglip2").write(vision, pooling_head=True)
    assert written["num_patches"] == 256 and "image_size" not in written
    assert vision_config_from_hf(written) == vision
    with pytest.raises(ConfigError, match="num_patches is 250, expected the square of a whole number"):
        vision_config_from_hf({"model_type": "siglip2_vision_model", "num_patches": 250})
