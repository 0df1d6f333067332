"""A language model as a Hugging Face folder that transformers 4.45 to 5.x load."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from neva.convert.lazy_model import LazyLanguageModel
from neva.convert.options import Options
from neva.convert.writers.hf_config import text_config
from neva.convert.writers.proven_folder import proven_folder
from neva.families.language import language_table
from neva.formats.hf_files import GENERATION_CONFIG, MODEL_CONFIG
from neva.formats.hf_folder import write_weights
from neva.formats.hf_tokenizer import copy_portable, read_roles, token_ids
from neva.formats.json import read_object, write_json
from neva.formats.vocabulary import check_vocabulary
from neva.weights.lazy import checked


def write(model: LazyLanguageModel, target: Path, options: Options) -> None:
    """Writes the folder and proves it."""
    model = model.rounded(options.dtype)

    def prove(folder: Path) -> None:
        from neva.convert.parity.text import prove_text

        prove_text(model, folder)

    with proven_folder(target, options, prove) as folder:
        if model.tokenizer:
            with model.tokenizer_dir() as stored:
                check_vocabulary(stored, model.language.vocab_size)
                copy_portable(stored, folder)
        write_json(folder / MODEL_CONFIG, text_config(model.language, model.dtype, _token_ids(folder)))
        table = language_table(model.language)
        write_weights(folder, checked(table.to_hf(model.weights), len(table.hf_names), str(target)))


def _token_ids(folder: Path) -> dict[str, object]:
    """Returns token ids for `config.json`: those of generation_config.json if it is there, else the tokenizer's own."""
    file = folder / "tokenizer.json"
    ids: dict[str, object] = dict(
        token_ids(Tokenizer.from_file(str(file)) if file.is_file() else None, read_roles(folder))
    )
    generation = folder / GENERATION_CONFIG
    if generation.is_file():
        stored = read_object(generation)
        ids |= {name: stored[name] for name in ids if stored.get(name) is not None}
    return ids
