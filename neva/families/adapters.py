"""Where a decoder layer has low-rank adapters, and of which shapes: names alone, for training, planning and files."""

from __future__ import annotations

from collections.abc import Iterator

from neva.constants import ADAPTER
from neva.families import hugging_face
from neva.families.configs import LanguageConfig, LoraConfig
from neva.families.mapping import Shape
from neva.families.naming import LANGUAGE

QKV, PROJECTION = "self_attention.linear_qkv", "self_attention.linear_proj"
GATE_UP, DOWN = "mlp.linear_fc1", "mlp.linear_fc2"
BLOCK = 64
"""Elements of a packed matrix with a common scale in nf4."""

WHOLE = "whole"
"""The one piece of a matrix whose rows are not told apart."""

PIECES = {QKV: ("q", "k", "v"), GATE_UP: ("gate", "up"), PROJECTION: (WHOLE,), DOWN: (WHOLE,)}
"""Matrix -> the pieces that have a matrix of their own in a Hugging Face folder."""

INPUT, OUTPUT = "linear_in", "linear_out"
"""What the factors are called: A [rank, columns of the matrix] and B [rows of the piece, rank]."""

MAGNITUDE = "magnitude"
"""The lengths of a piece's rows, where they are learnt apart: [rows of the piece]."""

SPLIT_BY_COLUMNS = (PROJECTION, DOWN)
"""Matrices that tensor parallel splits along their inputs; the others are split by rows."""


def piece_shape(language: LanguageConfig, site: str, piece: str) -> Shape:
    """Returns rows and columns of a piece of a matrix, as a whole model has it."""
    hidden, queries = language.hidden_size, language.num_heads * language.head_dim
    keys, inner = language.num_query_groups * language.head_dim, language.ffn_hidden_size
    rows = {
        (QKV, WHOLE): queries + 2 * keys,
        (QKV, "q"): queries,
        (QKV, "k"): keys,
        (QKV, "v"): keys,
        (GATE_UP, WHOLE): 2 * inner,
        (GATE_UP, "gate"): inner,
        (GATE_UP, "up"): inner,
        (PROJECTION, WHOLE): hidden,
        (DOWN, WHOLE): hidden,
    }
    columns = {QKV: hidden, GATE_UP: hidden, PROJECTION: queries, DOWN: inner}
    return rows[site, piece], columns[site]


def factor_shapes(lora: LoraConfig, matrix: Shape) -> dict[str, Shape]:
    """Returns names behind that of a matrix without pieces, and shapes of what stands beside it."""
    rows, columns = matrix
    found: dict[str, Shape] = {
        f"{WHOLE}.{INPUT}": (lora.rank, columns),
        f"{WHOLE}.{OUTPUT}": (rows, lora.rank),
    }
    if lora.has_magnitudes:
        found[f"{WHOLE}.{MAGNITUDE}"] = (rows,)
    return found


def is_halved(site: str, piece: str) -> bool:
    """Whether the rows of a piece are two stacked matrices, of each of which a tensor-parallel rank has its share."""
    return (site, piece) == (GATE_UP, WHOLE)


def site_shapes(language: LanguageConfig, site: str, layer: int, tensor: int = 1) -> dict[str, Shape]:
    """Returns names behind that of the matrix, and shapes on a tensor-parallel rank; none where it has no adapter."""
    lora = language.lora
    found: dict[str, Shape] = {}
    for piece in () if lora is None else lora.pieces(site, layer):
        assert lora is not None
        rows, columns = piece_shape(language, site, piece)
        by_columns = site in SPLIT_BY_COLUMNS
        found[f"{piece}.{INPUT}"] = (lora.rank, columns // tensor if by_columns else columns)
        kept = rows if by_columns else rows // tensor
        found[f"{piece}.{OUTPUT}"] = (kept, lora.rank)
        if lora.has_magnitudes:
            found[f"{piece}.{MAGNITUDE}"] = (kept,)
    return found


def adapter_shapes(language: LanguageConfig) -> Iterator[tuple[str, Shape]]:
    """Yields native names and shapes of all factors of a whole model."""
    if language.hf_config is not None:
        for matrix, of_matrix in hugging_face.adapted(language).items():
            assert language.lora is not None
            for name, shape in factor_shapes(language.lora, of_matrix).items():
                yield f"{hugging_face.MODULE}{matrix}{ADAPTER}{name}", shape
        return
    for layer in range(language.num_layers):
        for site in (PROJECTION, QKV, GATE_UP, DOWN):
            for name, shape in site_shapes(language, site, layer).items():
                yield f"{LANGUAGE}decoder.layers.{layer}.{site}{ADAPTER}{name}", shape
