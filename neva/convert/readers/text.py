"""Language models alone, in Hugging Face folders (text, or inside a LLaVA) and `.nemo` files."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from neva.convert.lazy_model import LazyLanguageModel
from neva.convert.options import Options
from neva.convert.readers.verified import verify
from neva.convert.stored_tokenizer import stored_tokenizer
from neva.convert.writers.hf_config import language_section, stored_config
from neva.errors import naming
from neva.families.language import language_table, read_language_config
from neva.formats.nemo import open_nemo
from neva.formats.nemo_header import is_nemo
from neva.formats.vocabulary import check_vocabulary
from neva.weights.parts import language_weights


def read(source: Path, options: Options) -> LazyLanguageModel:
    """Opens a language model; the tokenizer's files are taken as they are.

    Raises:
        UserError: another architecture, a tensor without a place, a tokenizer with more ids than rows.
    """
    return _from_nemo(source) if is_nemo(source) else _from_folder(source)


def _from_nemo(source: Path) -> LazyLanguageModel:
    nemo = open_nemo(source)
    verify(nemo)
    language = stored_config(nemo.config)
    with naming(source):
        language_table(language).check(nemo.weights.without_values())
    return LazyLanguageModel(
        name=str(source),
        config=nemo.config,
        language=language,
        weights=language_weights(source, language),
        tokenizer=nemo.tokenizer(),
    )


def _from_folder(folder: Path) -> LazyLanguageModel:
    language = read_language_config(folder)
    tokenizer = stored_tokenizer(folder)
    check_vocabulary(folder, language.vocab_size)
    section = {**language_section(language), "tokenizer": {"library": "huggingface", "type": None}}
    return LazyLanguageModel(
        name=str(folder),
        config=OmegaConf.create(section),
        language=language,
        weights=language_weights(folder, language),
        tokenizer=tokenizer,
    )
