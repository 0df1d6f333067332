"""LLaVA models that do not come from a `.nemo`: llava-hf folders, original LLaVA folders, a text model and a
tower.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from neva.config.compose import compose
from neva.constants import IMAGE_PLACEHOLDER
from neva.convert.lazy_model import LazyModel, language_weights, tower_weights
from neva.convert.writers.hf_config import family_key, language_section, vision_section
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.connector import connector_named, projector_table
from neva.families.language import language_config_from_hf, language_table
from neva.families.media_tokens import tokens_per_image
from neva.families.naming import LLAVA_HF, LLAVA_ORIGINAL, PROJECTOR, HFNaming
from neva.families.vision import vision_config_from_hf, vision_family
from neva.formats.hf_folder import FolderWeights, read_config
from neva.formats.hf_tokenizer import check_vocabulary, read_roles, tokenizer_files
from neva.registry import TEMPLATES
from neva.templates.jinja import chat_template
from neva.weights.lazy import Chained, Converted, Filtered
from neva.weights.load import language_part

logger = logging.getLogger(__name__)


def from_llava_hf(folder: Path) -> LazyModel:
    """The model of a llava-hf folder. A vocabulary row that only the image token has is left behind with its
    token.
    """
    config = read_config(folder)
    if config["projector_hidden_act"] != "gelu" or not config.get("multimodal_projector_bias", True):
        raise ValueError(
            f"{folder}: the projector is not linear, GELU, linear with biases; neva has no such projector"
        )
    stored, vision = language_config_from_hf(config), vision_config_from_hf(config)
    strategy = config.get("vision_feature_select_strategy", "default")
    vision = replace(vision, class_token_length=1 if strategy == "default" else 0)
    rows, image_id = stored.vocab_size, config.get("image_token_index", config.get("image_token_id"))
    vocab_size = rows - 1 if image_id == rows - 1 else rows
    language = replace(stored, vocab_size=vocab_size, padded_vocab_size=vocab_size)
    weights, kind = FolderWeights(folder), str(LLAVA_HF.connector)
    table = language_table(language, LLAVA_HF, rows)
    parts = [
        Converted(table, language_part(weights, LLAVA_HF, language)),
        _projector(weights, kind, vision, language, LLAVA_HF),
    ]
    tokenizer = _tokenizer(folder, drop_image_token=vocab_size < rows)
    processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    aspect_ratio = "pad" if processor.get("do_pad") else "square"
    template = _template_of(folder)
    section = model_section(language, vision, kind, template, aspect_ratio)
    joined = Chained(*parts, tower_weights(folder, vision))
    return LazyModel(
        str(folder),
        section,
        language,
        vision,
        kind,
        joined,
        tokenizer,
        _native_processor(processor, vision),
        None,
    )


def from_llava_original(folder: Path, tower_source: Path | None) -> LazyModel:
    """The model of a folder that haotian-liu/LLaVA wrote; its tower lies in it when it was trained, else
    elsewhere.

    `tower_source` None looks where `mm_vision_tower` points, which must then be a folder.
    """
    config = read_config(folder)
    kind = config.get("mm_projector_type", "linear")
    language = language_config_from_hf(config)
    weights = FolderWeights(folder)
    tower = tower_source or Path(str(config["mm_vision_tower"]))
    if not (tower / "config.json").is_file():
        raise ValueError(
            f"{folder} takes its vision tower from {tower}, which is no folder here; give --vision_encoder_path"
        )
    vision = vision_config_from_hf(read_config(tower), config["mm_vision_select_layer"])
    if config.get("mm_vision_select_feature", "patch") != "patch":
        raise ValueError(
            f"{folder}: mm_vision_select_feature is {config['mm_vision_select_feature']!r}, expected 'patch'"
        )
    trained = any(name.startswith(LLAVA_ORIGINAL.tower) for name in weights)
    parts = [
        Converted(language_table(language, LLAVA_ORIGINAL), language_part(weights, LLAVA_ORIGINAL, language)),
        _projector(weights, kind, vision, language, LLAVA_ORIGINAL),
        tower_weights(folder if trained else tower, vision),
    ]
    processor = json.loads((tower / "preprocessor_config.json").read_text(encoding="utf-8"))
    aspect_ratio = config.get("image_aspect_ratio", "square")
    section = model_section(language, vision, kind, "v1", aspect_ratio)
    section.mm_cfg.vision_encoder.from_pretrained = None if trained else str(tower)
    tokenizer = _tokenizer(folder, drop_image_token=False)
    reference = None if trained else tower
    return LazyModel(
        str(folder), section, language, vision, kind, Chained(*parts), tokenizer, processor, reference
    )


def from_parts(
    text: Path, tower: Path, adapter_type: str, select_layer: int, template: str, seed: int
) -> LazyModel:
    """A new model: a text model's and a tower's weights with a freshly drawn projector of `adapter_type`."""
    language = language_config_from_hf(read_config(text))
    vision = vision_config_from_hf(read_config(tower), select_layer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = connector_named(adapter_type).build(vision.hidden_size, language.hidden_size)
    drawn = {PROJECTOR + name: tensor.detach() for name, tensor in projector.named_parameters()}
    joined = Chained(drawn, language_weights(text, language), tower_weights(tower, vision))
    section = model_section(language, vision, adapter_type, template, "square")
    processor = json.loads((tower / "preprocessor_config.json").read_text(encoding="utf-8"))
    tokenizer = _tokenizer(text, drop_image_token=False)
    check_vocabulary(text, language.vocab_size)
    return LazyModel(
        f"{text} + {tower}", section, language, vision, adapter_type, joined, tokenizer, processor, tower
    )


def model_section(
    language: LanguageConfig, vision: VisionConfig, adapter_type: str, template: str, aspect_ratio: str
) -> DictConfig:
    """A complete `model` section for these shapes: what they do not say is what the fine-tuning recipe
    says.
    """
    recipe = compose("llava_7b_finetune", [])
    recipe.model.merge_with(
        {
            **language_section(replace(language, family=None)),
            "mm_cfg": {
                "llm": {"from_pretrained": None, **family_key(language)},
                "vision_encoder": {"from_pretrained": None, **vision_section(vision)},
                "mm_mlp_adapter_type": adapter_type,
                "pretrain_mm_mlp_adapter": None,
            },
            "data": {"conv_template": template, "image_aspect_ratio": aspect_ratio},
        }
    )
    section = OmegaConf.create(OmegaConf.to_container(recipe, resolve=True)).model
    side = [vision.image_size, vision.image_size]
    tokens = tokens_per_image(vision, adapter_type)
    section.data.merge_with({"image_token_len": tokens, "crop_size": side, "image_size": side})
    section.mm_cfg.vision_encoder.crop_size = side
    return section


def _projector(
    weights: FolderWeights, kind: str, vision: VisionConfig, language: LanguageConfig, layout: HFNaming
) -> Mapping[str, Tensor]:
    table = projector_table(kind, vision.hidden_size, language.hidden_size, layout)
    return Converted(table, Filtered(weights, layout.projector))


def _tokenizer(folder: Path, drop_image_token: bool) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in tokenizer_files(folder)}
    files.pop("chat_template.jinja", None)
    if drop_image_token and "tokenizer.json" in files:
        content = json.loads(files["tokenizer.json"])
        content["added_tokens"] = [
            token for token in content["added_tokens"] if token["content"] != IMAGE_PLACEHOLDER
        ]
        files["tokenizer.json"] = json.dumps(content, ensure_ascii=False, indent=2).encode()
    return files


def _native_processor(exported: Mapping[str, Any], vision: VisionConfig) -> dict[str, Any]:
    """The tower's own image processor: padding to a square is the recipe's `image_aspect_ratio` here."""
    settings = {key: value for key, value in exported.items() if key not in ("do_pad", "processor_class")}
    if exported.get("do_pad"):
        settings["image_processor_type"] = vision_family(vision.model_type).image_processor
    return settings


def _template_of(folder: Path) -> str:
    """The conversation template whose chat template the folder holds; v1 (LLaVA-1.5's) when it is another
    one.
    """
    path = folder / "chat_template.jinja"
    found = path.read_text(encoding="utf-8") if path.is_file() else None
    eos = read_roles(folder).get("eos_token", "</s>")
    for name in TEMPLATES.names():
        if found == chat_template(name, eos):
            return name
    logger.warning(
        "%s has a chat template that neva does not know; the model is recorded with conv_template v1", folder
    )
    return "v1"
