"""A language model that transformers runs, while it generates: with the cache that it brings, a row at a time.

What a cache holds is the architecture's own matter (keys and values, a window of them, states), so rows share none.

Dimensions: S prompt, V vocabulary, F features at image positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from neva.inference.decoder import Decoder, embedded_prompts
from neva.model.hugging_face import HuggingFaceLanguageModel
from neva.model.llava import NevaModel


@dataclass
class RowCaches:
    """The cache of each row."""

    of_row: dict[int, Any] = field(default_factory=dict)

    def move(self, source: int, target: int) -> None:
        """Gives a row's cache to another."""
        self.of_row[target] = self.of_row.pop(source)


class HuggingFaceDecoder:
    """What `Decoder` is to the rest of inference.

    Args:
        model: in eval mode, with a language model of transformers.
    """

    def __init__(self, model: NevaModel) -> None:
        assert isinstance(model.language_model, HuggingFaceLanguageModel)
        self.language = model.language_model
        self.turning_length: int | None = None

    def cache(self, rows: int) -> RowCaches:
        """Returns empty caches; rows get theirs when they begin."""
        return RowCaches()

    def prefill(
        self,
        cache: RowCaches,
        rows: Sequence[int],
        prompts: Sequence[Tensor],
        features: Sequence[Tensor],
        room: int,
        prefixes: Sequence[int] | None = None,
    ) -> Tensor:
        """See `Decoder.prefill`."""
        logits = []
        for row, prompt, images in zip(rows, prompts, features, strict=True):
            cache.of_row[row] = DynamicCache(config=self.language.model.config)
            logits.append(self._step(cache, row, embedded_prompts(self.language, prompt[None], [images])))
        return torch.stack(logits)

    def decode(self, cache: RowCaches, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """See `Decoder.decode`."""
        device = self.language.shared_embedding_or_output_weight().device
        embedded_R1D = self.language.embed(torch.tensor(tokens, device=device)[:, None])
        return torch.stack(
            [self._step(cache, row, embedded_R1D[row : row + 1]) for row in range(len(tokens))]
        )

    def _step(self, cache: RowCaches, row: int, embedded_1SD: Tensor) -> Tensor:
        """Returns the logits [V] behind the last of the tokens that a row is given."""
        kept = {"logits_to_keep": 1} if self.language.keeps_logits else {}
        found = self.language.model(
            inputs_embeds=embedded_1SD, past_key_values=cache.of_row[row], use_cache=True, **kept
        )
        logits_V: Tensor = found.logits[0, -1]
        return logits_V


class AnyDecoder(Protocol):
    """What both are to the rest of inference; `Decoder` says more."""

    turning_length: int | None
    """Length at which prompt and answer are read anew, since all positions have other angles; None: there is none."""

    def cache(self, rows: int) -> Any:
        """Returns an empty cache for that many answers at a time."""

    def prefill(
        self,
        cache: Any,
        rows: Sequence[int],
        prompts: Sequence[Tensor],
        features: Sequence[Tensor],
        room: int,
        prefixes: Sequence[int] | None = None,
    ) -> Tensor:
        """Reads prompts; returns logits [prompts, V] of their first new tokens."""

    def decode(self, cache: Any, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Adds one token to each of the first rows; returns logits [R, V] of the next ones."""


def decoder_of(model: NevaModel) -> AnyDecoder:
    """Returns what generates with a model: this rank's pipeline stage in eval mode, whose weights stay as they are."""
    return (
        HuggingFaceDecoder(model)
        if isinstance(model.language_model, HuggingFaceLanguageModel)
        else Decoder(model)
    )
