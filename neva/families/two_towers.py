"""Two towers that see the same images: their features stand side by side, patch by patch.

Sources: Prismatic's DINOv2 with SigLIP (https://arxiv.org/abs/2402.07865), Cambrian-1 (https://arxiv.org/abs/2406.16860).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from neva.errors import ConfigError
from neva.families.configs import VisionConfig

SECTION = "model.mm_cfg.second_vision_encoder"


class Colours(NamedTuple):
    """With what an image processor normalises each colour."""

    mean: Sequence[float]
    std: Sequence[float]


def with_second(first: VisionConfig, second: VisionConfig, shown: Colours, learnt: Colours) -> VisionConfig:
    """Returns a tower with a second one beside it, which gets the pixels of the first in its own colours.

    Args:
        first, second: the towers.
        shown: with what the pixels are normalised: the first tower's.
        learnt: what the second was trained with.

    Raises:
        ConfigError: they do not have as many features of an image.
    """
    for key, found, expected in (
        ("patch_dim", second.patch_size, first.patch_size),
        ("input_size", second.side, first.side),
    ):
        if found != expected:
            raise ConfigError(
                f"{SECTION}.{key} is {found}, but model.mm_cfg.vision_encoder's is {expected}: both towers see the "
                "same pictures, patch by patch"
            )
    if second.kept_tokens != first.kept_tokens:
        raise ConfigError(
            f"{SECTION} keeps {second.kept_tokens} leading tokens, model.mm_cfg.vision_encoder {first.kept_tokens}: "
            "change a class_token_length"
        )
    scale = tuple(of_shown / of_learnt for of_shown, of_learnt in zip(shown.std, learnt.std, strict=True))
    means = zip(shown.mean, learnt.mean, learnt.std, strict=True)
    shift = tuple((of_shown - of_learnt) / std for of_shown, of_learnt, std in means)
    is_same = tuple(shown.mean) == tuple(learnt.mean) and tuple(shown.std) == tuple(learnt.std)
    beside = replace(second, image_tiles=first.image_tiles, recolour=None if is_same else (scale, shift))
    return replace(first, second=beside)
