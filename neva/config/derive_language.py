"""The language model of a recipe: its sizes, its form, and what they do not tell, as its checkpoint gives them."""

from __future__ import annotations

from functools import partial
from typing import Any

from omegaconf import DictConfig

from neva.config.experts import COEFFICIENT, EXPERT_KEYS, NUMBER, expert_keys, fill_experts
from neva.config.fill import fill_or_compare, read_shape, require
from neva.config.language import (
    FORM_KEYS,
    LANGUAGE_KEYS,
    SAME_ACTIVATION,
    decoder_form_of,
    differing_form_keys,
    form_keys,
    language_backend_of,
    language_config_of,
    recorded_family,
    recorded_llm,
)
from neva.config.plain import plain
from neva.config.schema import NULLABLE
from neva.errors import ConfigError
from neva.families.configs import LanguageConfig
from neva.families.language import HUGGING_FACE, language_config_from_hf
from neva.formats.nemo_header import nemo_config
from neva.formats.vocabulary import tokenizer_size


def language_sizes(source: str | None, backend: str | None = None) -> dict[str, Any]:
    """Returns our `model` keys as the language model's folder or .nemo gives them; empty while neither exists.

    `backend` runs it; None: the one that a .nemo records, or that can.

    Raises:
        ConfigError: it is a .nemo whose language model another backend runs.
    """
    return _described(source, backend)[0]


def _described(source: str | None, backend: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the keys of `model`, and those of `mm_cfg.llm` for what they do not tell."""
    recorded = nemo_config(source)
    if recorded is None:
        shape = read_shape(source, partial(language_config_from_hf, backend=backend))
        return ({}, {}) if shape is None else (_keys_of(shape), language_keys(shape))
    found = language_backend_of(recorded)
    if backend is not None and found != backend:
        raise ConfigError(
            f"model.language_backend={backend}, but {source} records {found}, whose tensors have other names: set "
            f"model.language_backend={found}"
        )
    sizes = {key: recorded[key] for key in (*LANGUAGE_KEYS, *EXPERT_KEYS) if recorded.get(key) is not None}
    record = {"family": recorded_family(recorded), "config": plain(recorded_llm(recorded).get("config"))}
    return sizes | differing_form_keys(decoder_form_of(recorded)), _given(record)


def _keys_of(language: LanguageConfig) -> dict[str, Any]:
    sizes = {key: getattr(language, field) for key, field in LANGUAGE_KEYS.items()}
    return sizes | differing_form_keys(language.form) | expert_keys(language.experts)


def language_keys(language: LanguageConfig) -> dict[str, Any]:
    """Returns the keys of `mm_cfg.llm` that record what the sizes of a language model do not tell."""
    return _given({"family": language.family, "config": language.hf_config})


def _given(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}


def fill_language(model_cfg: DictConfig) -> None:
    """Fills the keys of the language model, or compares them, and sizes the vocabulary by the tokenizer.

    Raises:
        ConfigError: a given value contradicts the checkpoint, or nobody says it.
    """
    folder, backend = model_cfg.mm_cfg.llm.from_pretrained, language_backend_of(model_cfg)
    llm = model_cfg.mm_cfg.llm
    sizes, record = _described(folder, backend)
    if sizes:
        sizes |= form_keys(decoder_form_of(sizes))
    for key in FORM_KEYS:
        model_cfg[key] = model_cfg.get(key)  # trees of one's own may be without
    model_cfg.activation = SAME_ACTIVATION.get(model_cfg.activation, model_cfg.activation)
    source = folder if nemo_config(folder) else f"{folder}/config.json"
    coefficient = sizes.pop(COEFFICIENT, None)  # of training, which may choose another
    if model_cfg[COEFFICIENT] is None:
        model_cfg[COEFFICIENT] = coefficient
    if sizes and NUMBER not in sizes:
        sizes[NUMBER] = None
    fill_or_compare(model_cfg, sizes, "model", source, "model/llm")
    fill_experts(model_cfg)
    for key, value in record.items():
        llm[key] = llm.get(key)  # absent where sizes tell it
        fill_or_compare(llm, {key: value}, "model.mm_cfg.llm", source)
    if backend == HUGGING_FACE and llm.get("config") is None:
        raise ConfigError(
            f"model.language_backend=huggingface, and {folder}/config.json does not exist: give the language model's "
            "folder as model.mm_cfg.llm.from_pretrained, or what is in that file as model.mm_cfg.llm.config"
        )
    if backend == HUGGING_FACE and not sizes:
        sizes = _keys_of(language_config_of(model_cfg))
        fill_or_compare(model_cfg, sizes, "model", "model.mm_cfg.llm.config")
    ids = tokenizer_size(model_cfg.tokenizer.type)
    if model_cfg.vocab_size is None:
        model_cfg.vocab_size = ids
    elif ids is not None and ids > model_cfg.vocab_size:
        raise ConfigError(
            f"model.vocab_size={model_cfg.vocab_size} but the tokenizer {model_cfg.tokenizer.type} has {ids} "
            "ids: give the tokenizer that belongs to the language model, or a larger vocabulary"
        )
    if model_cfg.num_query_groups is None:
        model_cfg.num_query_groups = model_cfg.num_attention_heads
    if model_cfg.kv_channels is None and None not in (model_cfg.hidden_size, model_cfg.num_attention_heads):
        model_cfg.kv_channels = model_cfg.hidden_size // model_cfg.num_attention_heads
    require(model_cfg, tuple(LANGUAGE_KEYS.keys() - NULLABLE), "model", folder)
