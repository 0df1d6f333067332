"""LLaVA models in llava-hf folders."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from neva.config.compose import compose
from neva.config.media import media_rules_of
from neva.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from neva.convert.hf_layouts import LAYOUTS, ONEVISION, HFLayout, check_logits
from neva.convert.lazy_model import LazyModel
from neva.convert.options import USUAL_TEMPLATE, Options
from neva.convert.part_weights import vision_weights
from neva.convert.readers.section import model_section
from neva.convert.stored_tokenizer import stored_tokenizer
from neva.data.media.processor import checked_settings
from neva.errors import CheckpointError, naming
from neva.families.any_resolution import CAPPED_PATTERN, AnyResolution
from neva.families.configs import VisionConfig
from neva.families.language import language_table, read_language_config
from neva.families.vision import vision_family
from neva.families.vision_reading import read_vision_config
from neva.formats.chat_template import read_chat_template
from neva.formats.hf_files import read_config, read_image_processor
from neva.formats.hf_tokenizer import read_roles
from neva.formats.json import json_text, shown
from neva.formats.vocabulary import parse_tokenizer
from neva.templates.jinja import known_template
from neva.weights.lazy import Chained, Converted
from neva.weights.parts import folder_weights, language_part, projector_weights

logger = logging.getLogger(__name__)

OF_VIDEOS = "llava_onevision_qwen2_7b_finetune"
"""The recipe that says how a model which has seen videos is shown them; a folder does not."""
USUAL_ASPECT_RATIO = "anyres_max_9"
"""What a LLaVA-OneVision's `config.json` omits."""


def read(folder: Path, options: Options, all_rows: bool = False) -> LazyModel:
    """Opens the model of a folder. Last rows of the vocabulary that only tokens of media have are left out with these.

    `all_rows` keeps them, for a model that goes on reading its language model from the folder.

    Raises:
        CheckpointError: neva has no such model, or tensors do not fit.
    """
    config = read_config(folder)
    if config.get("projector_hidden_act", "gelu") != "gelu" or not config.get(
        "multimodal_projector_bias", True
    ):
        raise CheckpointError(
            f"{folder}: the projector is not linear, GELU, linear with biases; neva has no such projector"
        )
    stored, vision = read_language_config(folder), read_vision_config(folder)
    check_logits(stored, folder)
    weights, layout = folder_weights(folder), LAYOUTS[str(config["model_type"])]
    rows, placeholders = stored.vocab_size, _placeholders(config, layout)
    language = stored.with_vocabulary(rows if all_rows else _without_last(rows, placeholders))
    dropped = {token for number, token in placeholders.items() if number >= language.vocab_size}
    kind = str(layout.naming.connector)
    template, system = _template_of(folder, options, "chatml" if layout is ONEVISION else USUAL_TEMPLATE)
    processor = read_image_processor(folder)
    aspect_ratio = _aspect_ratio(config, layout, processor)
    section = model_section(language, vision, kind, template, aspect_ratio, system)
    if layout.has_videos:
        recipe = compose(OF_VIDEOS, []).model.data
        section.data.merge_with({key: recipe[key] for key in ("media_type", "num_frames")})
    if layout.has_tiles:
        section.data.image_grid_pinpoints = _pinpoints(folder, config, processor)
        with naming(folder):
            media_rules_of(section, vision)  # refuses what are no tiles of the tower
    return LazyModel(
        name=str(folder),
        config=section,
        language=language,
        vision=vision,
        connector=kind,
        weights=Chained(
            Converted(
                language_table(language, layout.naming, rows),
                language_part(weights, layout.naming, language),
                folder,
            ),
            projector_weights(weights, kind, vision, language, layout.naming, folder),
            vision_weights(folder, vision),
        ),
        tokenizer=_tokenizer(folder, dropped),
        image_processor=checked_settings(_native_processor(processor, vision), vision.image_size, folder),
        tower_reference=None,
    )


