"""LLaVA `.nemo` files; parts that one does not hold are taken from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from neva.config.tower import vision_config_of
from neva.constants import ADAPTERS, LANGUAGE_MODEL, PROJECTOR, SECOND_TOWER, VISION_TOWER, part_of
from neva.convert.lazy_model import Base, LazyModel
from neva.convert.options import Options
from neva.convert.part_weights import checked_language_weights, equal_tower, require_path, vision_weights
from neva.convert.readers.verified import verify
from neva.convert.writers.hf_config import stored_config
from neva.data.media.processor import checked_settings
from neva.errors import CheckpointError, ConfigError, naming
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.connector import native_projector_table
from neva.families.language import language_table
from neva.families.naming import LANGUAGE, SECOND, TOWER
from neva.families.naming import PROJECTOR as PROJECTOR_PREFIX
from neva.families.vision_table import POOLING, tower_shapes, tower_table
from neva.formats.nemo import NemoFile, open_nemo
from neva.formats.nemo_header import IMAGE_PROCESSOR_FILE
from neva.weights.fingerprint import check_base, fingerprint_of
from neva.weights.lazy import Chained, Filtered
from neva.weights.merged import factors_of
from neva.weights.parts import second_tower_weights
from neva.weights.resolve import Origin, named_folder, resolve_nemo


def read(source: Path, options: Options) -> LazyModel:
    """See `open_model`.

    Raises:
        ConfigError: a conversation template is asked for that is not the one of training.
    """
    model = open_model(source, options.llm_path, options.tower_path)
    if options.conv_template not in (None, recorded := model.config.data.conv_template):
        raise ConfigError(
            f"{source} was trained with conv_template {recorded}, not {options.conv_template}: leave out "
            "--conv_template"
        )
    return model


def require_tensors(
    nemo: NemoFile,
    origins: Mapping[str, Origin],
    connector: str,
    vision: VisionConfig,
    language: LanguageConfig,
) -> None:
    """Compares names and shapes of the held parts with the sizes that the file records; no weight is read.

    Raises:
        ConversionError: they differ.
    """
    held = {
        name: tensor for name, tensor in nemo.weights.without_values().items() if part_of(name) != ADAPTERS
    }
    pooling = any(name.startswith(TOWER + POOLING) for name in held)
    tables = {
        LANGUAGE_MODEL: language_table(replace(language, padded_vocab_size=language.vocab_size)),
        PROJECTOR: native_projector_table(connector, vision.feature_size, language.hidden_size),
        VISION_TOWER: tower_table(tower_shapes(vision, pooling), ""),
    }
    prefixes = {LANGUAGE_MODEL: LANGUAGE, PROJECTOR: PROJECTOR_PREFIX, VISION_TOWER: TOWER}
    if vision.second is not None:
        pooling = any(name.startswith(SECOND + POOLING) for name in held)
        shapes = tower_shapes(vision.second, pooling)
        tables[SECOND_TOWER], prefixes[SECOND_TOWER] = tower_table(shapes, "", native_prefix=SECOND), SECOND
    with naming(nemo.path):
        for part, table in tables.items():
            if origins[part].is_held and not origins[part].is_base:
                table.check(Filtered(held, prefixes[part]))


def open_model(
    source: str | Path, language_source: str | Path | None = None, tower_source: str | Path | None = None
) -> LazyModel:
    """Opens the model of a LLaVA `.nemo`.

    A stage-1 file holds a projector, a fine-tuned one language model and projector; the rest is where
    `mm_cfg.llm.from_pretrained` and `mm_cfg.vision_encoder.from_pretrained` say, or in `language_source` and
    `tower_source`.

    Raises:
        CheckpointError: a part is nowhere, or its tensors do not fit.
    """
    nemo = _opened(source)
    language, vision, mm_cfg = stored_config(nemo.config), vision_config_of(nemo.config), nemo.config.mm_cfg
    overrides = {LANGUAGE_MODEL: language_source, VISION_TOWER: tower_source}
    origins = resolve_nemo(source, nemo.config, overrides)
    if not origins[PROJECTOR].is_held:
        raise CheckpointError(
            f"{source} holds no projector; expected a .nemo file that a LLaVA training wrote"
        )
    adapters = Filtered(nemo.weights, *(name for name in nemo.weights if part_of(name) == ADAPTERS))
    beside_language = _language_beside(origins[LANGUAGE_MODEL], language)
    beside_tower, reference = _tower_beside(
        nemo, origins[VISION_TOWER], named_folder(mm_cfg, VISION_TOWER, overrides), vision
    )
    beside_second = [] if vision.second is None else _second_beside(origins[SECOND_TOWER], vision.second)
    held = Filtered(nemo.weights, "", without=tuple(adapters))
    weights = Chained(held, *beside_language, *beside_tower, *beside_second)
    require_tensors(nemo, origins, mm_cfg.mm_mlp_adapter_type, vision, language)
    if language.lora is not None:
        factors_of(language, vision, adapters)  # compares the shapes
        _check_base(nemo, origins, weights)
    return LazyModel(
        name=str(source),
        config=nemo.config,
        language=language,
        vision=vision,
        connector=mm_cfg.mm_mlp_adapter_type,
        weights=weights,
        tokenizer=nemo.tokenizer(),
        image_processor=_image_processor(nemo, vision),
        tower_reference=reference,
        adapters=adapters if language.lora is not None else None,
        base=Base(nemo.manifest.get("base") or {}) if language.lora is not None else None,
    )


def _opened(source: str | Path) -> NemoFile:
    """Returns the file, whose content is what its manifest says.

    Raises:
        CheckpointError: it has changed, or is no LLaVA's.
    """
    nemo = open_nemo(source)
    if "mm_cfg" not in nemo.config:
        raise CheckpointError(
            f"{source} holds a language model alone; expected a LLaVA model, with mm_cfg in its configuration"
        )
    verify(nemo)
    return nemo


def _language_beside(origin: Origin, language: LanguageConfig) -> list[Mapping[str, Tensor]]:
    """Returns the language model's tensors where the file does not hold them."""
    if origin.is_base:
        base = open_nemo(str(origin.path))
        verify(base)
        return [Filtered(base.weights, LANGUAGE)]
    if origin.is_held:
        return []
    folder = require_path(origin.path, "language model", "--llm_path")
    return [checked_language_weights(folder, language)]


