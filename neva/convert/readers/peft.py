"""Adapters in a folder of Hugging Face's `peft`, beside the LLaVA model that they were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from omegaconf import open_dict
from torch import Tensor

from neva.config.peft import lora_of, tower_lora_of
from neva.constants import LANGUAGE_MODEL, VISION_TOWER
from neva.convert import detect
from neva.convert.lazy_model import Base, LazyModel, resolved_copy
from neva.convert.options import Options
from neva.convert.peft_folder import (
    PROJECTORS,
    from_peft,
    peft_section,
    projector_from_peft,
    refuse_other_settings,
)
from neva.convert.readers import llava_hf, llava_original, nemo
from neva.errors import CheckpointError, naming
from neva.families.connector import projector_table
from neva.families.naming import LANGUAGE, LLAVA_HF, TOWER
from neva.formats.hf_files import ADAPTER_FILES
from neva.formats.hf_folder import open_weights
from neva.formats.nemo_header import is_nemo, tensor_names
from neva.model.connectors.newline import SUFFIX
from neva.weights.fingerprint import fingerprint_of
from neva.weights.lazy import Chained, Converted, Filtered
from neva.weights.merged import factors_of
from neva.weights.resolve import SECTION_OF, parts_among


def read(folder: Path, options: Options) -> LazyModel:
    """Opens the model that the adapters belong to, with them beside its language model.

    `options.llm_path` is that model: a `.nemo`, or a llava-hf folder; of LLaVA's own LoRA, the language model's folder.

    Raises:
        CheckpointError: no model is given, or the adapters do not fit it.
    """
    path = options.llm_path
    if path is None:
        raise CheckpointError(
            f"{folder} holds adapters alone; say with --llm_path which LLaVA they belong to, a .nemo or a llava-hf "
            "folder, or where the language model is if LLaVA has trained them with a projector"
        )
    if llava_original.has_projector_apart(folder):
        return _beside(llava_original.read(folder, options), folder, path)
    kind = detect.detect(path)
    if kind.reader not in ("nemo", "llava_hf") or kind is detect.ADAPTERS:
        raise CheckpointError(
            f"{path} is a {kind.words}; expected a LLaVA model, a .nemo or a llava-hf folder"
        )
    options = replace(options, llm_path=None)
    model = nemo.read(path, options) if is_nemo(path) else llava_hf.read(path, options, all_rows=True)
    if model.language.hf_config is not None:
        raise CheckpointError(
            f"{path} has a language model that transformers runs, beside which no peft folder is read; expected one "
            "that Megatron runs"
        )
    with naming(folder):
        return _beside(model, folder, path)


def _stored(folder: Path) -> Mapping[str, Tensor]:
    """Returns the tensors of a peft folder."""
    found = next((path for path in map(folder.joinpath, ADAPTER_FILES) if path.is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} has neither {' nor '.join(ADAPTER_FILES)}; fetch the adapter again")
    return open_weights(found)


def _beside(model: LazyModel, folder: Path, path: Path) -> LazyModel:
    stored = _stored(folder)
    refuse_other_settings(folder)
    adapters = from_peft(stored, folder, model.vision)
    config = resolved_copy(model.config)
    held = parts_among(tensor_names(path)) if is_nemo(path) else []
    with open_dict(config):
        config.peft = peft_section(folder, adapters, model.language.num_layers)
        config.restore_from_path = str(path) if is_nemo(path) else None
        for section in map(config.mm_cfg.get, SECTION_OF.values()):
            if section is not None and section.from_pretrained is None and not is_nemo(path):
                section.from_pretrained = str(path)
        config.mm_cfg.llm.freeze = True
        if config.peft.lora_tuning.vision_target_modules:
            config.mm_cfg.vision_encoder.freeze = True
    language = replace(model.language, lora=lora_of(config))
    vision = replace(model.vision, lora=tower_lora_of(config))
    factors_of(language, vision, adapters)  # compares the shapes
    weights = model.weights
    if any(name.startswith(PROJECTORS) for name in stored):
        kind = model.connector.removesuffix(SUFFIX)  # a newline lies in no module of peft's
        table = projector_table(kind, model.vision.feature_size, model.language.hidden_size, LLAVA_HF)
        before = dict(table.to_hf({name: weights[name] for name in table.native_names}))
        weights = Chained(Converted(table, projector_from_peft(stored, before, language), folder), weights)
    base = Base(
        {
            part: {
                "path": str(path) if part in held else str(config.mm_cfg[SECTION_OF[part]].from_pretrained),
                "fingerprint": fingerprint_of(Filtered(model.weights, prefix)),
            }
            for part, prefix in ((LANGUAGE_MODEL, LANGUAGE), (VISION_TOWER, TOWER))
        }
    )
    return replace(
        model,
        name=str(folder),
        config=config,
        language=language,
        vision=vision,
        weights=weights,
        adapters=adapters,
        base=base,
    )