def _placeholders(config: Mapping[str, Any], layout: HFLayout) -> dict[int, str]:
    """Returns the tokens that stand for media, by their ids."""
    ids = {config.get("image_token_index", config.get("image_token_id")): IMAGE_PLACEHOLDER}
    if layout.has_videos:
        ids[config.get("video_token_index", config.get("video_token_id"))] = VIDEO_PLACEHOLDER
    return {number: token for number, token in ids.items() if type(number) is int}


def _without_last(rows: int, placeholders: Collection[int]) -> int:
    """Returns the rows of a vocabulary without the last ones, as far as they are those of placeholders."""
    while rows - 1 in placeholders:
        rows -= 1
    return rows


def _aspect_ratio(config: Mapping[str, Any], layout: HFLayout, processor: Mapping[str, Any]) -> str:
    """Returns what `image_aspect_ratio` calls the way in which a model's images are shown.

    Raises:
        CheckpointError: neva has no such way.
    """
    if not layout.has_tiles:
        return "pad" if processor.get("do_pad") else "square"
    if layout is not ONEVISION:
        return AnyResolution.name
    found = config.get("vision_aspect_ratio", USUAL_ASPECT_RATIO)
    if not isinstance(found, str) or re.fullmatch(CAPPED_PATTERN, found) is None:
        raise CheckpointError(
            f"vision_aspect_ratio is {shown(found)}, expected one such as {USUAL_ASPECT_RATIO}"
        )
    return found


def _pinpoints(folder: Path, config: Mapping[str, Any], processor: Mapping[str, Any]) -> list[list[int]]:
    """Returns the resolutions in which a model of any resolution sees images.

    Raises:
        CheckpointError: they are none, model and image processor name others, or it has no newline.
    """
    named: list[list[int]] = config.get("image_grid_pinpoints", [])
    is_list = isinstance(named, list) and all(isinstance(sides, list) and len(sides) == 2 for sides in named)
    if not is_list or not named or any(type(side) is not int for sides in named for side in sides):
        raise CheckpointError(
            f"{folder}: image_grid_pinpoints is {shown(named)}, expected a list of height, width"
        )
    if processor.get("image_grid_pinpoints", named) != named:
        raise CheckpointError(
            f"{folder}: config.json and the image processor have other image_grid_pinpoints; expected the same, those "
            "of the training"
        )
    if not config.get("use_image_newline_parameter", True):
        raise CheckpointError(
            f"{folder}: use_image_newline_parameter is false; neva has no model of any resolution without a newline"
        )
    return named


def _tokenizer(folder: Path, dropped: Collection[str]) -> dict[str, bytes]:
    """Returns the files of a tokenizer without the tokens `dropped`."""
    files = stored_tokenizer(folder)
    if dropped and "tokenizer.json" in files:
        content = parse_tokenizer(files["tokenizer.json"], folder / "tokenizer.json")
        content["added_tokens"] = [
            token for token in content["added_tokens"] if token["content"] not in dropped
        ]
        files["tokenizer.json"] = json_text(content).encode()
    return files


def _native_processor(exported: Mapping[str, Any], vision: VisionConfig) -> dict[str, Any]:
    """Returns the tower's own image processor: padding to a square is the recipe's `image_aspect_ratio` here."""
    others = ("do_pad", "processor_class", "image_grid_pinpoints")
    settings = {key: value for key, value in exported.items() if key not in others}
    if exported.get("do_pad") or "image_grid_pinpoints" in exported:
        family = vision_family(vision.model_type)
        settings["image_processor_type"] = family.image_processor
        if str(exported.get("image_processor_type")).startswith(ONEVISION.processor):  # has no crop
            settings |= family.processor_settings(vision.image_size)
    return settings


def _template_of(folder: Path, options: Options, usual: str) -> tuple[str, str | None]:
    """Returns template and system prompt: what is asked for, else the folder's; `usual` when neva does not know it."""
    if options.conv_template is not None:
        return options.conv_template, None
    text = read_chat_template(folder)
    if text and (found := known_template(text, read_roles(folder).get("eos_token", "</s>"))):
        return found
    logger.warning(
        "%s has %s; the model is recorded with conv_template %s: say with --conv_template if it is another one",
        folder,
        "a chat template that neva does not know" if text else "no chat template",
        usual,
    )
    return usual, None
