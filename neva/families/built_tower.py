"""What only the tower itself can tell: it is built by transformers, without memory where it is only asked.

`family` is the `VisionFamily` that a tower belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

from neva.errors import ConfigError
from neva.families.configs import VisionConfig
from neva.families.stored_names import stored_names
from neva.registry import VISION_FAMILIES

if TYPE_CHECKING:
    from neva.families.mapping import Shape
    from neva.families.vision import VisionFamily

INTERPOLATE = "interpolate_pos_encoding"


def build(family: VisionFamily, vision: VisionConfig) -> Any:
    """Builds a tower with random weights, in float32, with SDPA attention.

    Raises:
        ConfigError: transformers has no such tower.
    """
    import torch
    import transformers

    sizes = family.sizes(vision)
    if family.classes is not None:
        config_class, model_class = (getattr(transformers, name) for name in family.classes)
        config = config_class(**sizes)
        config._attn_implementation = "sdpa"
        return model_class(config)
    try:
        config = transformers.AutoConfig.for_model(family.model_type, **sizes)
        return transformers.AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    except ValueError as error:
        known = ", ".join(repr(family.model_type) for family in VISION_FAMILIES)
        raise ConfigError(
            f"vision_encoder.model_type: found {family.model_type!r}, expected {known} or a model type of "
            "transformers that has hidden states"
        ) from error


def switch(module: Any, is_other_size: bool) -> dict[str, bool]:
    """Returns how a module is told to interpolate learned positions; some do it untold."""
    has_switch = is_other_size and INTERPOLATE in signature(module.forward).parameters
    return {INTERPOLATE: True} if has_switch else {}


def _asked(family: VisionFamily, vision: VisionConfig) -> Any:
    """Returns a tower without memory."""
    import torch

    with torch.device("meta"):
        return family.build(vision)


@cache
def shapes(family: VisionFamily, vision: VisionConfig) -> Mapping[str, Shape]:
    """Returns names and shapes of a tower's tensors."""
    return {name: tuple(weight.shape) for name, weight in _asked(family, vision).named_parameters()}


@cache
def file_names(family: VisionFamily, vision: VisionConfig) -> Mapping[str, str]:
    """Returns the name of each tensor that has another one in a file, as transformers writes it.

    Raises:
        CheckpointError: transformers joins or cuts tensors on the way to a file.
    """
    names = stored_names(_asked(family, vision), "tower")
    return {name: stored for name, stored in names.items() if name != stored}


@cache
def tokens(family: VisionFamily, vision: VisionConfig) -> tuple[int, int]:
    """Returns number and width of the tokens in a hidden state of a square image.

    Raises:
        ConfigError: the tower has no hidden states, or takes no images of that size.
    """
    import torch

    pixels = torch.empty(1, 3, vision.side, vision.side, device="meta")
    try:
        (first, *_) = family.hidden_states(_asked(family, vision), pixels, vision)
        number, width = first.shape[1:]
    except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(
            f"a {family.model_type!r} tower gives no hidden states for images of {vision.side} pixels "
            f"({' '.join(str(error).split()):.200}); take a tower of another type, or leave out "
            "model.mm_cfg.vision_encoder.input_size"
        ) from error
    return int(number), int(width)


def check_tokens(family: VisionFamily, vision: VisionConfig) -> None:
    """Raises ConfigError when a tower of an unknown family has no hidden states, or others than its sizes tell."""
    found = tokens(family, vision)
    expected = (vision.class_token_length + vision.num_tokens, vision.hidden_size)
    if found != expected:
        raise ConfigError(
            f"a {family.model_type!r} tower gives {found[0]} tokens of width {found[1]}, expected {expected[0]} of "
            f"{expected[1]}: {vision.num_tokens} patches, and model.mm_cfg.vision_encoder.class_token_length="
            f"{vision.class_token_length} before them; correct the latter"
        )


def interpolated(family: VisionFamily, positions: Any, vision: VisionConfig) -> Any:
    """Returns the learned positions that a tower adds to a square image of the size that it sees."""
    import torch

    module, _, name = str(family.positions).partition(".")
    embeddings = _asked(family, vision).get_submodule(module)
    owner, _, leaf = name.rpartition(".")
    weight = torch.nn.Parameter(positions.float(), requires_grad=False)
    setattr(embeddings.get_submodule(owner), leaf, weight)
    before = positions.numel() // positions.shape[-1] - (vision.image_size // vision.patch_size) ** 2
    asked = torch.empty(1, before + (vision.side // vision.patch_size) ** 2, vision.hidden_size)
    found = embeddings.interpolate_pos_encoding(asked, vision.side, vision.side)
    return found.to(positions.dtype).view(*positions.shape[:-2], -1, vision.hidden_size)
