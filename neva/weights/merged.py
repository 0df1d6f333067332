"""Matrices with their adapters merged into them, and the factors piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from neva.constants import ADAPTER
from neva.families.adapters import GATE_UP, INPUT, MAGNITUDE, OUTPUT, PIECES, QKV, WHOLE, adapter_shapes
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.decoder_rules import FusedQKV
from neva.families.mapping import ConversionError, expect_shape
from neva.families.tower_adapters import tower_adapter_shapes

WEIGHT = ".weight"
JOINED = (QKV, GATE_UP)
"""Matrices of several pieces."""


@dataclass(frozen=True)
class PieceFactors:
    """Of the rows that a Hugging Face folder has as a matrix: A, B, and their lengths where these are learnt."""

    linear_in: Tensor
    linear_out: Tensor
    magnitude: Tensor | None


def factors_of(
    language: LanguageConfig, vision: VisionConfig, adapters: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Returns native name of each adapted matrix -> its factors, `<piece>.linear_in` and `<piece>.linear_out`.

    Raises:
        ConversionError: a factor is missing, or does not have the shape that the configuration says.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, shape in (*tower_adapter_shapes(vision), *adapter_shapes(language)):
        if name not in adapters:
            raise ConversionError(f"there is no {name}, which adapters of this configuration have")
        matrix, _, factor = name.partition(ADAPTER)
        found.setdefault(matrix, {})[factor] = expect_shape(name, adapters[name], shape)
    return found


def by_piece(language: LanguageConfig, site: str, factors: Mapping[str, Tensor]) -> dict[str, PieceFactors]:
    """Returns those of each piece that a Hugging Face folder tells apart; those of joined pieces share their A."""
    outputs, magnitudes = (
        {
            piece: rows
            for name, tensor in factors.items()
            if name.endswith(f".{kind}")
            for piece, rows in _apart(language, site, name.removesuffix(f".{kind}"), tensor).items()
        }
        for kind in (OUTPUT, MAGNITUDE)
    )
    return {
        piece: PieceFactors(
            factors[f"{piece if f'{piece}.{INPUT}' in factors else WHOLE}.{INPUT}"],
            output,
            magnitudes.get(piece),
        )
        for piece, output in outputs.items()
    }


def _apart(language: LanguageConfig, site: str, piece: str, rows: Tensor) -> dict[str, Tensor]:
    """Returns the rows of joined pieces by the pieces; of another piece, itself."""
    if piece != WHOLE or site not in JOINED:
        return {piece: rows}
    if site == GATE_UP:
        return dict(zip(PIECES[site], rows.chunk(2), strict=True))
    return dict(_fused(language, rows).to_hf({WHOLE: rows}))


def _fused(language: LanguageConfig, like: Tensor) -> FusedQKV:
    sizes = (language.num_heads, language.num_query_groups, language.head_dim)
    return FusedQKV(("q", "k", "v"), WHOLE, *sizes, tuple(like.shape[1:]))


def with_factors(
    language: LanguageConfig, site: str, matrix: Tensor, factors: Mapping[str, Tensor]
) -> Tensor:
    """Returns a whole matrix with what its factors make of it, computed in float32 at least."""
    assert language.lora is not None  # a tower's have the same scale
    pieces = _apart(language, site, WHOLE, matrix)
    for piece, of_piece in by_piece(language, site, factors).items():
        exact = torch.promote_types(of_piece.linear_in.dtype, torch.float32)
        added = of_piece.linear_out.to(exact) @ of_piece.linear_in.to(exact) * language.lora.scale
        rows = pieces[piece].to(exact) + added
        if of_piece.magnitude is not None:
            rows *= (of_piece.magnitude.to(exact) / torch.linalg.vector_norm(rows, dim=1))[:, None]
        pieces[piece] = rows.to(matrix.dtype)
    if site == QKV:
        (_, joined), *_ = _fused(language, matrix).to_native(pieces)
        return joined
    return torch.cat([pieces[piece] for piece in pieces])


class Merged(Mapping[str, Tensor]):
    """The tensors of a model with adapters merged into their matrices, each in its own precision.

    Args:
        source: the model without them, under native names.
        language, vision: its sizes, with the adapters.
        adapters: the factors under native names.
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        language: LanguageConfig,
        vision: VisionConfig,
        adapters: Mapping[str, Tensor],
    ) -> None:
        self._source, self._language = source, language
        self._factors = factors_of(language, vision, adapters)

    def __getitem__(self, name: str) -> Tensor:
        tensor, matrix = self._source[name], name.removesuffix(WEIGHT)
        if matrix not in self._factors or matrix == name:
            return tensor
        site = ".".join(matrix.split(".")[-2:])
        return with_factors(self._language, site, tensor, self._factors[matrix])

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)
