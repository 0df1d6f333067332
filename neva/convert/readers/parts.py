"""New LLaVA models: a language model and a tower with a fresh projector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from neva.convert.lazy_model import LazyModel
from neva.convert.options import USUAL_TEMPLATE, Options
from neva.convert.part_weights import checked_language_weights, vision_weights
from neva.convert.readers.section import model_section
from neva.convert.stored_tokenizer import stored_tokenizer
from neva.data.media.processor import checked_settings
from neva.data.media.processor_settings import square_settings
from neva.families.built_tower import tokens
from neva.families.connector import connector_named
from neva.families.language import read_language_config
from neva.families.naming import PROJECTOR
from neva.families.vision import vision_family
from neva.families.vision_reading import read_vision_config
from neva.formats.hf_files import read_image_processor
from neva.formats.vocabulary import check_vocabulary
from neva.registry import VISION_FAMILIES
from neva.weights.lazy import Chained


def read(folder: Path, options: Options) -> LazyModel:
    """Joins the language model of `folder` and the tower of `options.tower_path` with a randomly drawn projector."""
    tower = options.tower_path
    assert tower is not None
    language = read_language_config(folder)
    connector = connector_named(options.adapter_type)
    vision = read_vision_config(tower, options.select_layer)
    if vision.model_type not in VISION_FAMILIES:
        number, _ = tokens(vision_family(vision.model_type), vision)
        vision = replace(vision, class_token_length=max(0, number - vision.num_tokens))
    vision = replace(vision, image_tiles=connector.quarters == "needed")
    check_vocabulary(folder, language.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        projector = connector.build(vision.feature_size, language.hidden_size)
    template = options.conv_template or USUAL_TEMPLATE
    drawn = {PROJECTOR + name: tensor.detach() for name, tensor in projector.named_parameters()}
    return LazyModel(
        name=f"{folder} + {tower}",
        config=model_section(language, vision, options.adapter_type, template, "square"),
        language=language,
        vision=vision,
        connector=options.adapter_type,
        weights=Chained(drawn, checked_language_weights(folder, language), vision_weights(tower, vision)),
        tokenizer=stored_tokenizer(folder),
        image_processor=checked_settings(
            square_settings(read_image_processor(tower), vision.image_size), vision.image_size, tower
        ),
        tower_reference=tower,
    )
