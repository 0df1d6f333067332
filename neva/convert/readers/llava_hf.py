"""LLaVA models in llava-hf folders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neva.constants import IMAGE_PLACEHOLDER
from neva.convert.lazy_model import LazyModel
from neva.convert.options import Options
from neva.convert.part_weights import vision_weights
from neva.convert.readers.section import model_section
from neva.convert.stored_tokenizer import stored_tokenizer
from neva.data.media.processor import checked_settings
from neva.errors import CheckpointError
from neva.families.configs import VisionConfig
from neva.families.language import language_table, read_language_config
from neva.families.naming import LLAVA_HF
from neva.families.vision import read_vision_config, vision_family
from neva.formats.hf_files import CHAT_TEMPLATE, read_config, read_image_processor
from neva.formats.hf_tokenizer import read_roles
from neva.formats.json import decode_text, json_text
from neva.formats.vocabulary import parse_tokenizer
from neva.templates.jinja import known_template
from neva.weights.lazy import Chained, Converted
from neva.weights.parts import folder_weights, language_part, projector_weights

logger = logging.getLogger(__name__)


def read(folder: Path, options: Options) -> LazyModel:
    """Opens the model of a folder. A vocabulary row that only the image token has is left out with its token.

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
    rows, image_id = stored.vocab_size, config.get("image_token_index", config.get("image_token_id"))
    vocab_size = rows - 1 if image_id == rows - 1 else rows
    language = replace(stored, vocab_size=vocab_size, padded_vocab_size=vocab_size)
    weights, kind = folder_weights(folder), str(LLAVA_HF.connector)
    template, system = _template_of(folder)
    processor = read_image_processor(folder)
    aspect_ratio = "pad" if processor.get("do_pad") else "square"
    return LazyModel(
        name=str(folder),
        config=model_section(language, vision, kind, template, aspect_ratio, system),
        language=language,
        vision=vision,
        connector=kind,
        weights=Chained(
            Converted(
                language_table(language, LLAVA_HF, rows), language_part(weights, LLAVA_HF, language), folder
            ),
            projector_weights(weights, kind, vision, language, LLAVA_HF, folder),
            vision_weights(folder, vision),
        ),
        tokenizer=_tokenizer(folder, drop_image_token=vocab_size < rows),
        image_processor=checked_settings(_native_processor(processor, vision), vision.image_size, folder),
        tower_reference=None,
    )


def _tokenizer(folder: Path, drop_image_token: bool) -> dict[str, bytes]:
    files = stored_tokenizer(folder)
    if drop_image_token and "tokenizer.json" in files:
        content = parse_tokenizer(files["tokenizer.json"], folder / "tokenizer.json")
        content["added_tokens"] = [
            token for token in content["added_tokens"] if token["content"] != IMAGE_PLACEHOLDER
        ]
        files["tokenizer.json"] = json_text(content).encode()
    return files


def _native_processor(exported: Mapping[str, Any], vision: VisionConfig) -> dict[str, Any]:
    """Returns the tower's own image processor: padding to a square is the recipe's `image_aspect_ratio` here."""
    settings = {key: value for key, value in exported.items() if key not in ("do_pad", "processor_class")}
    if exported.get("do_pad"):
        settings["image_processor_type"] = vision_family(vision.model_type).image_processor
    return settings


def _template_of(folder: Path) -> tuple[str, str | None]:
    """Returns template and system prompt of the folder's chat template; v1 (LLaVA-1.5's) when it is another one."""
    path = folder / CHAT_TEMPLATE
    text = decode_text(path.read_bytes(), path) if path.is_file() else ""
    if found := known_template(text, read_roles(folder).get("eos_token", "</s>")):
        return found
    logger.warning(
        "%s has a chat template that neva does not know; the model is recorded with conv_template v1", folder
    )
    return "v1", None
