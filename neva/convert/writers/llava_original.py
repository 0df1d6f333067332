"""A LLaVA model as haotian-liu/LLaVA's own folder: what the `llava` package and VLMEvalKit's `llava_v1.5_*` load."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from neva.config.samples import IMAGE_TAGS, image_tags_of
from neva.convert.at_input_size import at_input_size
from neva.convert.hf_layouts import check_logits, check_towers
from neva.convert.lazy_model import LazyModel
from neva.convert.options import Options
from neva.convert.writers.exported_template import begins_with_bos
from neva.convert.writers.hf_config import check_aspect_ratio, dtype_name, text_config, vision_config
from neva.convert.writers.proven_folder import proven_folder
from neva.errors import CheckpointError, DataError
from neva.families.connector import projector_table
from neva.families.language import language_table
from neva.families.naming import LLAVA_ORIGINAL, TOWER, VISION_MODEL
from neva.families.vision_table import stored_tower, tower_table
from neva.formats.hf_files import IMAGE_PROCESSOR_CONFIG, MODEL_CONFIG
from neva.formats.hf_folder import write_weights
from neva.formats.hf_tokenizer import copy_portable, read_roles, set_bos, token_ids
from neva.formats.json import json_text, read_object, write_json
from neva.formats.vocabulary import check_vocabulary
from neva.registry import LANGUAGE_FAMILIES
from neva.weights.lazy import Filtered, checked

logger = logging.getLogger(__name__)

TOWER_FOLDER = "vision_tower"


def write(model: LazyModel, target: Path, options: Options) -> None:
    """Writes the folder and proves it."""
    check_towers(model)
    check_logits(model.language, model.name)
    model = at_input_size(model)

    def prove(folder: Path) -> None:
        from neva.convert.parity.original import prove_llava_original

        prove_llava_original(model.rounded(options.dtype), folder)

    with proven_folder(target, options, prove) as folder:
        write_llava_original(model, folder, options.dtype, target, options.tower_name)


def write_llava_original(
    model: LazyModel, folder: Path, dtype: torch.dtype | None, target: Path, tower_name: str | None
) -> None:
    """Writes weights, configuration and tokenizer into the empty `folder`, which will be `target`.

    A tower that is bit-equal to a folder's is only referenced, by `tower_name` or by that folder; another one
    is stored among the weights, and beside them as a folder of its own that `mm_vision_tower` names.

    Raises:
        CheckpointError: the `llava` package cannot build the model: a tower other than CLIP, a language model other
            than LLaMA.
    """
    check_exportable(model)
    check_aspect_ratio(model)
    if advice := name_advice(target.name):
        logger.warning("%s", advice)
    model = model.rounded(dtype)
    with model.tokenizer_dir() as tokenizer_dir:
        check_vocabulary(tokenizer_dir, model.language.vocab_size)
        copy_portable(tokenizer_dir, folder)
    file, roles = folder / "tokenizer.json", read_roles(folder)
    if file.is_file():
        _begin_as_trained(file, roles.get("bos_token"), begins_with_bos(model.config))
    ids = token_ids(Tokenizer.from_file(str(file)) if file.is_file() else None, roles)
    written = model.dtype
    width = model.vision.feature_size
    table = language_table(model.language, LLAVA_ORIGINAL)
    table += projector_table(model.connector, width, model.language.hidden_size, LLAVA_ORIGINAL)
    reference = model.tower_reference
    if reference is None:
        table += tower_table(model.tower_shapes, stored_tower(model.vision, LLAVA_ORIGINAL))
        (folder / TOWER_FOLDER).mkdir()
        _write_tower(model, folder / TOWER_FOLDER)
    tower = tower_name or str((reference or target / TOWER_FOLDER).resolve())
    config = original_config(model, ids, written, tower, trained=reference is None)
    write_json(folder / MODEL_CONFIG, config)
    weights = Filtered(model.weights, *table.native_names)
    write_weights(folder, checked(table.to_hf(weights), len(table.hf_names), str(target)))


def _begin_as_trained(file: Path, bos: str | None, wanted: bool) -> None:
    """Makes a `tokenizer.json` put the token that begins a conversation, or not: `llava` takes what it puts."""
    content = read_object(file, DataError)
    set_bos(content, bos, wanted)
    file.write_text(json_text(content), encoding="utf-8")


def name_advice(name: str) -> str | None:
    """Returns what is wrong with a folder's name, from which the `llava` package guesses what it holds; None: nothing.

    Source: haotian-liu/LLaVA, `load_pretrained_model` in llava/model/builder.py.
    """
    if "llava" not in name.lower():
        return (
            f"the llava package loads {name!r} as a text model: rename the folder, with 'llava' in its name"
        )
    wrong = [word for word in ("lora", "mpt", "mistral") if word in name.lower()]
    if wrong:
        return f"the llava package takes {name!r} for another kind of model: rename the folder, without {wrong[0]!r}"
    return None


def check_exportable(model: LazyModel) -> None:
    """Raises CheckpointError for a model that haotian-liu/LLaVA has no classes for."""
    if model.vision.model_type != "clip":
        raise CheckpointError(
            f"the original LLaVA layout has CLIP towers only, not {model.vision.model_type!r}"
        )
    if len(model.vision.select_layers) > 1 or model.vision.post_layernorm:
        raise CheckpointError(
            "the original LLaVA layout takes one hidden state of the tower as it is; export the llava-hf layout, which "
            "joins several"
        )
    if image_tags_of(model.config) not in (None, IMAGE_TAGS[None]):
        raise CheckpointError(
            "the original LLaVA layout has <im_start>, <im_end> around an image only; export the llava-hf layout"
        )
    language = model.language
    if language.family is not None or not LANGUAGE_FAMILIES["llama"].computes(language):
        raise CheckpointError(
            "the original LLaVA layout has LLaMA language models only; export the llava-hf layout instead"
        )


def original_config(
    model: LazyModel, ids: dict[str, int | None], dtype: torch.dtype, tower: str, trained: bool
) -> dict[str, Any]:
    """Returns the content of `config.json`; `tower` is the value of `mm_vision_tower`."""
    return {
        **text_config(model.language, dtype, ids),
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "mm_projector_type": model.config.mm_cfg.mm_mlp_adapter_type,
        "mm_hidden_size": model.vision.hidden_size,
        "mm_vision_tower": tower,
        "mm_vision_select_layer": model.vision.select_layer,
        "mm_vision_select_feature": "patch" if model.vision.class_token_length else "cls_patch",
        "mm_use_im_start_end": image_tags_of(model.config) is not None,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad" if model.config.data.image_aspect_ratio == "pad" else "square",
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": trained,
        "use_mm_proj": True,
        "tokenizer_model_max_length": model.language.max_positions,
        "torch_dtype": dtype_name(dtype),
    }


def _write_tower(model: LazyModel, folder: Path) -> None:
    """Writes the tower as a folder of its own, with the names that transformers 4 and 5 both load."""
    config = vision_config(model.vision, model.dtype, model.has_pooling_head)
    write_json(folder / MODEL_CONFIG, {**config, "architectures": ["CLIPVisionModel"]})
    if model.image_processor is not None:
        write_json(folder / IMAGE_PROCESSOR_CONFIG, model.image_processor)
    table = tower_table(model.tower_shapes, VISION_MODEL)
    write_weights(folder, table.to_hf(Filtered(model.weights, TOWER)))
