"""Special tokens for a language model: ids after the others, and rows of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from neva.config.language import recorded_llm
from neva.convert.lazy_model import LazyLanguageModel
from neva.errors import DataError
from neva.families.language import vocabulary_names
from neva.formats.hf_tokenizer import add_special_tokens
from neva.formats.json import json_text
from neva.formats.vocabulary import parse_tokenizer


class ExtendedVocabulary(Mapping[str, Tensor]):
    """The tensors of a mapping, those of `names` with `rows` rows; each that is added is the mean of the others."""

    def __init__(self, source: Mapping[str, Tensor], names: Collection[str], rows: int) -> None:
        self._source, self._names, self._rows = source, names, rows

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._source[name]
        if name not in self._names or len(tensor) >= self._rows:
            return tensor
        mean = tensor.float().mean(0).to(tensor.dtype)
        return torch.cat([tensor, mean.expand(self._rows - len(tensor), *tensor.shape[1:])])

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
    language = model.language.with_vocabulary(rows)
    config = OmegaConf.merge(model.config, {"vocab_size": rows})
    assert isinstance(config, DictConfig)
    if language.hf_config is not None:
        recorded_llm(config).config.vocab_size = rows
    return replace(
        model,
        config=config,
        language=language,
        weights=ExtendedVocabulary(model.weights, vocabulary_names(language), rows),
        tokenizer={**model.tokenizer, "tokenizer.json": json_text(tokenizer).encode()},
    )
