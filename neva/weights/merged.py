"""A language model's matrices with their adapters merged into them, and the factors piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from neva.constants import ADAPTER
from neva.families.adapters import GATE_UP, INPUT, OUTPUT, PIECES, QKV, WHOLE, adapter_shapes, piece_shape
from neva.families.configs import LanguageConfig
from neva.families.mapping import FusedQKV, expect_shape

WEIGHT = ".weight"


def factors_of(language: LanguageConfig, adapters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns native name of each adapted matrix -> its factors, `<piece>.linear_in` and `<piece>.linear_out`.

    Raises:
        ConversionError: a factor does not have the shape that the configuration says.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, shape in adapter_shapes(language):
        matrix, _, factor = name.partition(ADAPTER)
        found.setdefault(matrix, {})[factor] = expect_shape(name, adapters[name], shape)
    return found


def by_piece(
    language: LanguageConfig, site: str, factors: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns A and B of each piece that a Hugging Face folder tells apart; those of joined pieces share their A."""
    inputs = {name.removesuffix(f".{INPUT}"): t for name, t in factors.items() if name.endswith(INPUT)}
    outputs = {name.removesuffix(f".{OUTPUT}"): t for name, t in factors.items() if name.endswith(OUTPUT)}
    if WHOLE not in outputs or PIECES[site] == (WHOLE,):
        return {piece: (inputs[piece], outputs[piece]) for piece in outputs}
    whole = outputs[WHOLE]
    parts = (
        whole.chunk(2)
        if site == GATE_UP
        else [part for _, part in _fused(language, whole).to_hf({WHOLE: whole})]
    )
    return {piece: (inputs[WHOLE], part) for piece, part in zip(PIECES[site], parts, strict=True)}


def _fused(language: LanguageConfig, like: Tensor) -> FusedQKV:
    sizes = (language.num_heads, language.num_query_groups, language.head_dim)
    return FusedQKV(("q", "k", "v"), WHOLE, *sizes, (like.shape[1],))


def delta(language: LanguageConfig, site: str, factors: Mapping[str, Tensor]) -> Tensor:
    """Returns what the factors add to a whole matrix, in float32 at least."""
    assert language.lora is not None
    products = {}
    for piece, pair in by_piece(language, site, factors).items():
        first, second = (factor.to(torch.promote_types(factor.dtype, torch.float32)) for factor in pair)
        products[piece] = second @ first * language.lora.scale
    like = next(iter(products.values()))
    for piece in PIECES[site]:
        products.setdefault(piece, like.new_zeros(piece_shape(language, site, piece)))
    if site == QKV:
        (_, joined), *_ = _fused(language, like).to_native(products)
        return joined
    return torch.cat([products[piece] for piece in PIECES[site]])


class Merged(Mapping[str, Tensor]):
    """The tensors of a model with adapters merged into their matrices, each in its own precision.

    Args:
        source: the model without them, under native names.
        language: its sizes, with the adapters.
        adapters: the factors under native names.
    """

    def __init__(
        self, source: Mapping[str, Tensor], language: LanguageConfig, adapters: Mapping[str, Tensor]
    ) -> None:
        self._source, self._language = source, language
        self._factors = factors_of(language, adapters)

    def __getitem__(self, name: str) -> Tensor:
        tensor, matrix = self._source[name], name.removesuffix(WEIGHT)
        if matrix not in self._factors or matrix == name:
            return tensor
        site = ".".join(matrix.split(".")[-2:])
        added = delta(self._language, site, self._factors[matrix])
        return (tensor.to(added.dtype) + added).to(tensor.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)
