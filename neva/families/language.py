"""What a family of language models is, and the family that a model belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from neva.errors import CheckpointError, ConfigError, naming
from neva.families.configs import LLAMA_FORM, LanguageConfig
from neva.families.hugging_face import HuggingFaceFamily
from neva.families.mapping import Shape, Table
from neva.families.naming import IDEFICS2, LLAVA_ONEVISION, TEXT, HFNaming
from neva.families.values import flag, section, text
from neva.formats.hf_files import MODEL_CONFIG, read_config
from neva.formats.json import shown
from neva.registry import LANGUAGE_FAMILIES


class LanguageFamily(Protocol):
    """A Hugging Face `model_type`: its `config.json`, its tensors, its sizes. Subclass `LlamaFamily` for a relative."""

    model_type: str
    body: str
    """Prefix of the tensors, but the head's, of a folder with the language model alone."""
    head: str
    """Name of the head in such a folder."""
    follows_from_sizes: bool
    """Whether the sizes of a model tell its family again, so that nobody need record it."""
    has_experts: bool
    """Whether its feed-forward layers are mixtures of experts."""

    def read(self, config: Mapping[str, Any]) -> LanguageConfig:
        """Returns the sizes that a `config.json` gives; what it omits is transformers' default.

        Raises:
            ConfigError: the configuration asks for arithmetic that neva has not.
        """

    def write(self, language: LanguageConfig) -> dict[str, Any]:
        """Returns the keys of `config.json` that say what `language` is."""

    def computes(self, language: LanguageConfig) -> bool:
        """Whether a model of these sizes, and no recorded family, is exported as this one."""

    def table(self, language: LanguageConfig, naming: HFNaming, hf_rows: int, fill_row: int) -> Table:
        """Returns the table of all tensors; see `language_table`."""

    def vocabulary_names(self, language: LanguageConfig) -> frozenset[str]:
        """Returns the native names of what has a row for each token."""

    def layer_shapes(self, language: LanguageConfig, tensor_parallel_size: int = 1) -> dict[str, Shape]:
        """Returns native names and shapes of one layer on a tensor-parallel rank, in the module's order."""


MEGATRON, HUGGING_FACE = "megatron", "huggingface"
"""`model.language_backend`: who runs the language model."""


USUAL_TYPES: dict[object, str] = {IDEFICS2.model_type: "mistral", LLAVA_ONEVISION.model_type: "qwen2"}
"""`model_type` of a model with a tower -> that of its language model, where that does not say it; else LLaMA's."""


ORIGINAL_TYPES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_mixtral": "mixtral",
    "llava_qwen": "qwen2",
}
"""`model_type` of haotian-liu/LLaVA and its forks -> that of the language model, whose configuration theirs is."""


def language_config_from_hf(config: Mapping[str, Any], backend: str | None = None) -> LanguageConfig:
    """Reads the language model of a `config.json`; of a LLaVA one its `text_config`.

    `backend` None is Megatron where it has such layers, else transformers.

    `padded_vocab_size` is `vocab_size`: padding is the recipe's choice. `rope_scaling` holds transformers' keys
    (`rope_type`, `factor`, …) without `rope_theta`, or is None.

    Raises:
        ConfigError: another architecture, or settings that would change the arithmetic unnoticed.
    """
    above, config = config, section(config, "text_config") if "text_config" in config else config
    # of a LLaVA, said above its text_config; transformers ties for either
    if flag(above, "tie_word_embeddings"):
        config = {**config, "tie_word_embeddings": True}
    # what transformers takes such a model's without a type for
    if (usual := USUAL_TYPES.get(above.get("model_type"))) is not None:
        config = {"model_type": usual, **config}
    for part in (above, config):
        if part.get("quantization_config"):
            raise ConfigError(
                f"quantization_config is {shown(part['quantization_config'])}, expected none: neva reads no "
                "quantised model; save it in bf16, fp16 or fp32 first"
            )
    model_type = text({"model_type": "llama", **config}, "model_type")
    if "mm_vision_tower" in config:
        model_type = ORIGINAL_TYPES.get(model_type, model_type)
    is_known = model_type in LANGUAGE_FAMILIES
    if backend == HUGGING_FACE or (backend is None and not is_known):
        return HuggingFaceFamily(model_type).read(config)
    if not is_known:
        raise ConfigError(
            f"model_type {shown(model_type)} is not a language model that Megatron runs; expected one of "
            f"{sorted(LANGUAGE_FAMILIES.names())} (LLaMA-type weights of another name: set model_type to 'llama'), or "
            "model.language_backend=huggingface, which runs any that transformers has"
        )
    family: LanguageFamily = LANGUAGE_FAMILIES[model_type]
    return replace(family.read(config), family=None if family.follows_from_sizes else model_type)


