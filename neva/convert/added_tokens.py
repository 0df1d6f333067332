"""Special tokens for a language model: ids after the others, and rows of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from neva.convert.lazy_model import LazyLanguageModel
from neva.errors import DataError
from neva.formats.hf_tokenizer import add_special_tokens
from neva.formats.json import json_text
from neva.formats.nemo import VOCABULARY
from neva.formats.vocabulary import parse_tokenizer


class ExtendedVocabulary(Mapping[str, Tensor]):
    """The tensors of a mapping, with vocabularies of `rows` rows; each row that is added is the mean of the others."""

    def __init__(self, source: Mapping[str, Tensor], rows: int) -> None:
        self._source, self._rows = source, rows

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._source[name]
        if name not in VOCABULARY or len(tensor) >= self._rows:
            return tensor
        mean = tensor.float().mean(0).to(tensor.dtype)
        return torch.cat([tensor, mean.expand(self._rows - len(tensor), -1)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


def with_tokens(model: LazyLanguageModel, tokens: Sequence[str]) -> LazyLanguageModel:
    """Returns the model with `tokens` as special tokens of its tokenizer; one that is there keeps its id and row.

    Raises:
        DataError: the tokenizer has no tokenizer.json.
    """
    if "tokenizer.json" not in model.tokenizer:
        raise DataError(f"{model.name} has no tokenizer.json; tokens can be added only to one")
    tokenizer = parse_tokenizer(model.tokenizer["tokenizer.json"], f"tokenizer.json of {model.name}")
    ids = add_special_tokens(tokenizer, tokens)
    rows = max(model.language.vocab_size, *(number + 1 for number in ids))
    config = OmegaConf.merge(model.config, {"vocab_size": rows})
    assert isinstance(config, DictConfig)
    return replace(
        model,
        config=config,
        language=replace(model.language, vocab_size=rows),
        weights=ExtendedVocabulary(model.weights, rows),
        tokenizer={**model.tokenizer, "tokenizer.json": json_text(tokenizer).encode()},
    )
