"""The tower of a `config.json`, and what a LLaVA model's keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neva.errors import ConfigError, naming
from neva.families.configs import VisionConfig
from neva.families.naming import IDEFICS2, LLAVA_HF, LLAVA_NEXT, LLAVA_ONEVISION
from neva.families.values import section, selected_layers, text
from neva.families.vision import vision_family
from neva.formats.hf_files import MODEL_CONFIG, read_config
from neva.formats.json import shown
from neva.registry import VISION_FAMILIES

IDEFICS2_TOWER = "idefics2_vision"
"""The family of an Idefics2's tower, of which the model takes the last layer behind the norm."""

USUAL: dict[str | None, tuple[str, int, str]] = {
    LLAVA_HF.model_type: ("clip_vision_model", -2, "default"),
    LLAVA_NEXT.model_type: ("clip_vision_model", -2, "default"),
    LLAVA_ONEVISION.model_type: ("siglip_vision_model", -1, "full"),
}
"""`model_type` of a LLaVA -> what transformers takes its tower without a type for, and without them its
`vision_feature_layer` and `vision_feature_select_strategy`."""


def vision_config_from_hf(
    config: Mapping[str, Any], select_layer: int | tuple[int, ...] = -1
) -> VisionConfig:
    """Reads the tower of a `config.json`: its own, or that of a CLIP, SigLIP, LLaVA or Idefics2 model.

    `select_layer` is the index into the tower's hidden states (-1: the last layer's output); it is the recipe's
    choice, except that a LLaVA config brings its own `vision_feature_layer`, and an Idefics2 has the last.

    Raises:
        ConfigError: a tower that neva does not read.
    """
    # CLIP's first files say it twice, and transformers takes the second
    named = "vision_config_dict" if config.get("vision_config_dict") is not None else "vision_config"
    part = section(config, named) if named in config else config
    model_type = text({"model_type": "", **config}, "model_type")
    usual_type, usual_layer, _ = USUAL.get(model_type, (model_type, select_layer, ""))
    stored_type = text({"model_type": usual_type, **part}, "model_type")
    if model_type == IDEFICS2.model_type:  # the hub's names no type of the tower, or the whole's
        vision = vision_family(IDEFICS2_TOWER).read(part, -1)
        return replace(vision, post_layernorm=True)
    layers = selected_layers(config.get("vision_feature_layer", usual_layer))
    for family in VISION_FAMILIES:
        if stored_type in (family.model_type, family.exported_type):
            return _as_selected(family.read(part, layers), config)
    if not {"image_size", "patch_size", "hidden_size"} <= part.keys():
        raise ConfigError(
            f"model_type {shown(stored_type.removesuffix('_vision_model'))} is not a vision tower that neva reads; "
            f"expected one of {sorted(VISION_FAMILIES.names())}, or one of transformers' with image_size, patch_size "
            "and hidden_size"
        )
    return _as_selected(vision_family(stored_type).read(_completed(part), layers), config)


def _completed(part: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a `config.json` of an unknown tower with the keys that some call otherwise."""
    width, ratio = part.get("hidden_size"), part.get("mlp_ratio")
    known = {"hidden_act": "gelu", "layer_norm_eps": part.get("rms_norm_eps", 1e-6)}
    if isinstance(width, int) and isinstance(ratio, int | float):
        known["intermediate_size"] = int(width * ratio)
    return {**known, **part}


def _as_selected(vision: VisionConfig, config: Mapping[str, Any]) -> VisionConfig:
    """Returns the tower with the leading tokens that a LLaVA config drops of it; a tower alone drops all.

    Raises:
        ConfigError: it drops patches.
    """
    if config.get("model_type") not in USUAL:
        return vision
    *_, usual = USUAL[config["model_type"]]
    strategy = config.get("vision_feature_select_strategy", usual)
    if strategy not in ("default", "full"):
        raise ConfigError(
            f"vision_feature_select_strategy is {shown(strategy)}, expected 'default' or 'full'"
        )
    leading, dropped = vision.class_token_length, int(strategy == "default")
    if vision.model_type not in VISION_FAMILIES:  # how many there are is seen when the tower is built
        return replace(vision, class_token_length=dropped)
    if dropped > leading:
        raise ConfigError(
            f"vision_feature_select_strategy is 'default', which drops the first patch of a {vision.model_type} tower; "
            "expected 'full'"
        )
    return replace(vision, class_token_length=dropped, kept_tokens=leading - dropped)


def keeping_leading_tokens(vision: VisionConfig) -> VisionConfig:
    """Returns the tower with its class tokens among the features."""
    return replace(vision, class_token_length=0, kept_tokens=vision.kept_tokens + vision.class_token_length)


def read_vision_config(folder: str | Path, select_layer: int | tuple[int, ...] = -1) -> VisionConfig:
    """Returns the sizes of the tower in a Hugging Face folder; see `vision_config_from_hf`.

    Raises:
        UserError: there is no `config.json`, or none that is read; the message names it.
    """
    with naming(Path(folder) / MODEL_CONFIG):
        return vision_config_from_hf(read_config(folder), select_layer)
