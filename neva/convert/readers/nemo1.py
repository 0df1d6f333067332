"""NeVA models of NeMo 1: what their file does not hold comes from the folders that trained them."""

import json
import logging
from pathlib import Path

from omegaconf import DictConfig

from neva.convert.lazy_model import LazyModel, equal_tower, language_weights, require_path, tower_weights
from neva.convert.readers.llava import model_section
from neva.convert.readers.nemo1_file import LANGUAGE_NAMES, OLD, open_old_nemo
from neva.families.configs import VisionConfig
from neva.families.vision import vision_config_from_hf
from neva.formats.hf_folder import read_config
from neva.formats.hf_tokenizer import tokenizer_files
from neva.registry import TEMPLATES
from neva.weights.lazy import Chained

logger = logging.getLogger(__name__)


def from_old_nemo(
    source: Path, language_source: Path | None, tower_source: Path | None, tokenizer: Path | None
) -> LazyModel:
    """The model of a NeVA `.nemo` file or extracted folder, parts that it does not hold taken from elsewhere.

    The tower's folder is needed always: it has the sizes and the image processor. `tokenizer` is a folder with the
    tokenizer.json of training. ValueError says what is missing or does not fit.
    """
    old = open_old_nemo(source)
    if "mm_cfg" not in old.config:
        raise ValueError(f"{source} is a language model of NeMo 1; convert its Hugging Face folder instead")
    if tokenizer is None:
        raise ValueError(f"{source} holds no tokenizer.json; say where the folder is with --input_tokenizer")
    old.refuse_others()
    language, mm_cfg = old.language_config_of(tokenizer), old.config.mm_cfg
    folder = require_path(
        tower_source or mm_cfg.vision_encoder.from_pretrained, "sizes of the tower", "--vision_encoder_path"
    )
    vision = _vision_shape(mm_cfg.vision_encoder, folder)
    kind = mm_cfg.mm_mlp_adapter_type
    sources = [old.projector(kind, vision, language)]
    if old.holds(*LANGUAGE_NAMES):
        sources.append(old.language(language))
    else:
        place = language_source or mm_cfg.llm.from_pretrained
        sources.append(language_weights(require_path(place, "language model", "--llm_path"), language))
    trained = old.holds(OLD.tower)
    sources.append(old.tower(vision) if trained else tower_weights(folder, vision))
    aspect_ratio = old.config.data.get("image_aspect_ratio", "square")
    section = model_section(language, vision, kind, _template(old.config, source), aspect_ratio)
    processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    files = {file.name: file.read_bytes() for file in tokenizer_files(tokenizer)}
    reference = equal_tower(sources[-1], folder, vision) if trained else folder
    return LazyModel(
        str(source), section, language, vision, kind, Chained(*sources), files, processor, reference
    )


def _vision_shape(encoder: DictConfig, folder: Path) -> VisionConfig:
    shape = vision_config_from_hf(read_config(folder), encoder.vision_select_layer)
    if (recorded := encoder.get("class_token_length")) not in (None, shape.class_token_length):
        raise ValueError(
            f"class_token_length is {recorded} in the .nemo file, expected {shape.class_token_length} for the tower "
            f"in {folder}"
        )
    return shape


def _template(config: DictConfig, source: Path) -> str:
    found = config.data.get("conv_template", "v1")
    if found in TEMPLATES:
        return str(found)
    logger.warning("%s: conv_template %s is not neva's; the model is recorded with v1", source, found)
    return "v1"