def _tower_beside(
    nemo: NemoFile, origin: Origin, folder: str | None, vision: VisionConfig
) -> tuple[list[Mapping[str, Tensor]], Path | None]:
    """Returns the tower's tensors where the file does not hold them, and the folder whose tower is bit-equal."""
    if origin.is_base:
        base = Filtered(open_nemo(str(origin.path)).weights, TOWER)
        return [base], equal_tower(base, folder, vision)
    if origin.is_held:
        return [], equal_tower(Filtered(nemo.weights, TOWER), folder, vision)
    reference = require_path(folder, "vision tower", "--vision_encoder_path")
    return [vision_weights(reference, vision)], reference


def _second_beside(origin: Origin, vision: VisionConfig) -> list[Mapping[str, Tensor]]:
    """Returns the second tower's tensors where the file does not hold them."""
    if origin.is_base:
        return [Filtered(open_nemo(str(origin.path)).weights, SECOND)]
    if origin.is_held:
        return []
    folder = require_path(origin.path, "second tower", "model.mm_cfg.second_vision_encoder.from_pretrained")
    return [second_tower_weights(folder, vision)]


def _image_processor(nemo: NemoFile, vision: VisionConfig) -> dict[str, Any] | None:
    settings = nemo.image_processor
    if settings is None:
        return None
    return dict(checked_settings(settings, vision.side, f"{IMAGE_PROCESSOR_FILE} of {nemo.path}"))


def _check_base(nemo: NemoFile, origins: Mapping[str, Origin], weights: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError when the language model is not the one beside which the adapters were trained."""
    if LANGUAGE_MODEL in (nemo.manifest.get("base") or {}):
        found = {LANGUAGE_MODEL: fingerprint_of(Filtered(weights, LANGUAGE))}
        check_base(nemo.manifest, found, origins, nemo.path)
