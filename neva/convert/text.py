"""Language models alone: Hugging Face folder -> `.nemo` -> Hugging Face folder."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer
from torch import Tensor

from neva.convert.parity.figures import write_unverified
from neva.convert.parity.proof import prove_text
from neva.convert.writers.hf_config import language_section, stored_config, text_config
from neva.families.language import language_config_from_hf, language_table
from neva.families.naming import LANGUAGE
from neva.formats.atomic_write import finished_target
from neva.formats.hf_folder import FolderWeights, read_config, write_json, write_weights
from neva.formats.hf_tokenizer import (
    add_tokens_to_folder,
    check_vocabulary,
    copy_portable,
    read_roles,
    token_ids,
    tokenizer_files,
)
from neva.formats.nemo import VOCABULARY, open_nemo, write_nemo
from neva.weights.lazy import Cast, Filtered, log_progress
from neva.weights.load import language_layout, language_part

PRECISIONS = {"16": torch.float16, "16-mixed": torch.float16, "32": torch.float32, "32-true": torch.float32}
PRECISIONS |= {"bf16": torch.bfloat16, "bf16-mixed": torch.bfloat16}


def text_to_nemo(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    add_tokens: Sequence[str] = (),
) -> None:
    """Converts the language model of a Hugging Face folder (text, or inside a LLaVA) into a `.nemo` file.

    `dtype` None keeps each tensor's own. The tokenizer's files are stored as they are, with `add_tokens` as
    special tokens after them, whose rows are the mean of the others. ValueError names what does not fit:
    another architecture, a tensor without a place, a tokenizer with more ids than rows.
    """
    shape = language_config_from_hf(read_config(source))
    check_vocabulary(source, shape.vocab_size)
    weights = FolderWeights(source)
    layout = language_layout(weights)
    with TemporaryDirectory() as folder:
        for file in tokenizer_files(source):
            (Path(folder) / file.name).write_bytes(file.read_bytes())
        rows = (
            max(shape.vocab_size, *add_tokens_to_folder(Path(folder), add_tokens))
            if add_tokens
            else shape.vocab_size
        )
        table = language_table(replace(shape, padded_vocab_size=rows), layout)
        stored = language_part(weights, layout, shape)
        pairs = _with_mean_rows(
            table.to_native(stored if dtype is None else Cast(stored, dtype)), shape.vocab_size
        )
        section = language_section(replace(shape, vocab_size=rows))
        section["tokenizer"] = {"library": "huggingface", "type": None}
        progress = log_progress(pairs, len(table.native_names), str(target))
        write_nemo(
            target, section, progress, folder, None, str(source), {"language_model": "converted"}, overwrite
        )


def _with_mean_rows(pairs: Iterable[tuple[str, Tensor]], vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in pairs:
        if name in VOCABULARY and len(tensor) > vocab_size:
            tensor[vocab_size:] = tensor[:vocab_size].float().mean(0)
        yield name, tensor


def text_to_hf(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    verify: bool = True,
) -> None:
    """Converts the language model of a `.nemo` file into a Hugging Face folder that transformers 4.45 to 5.x
    load.

    The folder is proven before it gets its name, and holds the figures in `parity.json`; `verify` false
    records there that it was not.
    """
    nemo = open_nemo(source)
    shape = stored_config(nemo.config)
    table = language_table(shape)
    weights: Mapping[str, Tensor] = Filtered(nemo.weights, LANGUAGE)
    if dtype is not None:
        weights = Cast(weights, dtype)
    pairs = log_progress(table.to_hf(weights), len(table.hf_names), str(target))
    with finished_target(target, overwrite, folder=True) as folder, TemporaryDirectory() as stored:
        if nemo.tokenizer_files:
            nemo.extract_tokenizer(stored)
            check_vocabulary(stored, shape.vocab_size)
            copy_portable(stored, folder)
        written_dtype = weights[f"{LANGUAGE}embedding.word_embeddings.weight"].dtype
        write_json(folder / "config.json", text_config(shape, written_dtype, _token_ids(folder)))
        write_weights(folder, pairs)
        if verify:
            prove_text(weights, shape, folder, Path(stored))
        else:
            write_unverified(folder)


def _token_ids(folder: Path) -> dict[str, object]:
    """Token ids for `config.json`: those of generation_config.json where it is there, else the tokenizer's
    own.
    """
    file = folder / "tokenizer.json"
    ids: dict[str, object] = dict(
        token_ids(Tokenizer.from_file(str(file)) if file.is_file() else None, read_roles(folder))
    )
    generation = folder / "generation_config.json"
    if generation.is_file():
        stored = json.loads(generation.read_text(encoding="utf-8"))
        ids |= {name: stored[name] for name in ids if stored.get(name) is not None}
    return ids
