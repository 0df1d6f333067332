"""Language models alone: Hugging Face folder -> `.nemo` -> Hugging Face folder."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer
from torch import Tensor

from neva.config.hf import language_shape_from_hf
from neva.config.shapes import LanguageShape, language_shape
from neva.convert.configs import language_section, text_config
from neva.convert.families import LANGUAGE, language_table
from neva.convert.hf import FolderWeights, Part, read_config, write_json, write_weights
from neva.convert.loading import language_layout, language_part
from neva.convert.nemo import open_nemo, write_nemo
from neva.convert.target import finished_target
from neva.convert.tokenizer import check_vocabulary, copy_portable, read_roles, token_ids, tokenizer_files

logger = logging.getLogger(__name__)

PRECISIONS = {"16": torch.float16, "16-mixed": torch.float16, "32": torch.float32, "32-true": torch.float32}
PRECISIONS |= {"bf16": torch.bfloat16, "bf16-mixed": torch.bfloat16}


def text_to_nemo(
    source: str | Path, target: str | Path, dtype: torch.dtype | None = None, overwrite: bool = False
) -> None:
    """Converts the language model of a Hugging Face folder (text, or inside a LLaVA) into a `.nemo` file.

    `dtype` None keeps each tensor's own. The tokenizer's files are stored as they are. ValueError names what
    does not fit: another architecture, a tensor without a place, a tokenizer with more ids than rows.
    """
    shape = language_shape_from_hf(read_config(source))
    check_vocabulary(source, shape.vocab_size)
    weights = FolderWeights(source)
    layout = language_layout(weights)
    table = language_table(shape, layout)
    pairs = cast(table.to_native(language_part(weights, layout)), dtype)
    section = {**language_section(shape), "tokenizer": {"library": "huggingface", "type": None}}
    with TemporaryDirectory() as folder:
        for file in tokenizer_files(source):
            (Path(folder) / file.name).write_bytes(file.read_bytes())
        names = table.native_names
        progress = report(pairs, len(names), str(target))
        parts = {"language_model": "converted"}
        write_nemo(target, section, progress, folder, None, str(source), parts, overwrite)


def text_to_hf(
    source: str | Path, target: str | Path, dtype: torch.dtype | None = None, overwrite: bool = False
) -> None:
    """Converts the language model of a `.nemo` file into a Hugging Face folder that transformers 4.45 to 5.x
    load.
    """
    nemo = open_nemo(source)
    shape = stored_shape(nemo.config)
    table = language_table(shape)
    weights = Part(nemo.weights, LANGUAGE)
    pairs = report(cast(table.to_hf(weights), dtype), len(table.hf_names), str(target))
    with finished_target(target, overwrite, folder=True) as folder:
        if nemo.tokenizer_files:
            with TemporaryDirectory() as stored:
                nemo.extract_tokenizer(stored)
                check_vocabulary(stored, shape.vocab_size)
                copy_portable(stored, folder)
        written_dtype = dtype or weights[f"{LANGUAGE}embedding.word_embeddings.weight"].dtype
        write_json(folder / "config.json", text_config(shape, written_dtype, _token_ids(folder)))
        write_weights(folder, pairs)


def stored_shape(config: DictConfig) -> LanguageShape:
    """The language model of a `.nemo`'s configuration, without vocabulary padding: files hold none."""
    defaults = {"make_vocab_size_divisible_by": 1, "tensor_model_parallel_size": 1}
    shape = language_shape(OmegaConf.merge(config, defaults))  # type: ignore[arg-type]
    return replace(shape, padded_vocab_size=shape.vocab_size)


def cast(pairs: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """The same tensors in `dtype`; unchanged when it is None."""
    for name, tensor in pairs:
        yield name, tensor if dtype is None else tensor.to(dtype)


def report(pairs: Iterable[tuple[str, Tensor]], total: int, target: str) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, with a line in the log at every tenth of the way."""
    done = 0
    for done, pair in enumerate(pairs, start=1):
        yield pair
        if total and done * 10 // total > (done - 1) * 10 // total:
            logger.info("%s: %d of %d tensors", target, done, total)


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