def read_language_config(folder: str | Path, backend: str | None = None) -> LanguageConfig:
    """Returns the sizes of the language model in a Hugging Face folder; `backend` as in `language_config_from_hf`.

    Raises:
        UserError: there is no `config.json`, or none that `language_config_from_hf` reads; the message names it.
    """
    with naming(Path(folder) / MODEL_CONFIG):
        return language_config_from_hf(read_config(folder), backend)


def backend_of(language: LanguageConfig) -> str:
    """Returns who runs a language model."""
    return MEGATRON if language.hf_config is None else HUGGING_FACE


def family_of(language: LanguageConfig) -> LanguageFamily:
    """Returns the family whose tensors a model has.

    What sizes tell shares LLaMA's layers, or those of Mixtral where there are experts, whose names in a folder differ.

    Raises:
        ConfigError: a family that is not registered.
    """
    if language.hf_config is not None:
        return HuggingFaceFamily(language.hf_config["model_type"])
    if language.family is None and language.experts is not None:
        return _told_by_sizes(language) or LANGUAGE_FAMILIES["mixtral"]
    return LANGUAGE_FAMILIES[language.family or "llama"]


def exported_family(language: LanguageConfig) -> LanguageFamily:
    """Returns the family of transformers that computes what `language` says.

    Raises:
        CheckpointError: there is none.
    """
    if language.family is not None or language.hf_config is not None:
        return family_of(language)
    if language.form != LLAMA_FORM:
        raise CheckpointError(
            "the model is none of LLaMA's make and records no family; export needs mm_cfg.llm.family, the model_type "
            f"that has this arithmetic: one of {sorted(LANGUAGE_FAMILIES.names())}"
        )
    if (family := _told_by_sizes(language)) is not None:
        return family
    if language.experts is not None:
        raise CheckpointError(
            "no model_type of transformers has experts with these norms, biases and router; export is not possible"
        )
    raise CheckpointError(
        "no model_type of transformers has both q/k norms and QKV biases; export is not possible"
    )


def _told_by_sizes(language: LanguageConfig) -> LanguageFamily | None:
    """Returns the first family of those that sizes tell which computes a model; None: none does."""
    for family in LANGUAGE_FAMILIES:
        is_candidate = family.follows_from_sizes and family.has_experts is (language.experts is not None)
        if is_candidate and family.computes(language):
            return family
    return None


def layer_shapes(language: LanguageConfig, tensor_parallel_size: int = 1) -> dict[str, Shape]:
    """Returns native names and shapes of one layer on a tensor-parallel rank, in the module's order."""
    return family_of(language).layer_shapes(language, tensor_parallel_size)


def language_table(
    language: LanguageConfig, naming: HFNaming = TEXT, hf_vocab_size: int | None = None, fill_row: int = 0
) -> Table:
    """Returns the table of a language model that is stored under the names of `naming`.

    `hf_vocab_size` is the number of vocabulary rows of the Hugging Face folder where it exceeds
    `language.vocab_size`; `fill_row` is the row that the additional ones repeat (see `PaddedVocab`).
    """
    return family_of(language).table(language, naming, hf_vocab_size or language.vocab_size, fill_row)


def vocabulary_names(language: LanguageConfig) -> frozenset[str]:
    """Returns the native names of what has a row for each token."""
    return family_of(language).vocabulary_names(language)


def language_prefixes(language: LanguageConfig, naming: HFNaming) -> tuple[str, str]:
    """Returns what the names of a language model's tensors begin with in a folder: of the body, of the head."""
    family = family_of(language)
    return naming.language + family.body, naming.language + family.head
