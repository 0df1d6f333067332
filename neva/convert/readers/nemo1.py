"""NeVA models of NeMo 1: what their file does not hold comes from the folders that trained them."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from neva.constants import LANGUAGE_MODEL, VISION_TOWER
from neva.convert.lazy_model import LazyModel
from neva.convert.options import USUAL_TEMPLATE, Options
from neva.convert.part_weights import checked_language_weights, equal_tower, require_path, vision_weights
from neva.convert.readers import nemo1_tables
from neva.convert.readers.section import model_section
from neva.convert.stored_tokenizer import stored_tokenizer
from neva.data.media.processor import checked_settings
from neva.errors import CheckpointError
from neva.families.configs import VisionConfig
from neva.families.vision_reading import read_vision_config
from neva.formats.hf_files import read_image_processor
from neva.formats.nemo1 import open_nemo1
from neva.registry import TEMPLATES
from neva.weights.lazy import Chained
from neva.weights.resolve import named_folder

logger = logging.getLogger(__name__)


def read(source: Path, options: Options) -> LazyModel:
    """Opens the model of a file or extracted folder, parts that it does not hold taken from elsewhere.

    The tower's folder is needed always: it has the sizes and the image processor. `options.tokenizer_path` is a folder
    with the tokenizer.json of training.

    Raises:
        CheckpointError: what is missing or does not fit.
    """
    nemo1 = open_nemo1(source)
    if "mm_cfg" not in nemo1.config:
        raise CheckpointError(
            f"{source} is a language model of NeMo 1; convert its Hugging Face folder instead"
        )
    if options.tokenizer_path is None:
        raise CheckpointError(
            f"{source} holds no tokenizer.json; say where the folder is with --input_tokenizer"
        )
    held = nemo1_tables.held_parts(nemo1)
    language, mm_cfg = nemo1_tables.language_config(nemo1, options.tokenizer_path), nemo1.config.mm_cfg
    overrides = {LANGUAGE_MODEL: options.llm_path, VISION_TOWER: options.tower_path}
    folder = require_path(
        named_folder(mm_cfg, VISION_TOWER, overrides), "sizes of the tower", "--vision_encoder_path"
    )
    vision = _vision_config(mm_cfg.vision_encoder, folder)
    kind = mm_cfg.mm_mlp_adapter_type
    weights = [nemo1_tables.projector_part(nemo1, kind, vision, language)]
    if LANGUAGE_MODEL in held:
        weights.append(nemo1_tables.language_part(nemo1, language))
    else:
        language_source = named_folder(mm_cfg, LANGUAGE_MODEL, overrides)
        weights.append(
            checked_language_weights(require_path(language_source, "language model", "--llm_path"), language)
        )
    is_trained = VISION_TOWER in held
    tower = nemo1_tables.tower_part(nemo1, vision) if is_trained else vision_weights(folder, vision)
    template = options.conv_template or _template(nemo1.config, source)
    aspect_ratio = nemo1.config.data.get("image_aspect_ratio", "square")
    return LazyModel(
        name=str(source),
        config=model_section(language, vision, kind, template, aspect_ratio),
        language=language,
        vision=vision,
        connector=kind,
        weights=Chained(*weights, tower),
        tokenizer=stored_tokenizer(options.tokenizer_path),
        image_processor=checked_settings(read_image_processor(folder), vision.image_size, folder),
        tower_reference=equal_tower(tower, folder, vision) if is_trained else folder,
    )


def _vision_config(encoder: DictConfig, folder: Path) -> VisionConfig:
    vision = read_vision_config(folder, encoder.vision_select_layer)
    if (recorded := encoder.get("class_token_length")) not in (None, vision.class_token_length):
        raise CheckpointError(
            f"class_token_length is {recorded} in the .nemo file, expected {vision.class_token_length} for the tower "
            f"in {folder}"
        )
    return vision


def _template(config: DictConfig, source: Path) -> str:
    found = config.data.get("conv_template", "v1")
    if found in TEMPLATES:
        return str(found)
    logger.warning(
        "%s: conv_template %s is not neva's; the model is recorded with %s: say with --conv_template if "
        "it is another one",
        source,
        found,
        USUAL_TEMPLATE,
    )
    return USUAL_TEMPLATE
