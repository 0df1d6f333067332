"""Two towers on the same images: features of both of transformers' towers, each with its own colours, side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from neva.config.parts import part_rules
from neva.constants import SECOND_TOWER
from neva.errors import ConfigError
from neva.families.configs import VisionConfig
from neva.families.two_towers import Colours, with_second
from neva.families.vision_reading import vision_config_from_hf
from neva.model.build import build_model, set_trainable
from neva.model.llava import NevaModel
from neva.optim.rules import lr_ratio
from tests.convert.tiny import tower
from tests.idefics2 import picture
from tests.model.test_against_transformers import shapes

SHOWN = Colours([0.48, 0.46, 0.41], [0.27, 0.26, 0.28])
LEARNT = Colours([0.5, 0.4, 0.3], [0.5, 0.2, 0.25])


def both(kinds: tuple[str, str] = ("clip", "dinov2")) -> VisionConfig:
    first, second = (vision_config_from_hf(tower(kind).config.to_dict(), -2) for kind in kinds)
    return with_second(first, second, SHOWN, LEARNT)


def built(kinds: tuple[str, str] = ("clip", "dinov2")) -> NevaModel:
    """A model whose towers have the weights of transformers'."""
    torch.manual_seed(2)
    model = build_model(both(kinds), shapes("clip", 2, False)[1], "mlp2x_gelu").eval()
    assert model.vision_tower is not None and model.second_vision_tower is not None
    for ours, kind in zip((model.vision_tower, model.second_vision_tower), kinds, strict=True):
        ours.model.load_state_dict(tower(kind).state_dict())
    return model


def pixels(colours: Colours, side: int = 28) -> Tensor:
    """What a processor makes of two pictures."""
    processor = CLIPImageProcessorPil(
        do_resize=False, do_center_crop=False, image_mean=list(colours.mean), image_std=list(colours.std)
    )
    pictures = [picture(side, side, seed) for seed in (1, 2)]
    return processor(pictures, return_tensors="pt")["pixel_values"]


def written_out(model: NevaModel, kinds: tuple[str, str], side: int) -> Tensor:
    """The features by transformers' towers, each on the pixels of its own processor."""
    found = []
    for kind, colours in zip(kinds, (SHOWN, LEARNT), strict=True):
        switch = {"interpolate_pos_encoding": True} if kind != "dinov2" and side != 28 else {}
        states = tower(kind)(pixels(colours, side), output_hidden_states=True, **switch).hidden_states[-2]
        found.append(states if kind == "siglip" else states[:, 1:])
    assert model.projector is not None
    rows = [
        model.projector(torch.cat([of_first, of_second]))
        for images in zip(*found, strict=True)
        for of_first, of_second in zip(*images, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("kinds", [("clip", "dinov2"), ("dinov2", "siglip")])
@pytest.mark.parametrize("side", [28, 42])
@torch.no_grad()
def test_features_are_those_of_both_towers_side_by_side(
    single_process: None, kinds: tuple[str, str], side: int
) -> None:
    model = built(kinds)
    found = model.encode_images(pixels(SHOWN, side))
    # colours are turned into others in float32, which rounds at 1e-7 of numbers up to 4
    torch.testing.assert_close(found, written_out(model, kinds, side), atol=1e-5, rtol=1e-5)
    assert model.second_vision_tower is not None
    plain = replace(model.second_vision_tower.config, recolour=None)
    model.second_vision_tower.config = plain
    assert not torch.allclose(found, model.encode_images(pixels(SHOWN, side)), atol=1e-3)


def test_each_tower_trains_or_not_by_itself(single_process: None) -> None:
    model = built()
    sections = [
        {"freeze": freeze, "vision_encoder_lr_ratio": ratio} for freeze, ratio in ((True, 1), (False, 0.5))
    ]
    mm_cfg = {
        "vision_encoder": sections[0],
        "second_vision_encoder": sections[1],
        "llm": {"freeze": True},
        "mm_mlp_adapter_freeze": True,
        "mm_mlp_adapter_lr_ratio": 2.0,
    }
    rules = part_rules(OmegaConf.create({"mm_cfg": mm_cfg}))
    set_trainable(model, {name for name, rule in rules.items() if rule.is_trained})
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert {name.split(".")[0] for name in trained} == {SECOND_TOWER}
    ratios = {name: rule.lr_ratio for name, rule in rules.items()}
    assert {lr_ratio(f"module.{name}", ratios) for name in trained} == {0.5}
    model.encode_images(pixels(SHOWN)).sum().backward()
    with_gradient = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert with_gradient == trained


def test_towers_that_see_other_patches_are_refused() -> None:
    vision = both()
    assert vision.second is not None and vision.feature_size == 48
    for changes, message in (
        ({"patch_size": 14}, "second_vision_encoder.patch_dim is 14, but .* is 7"),
        ({"input_size": 35}, "second_vision_encoder.input_size is 35, but .* is 28"),
        ({"kept_tokens": 1}, "second_vision_encoder keeps 1 leading tokens, model.mm_cfg.vision_encoder 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_second(vision, replace(vision.second, **changes), SHOWN, LEARNT)
    assert with_second(vision, vision.second, SHOWN, SHOWN).second.recolour is None  # type: ignore[union-attr]
