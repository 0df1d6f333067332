"""Experts of a Hugging Face folder one by one, where it stores those of a layer joined, as transformers 5 has them.

`mlp.experts.gate_up_proj` is [experts, 2 * inner, hidden], gates above ups, `mlp.experts.down_proj` [experts, hidden,
inner]. A folder is written so with `save_original_format=False`; else under the names that the hub has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from neva.families.configs import LanguageConfig
from neva.families.language import family_of
from neva.families.mapping import ConversionError

JOINED = re.compile(r"(.*\.)mlp\.experts\.(gate_up|down)_proj")
ROUTER = re.compile(r"(.*\.)mlp\.gate\.weight")


class ExpertsOneByOne(Mapping[str, Tensor]):
    """The tensors of a language model with experts under the hub's names, however a folder stores them.

    Args:
        source: those of the folder.
        language: of a family with `expert_names`.
    """

    def __init__(self, source: Mapping[str, Tensor], language: LanguageConfig) -> None:
        assert language.experts is not None
        self._source, self._number = source, language.experts.number
        names = family_of(language).expert_names  # type: ignore[attr-defined]
        is_joined = any(JOINED.fullmatch(name) for name in source)
        self._parts: dict[str, tuple[str, int | None, int]] = {}
        """Name -> that in the source, number of the expert there, and which half of its rows (-1: all)."""
        for name in source:
            if joined := JOINED.fullmatch(name):
                gate, up, down = names.matrices
                halves = ((gate, 0), (up, 1)) if joined[2] == "gate_up" else ((down, -1),)
                for expert in range(self._number):
                    for matrix, half in halves:
                        alone = f"{joined[1]}{names.experts}.{expert}.{matrix}.weight"
                        self._parts[alone] = (name, expert, half)
            elif is_joined and (router := ROUTER.fullmatch(name)):
                self._parts[f"{router[1]}{names.router}.weight"] = (name, None, -1)
            else:
                self._parts[name] = (name, None, -1)

    def __getitem__(self, name: str) -> Tensor:
        stored, expert, half = self._parts[name]
        tensor = self._source[stored]
        if expert is None:
            return tensor
        if tensor.dim() != 3 or len(tensor) != self._number:
            raise ConversionError(
                f"{stored} has shape {list(tensor.shape)}, the configuration expects {self._number} matrices"
            )
        return tensor[expert] if half < 0 else tensor[expert].chunk(2)[half]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
