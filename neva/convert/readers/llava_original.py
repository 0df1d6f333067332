"""LLaVA models in folders that haotian-liu/LLaVA wrote: whole, or what it has trained beside a language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neva.convert import detect
from neva.convert.lazy_model import LazyModel
from neva.convert.options import USUAL_TEMPLATE, Options
from neva.convert.part_weights import vision_weights
from neva.convert.readers.section import model_section
from neva.convert.stored_tokenizer import stored_tokenizer
from neva.data.media.processor import checked_settings
from neva.errors import CheckpointError, naming
from neva.families.language import read_language_config
from neva.families.naming import LLAVA_ORIGINAL
from neva.families.values import MOST_LAYERS, text, whole
from neva.families.vision_reading import keeping_leading_tokens, read_vision_config
from neva.formats.hf_files import MODEL_CONFIG, read_config, read_image_processor, weights_file
from neva.formats.hf_folder import FolderWeights, open_weights
from neva.formats.json import shown
from neva.formats.nemo_header import is_nemo
from neva.weights.lazy import Chained, Renamed
from neva.weights.parts import language_weights, projector_weights

PLAIN: Mapping[str, tuple[Any, ...]] = {
    "image_aspect_ratio": ("square", "pad"),
    "mm_patch_merge_type": ("flat",),
    "mm_vision_select_feature": ("patch", "cls_patch"),
}
"""Keys of `config.json` and the values of LLaVA-1.5; one that is absent, null or false says the same."""

WITHOUT_EFFECT = (
    "mm_vision_tower",
    "mm_vision_select_layer",
    "mm_projector_type",
    "mm_hidden_size",
    "mm_projector_lr",
    "mm_vision_tower_lr",
    "mm_tunable_parts",
    "mm_use_im_patch_token",
)
"""Keys that are read elsewhere, or that only training reads."""

OTHER_KINDS = ("s2", "add_faster_video", "use_mm_resampler")
"""Switches of later kinds whose names do not begin with `mm_`."""


APART = ("mm_projector.bin", "non_lora_trainables.bin")
"""What stage 1 and LoRA leave of a model whose language model they do not change: its projector."""


def read(folder: Path, options: Options) -> LazyModel:
    """Opens the model of a folder; its tower lies in it when it was trained, else where `mm_vision_tower` points.

    `options.tower_path` says where the tower is if that is no folder here, `options.llm_path` where the language model
    is of a projector that was trained alone.

    Raises:
        CheckpointError: neva has no such model, a part is nowhere, or tensors do not fit.
    """
    config = read_config(folder)
    _refuse_other_kinds(folder, config)
    with naming(folder / MODEL_CONFIG):
        kind = text({"mm_projector_type": "linear", **config}, "mm_projector_type")
        select_layer = whole(config, "mm_vision_select_layer", low=-MOST_LAYERS, high=MOST_LAYERS)
        tower = options.tower_path or Path(text(config, "mm_vision_tower"))
    base, weights = (
        (_base_of(folder, options.llm_path), _projector_of(folder))
        if has_projector_apart(folder)
        else (folder, FolderWeights(folder))
    )
    language = read_language_config(base)
    if not (tower / MODEL_CONFIG).is_file():
        raise CheckpointError(
            f"{folder} takes its vision tower from {tower}, which is no folder here; give --vision_encoder_path"
        )
    vision = read_vision_config(tower, select_layer)
    if config.get("mm_vision_select_feature") == "cls_patch":
        vision = keeping_leading_tokens(vision)
    is_trained = any(name.startswith(LLAVA_ORIGINAL.tower) for name in weights)
    template = options.conv_template or USUAL_TEMPLATE
    section = model_section(language, vision, kind, template, config.get("image_aspect_ratio") or "square")
    section.mm_cfg.vision_encoder.from_pretrained = None if is_trained else str(tower)
    return LazyModel(
        name=str(folder),
        config=section,
        language=language,
        vision=vision,
        connector=kind,
        weights=Chained(
            language_weights(base, language),
            projector_weights(weights, kind, vision, language, LLAVA_ORIGINAL, folder),
            vision_weights(folder if is_trained else tower, vision),
        ),
        tokenizer=stored_tokenizer(base),
        image_processor=checked_settings(read_image_processor(tower), vision.image_size, tower),
        tower_reference=None if is_trained else tower,
    )


def has_projector_apart(folder: Path) -> bool:
    """Whether a folder holds what LLaVA trains beside a language model, without that."""
    return weights_file(folder) is None and any((folder / name).is_file() for name in APART)


def _projector_of(folder: Path) -> Mapping[str, Tensor]:
    """Returns the projector of such a folder under its names in a whole one."""
    path = next(path for path in map(folder.joinpath, APART) if path.is_file())
    stored, word = open_weights(path), LLAVA_ORIGINAL.projector.partition(".")[2]
    if others := [name for name in stored if f".{word}" not in name]:
        raise CheckpointError(
            f"{path} holds {others[0]}; expected a projector ({LLAVA_ORIGINAL.projector}…) alone"
        )
    # as many "model." stand in front as wrappers were around
    return Renamed(
        stored, {LLAVA_ORIGINAL.projector + name.partition(f".{word}")[2]: name for name in stored}
    )


def _base_of(folder: Path, path: Path | None) -> Path:
    """Returns the language model that a projector was trained beside."""
    if path is None:
        name = read_config(folder).get("_name_or_path")
        raise CheckpointError(
            f"{folder} holds what was trained beside a language model, without that; say with --llm_path where it is"
            + (f" ({shown(name)}, as its {MODEL_CONFIG} says)" if name else "")
        )
    if detect.detect(path) is not detect.TEXT or is_nemo(path):
        raise CheckpointError(
            f"{path} is a {detect.detect(path).words}; expected the folder of a language model"
        )
    return path


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for what LLaVA-NeXT, LLaVA-OneVision and others changed without another `model_type`."""
    keys = [key for key in config if key in PLAIN or key in OTHER_KINDS or key.startswith("mm_")]
    for key in keys:
        value = config[key]
        if value and key not in WITHOUT_EFFECT and value not in PLAIN.get(key, ()):
            expected = " or ".join(map(repr, PLAIN.get(key, (None,))))
            raise CheckpointError(
                f"{folder}: {key} is {value!r}, expected {expected}; neva reads models that are put together as "
                "LLaVA-1.5 is"
            )
