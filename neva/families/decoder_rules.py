"""Rules for a decoder's tensors, which Megatron fuses and pads where Hugging Face has them apart and as they are.

`linear_qkv` holds, per query group, the rows [query heads of the group, key, value]; `linear_fc1` holds [gate, up];
embedding and head are padded to a multiple. Rotary position embedding needs no permutation: Megatron's
`rotary_interleaved=False` is transformers' `rotate_half`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neva.families.mapping import ConversionError, OneHF, OneNative, Shape, expect_shape

if TYPE_CHECKING:  # planning reads names and shapes from these rules, without torch
    from torch import Tensor


@dataclass(frozen=True)
class FusedQKV(OneNative):
    """Fuses query, key and value projections (weights, or biases with `columns` empty) by query group."""

    hf: tuple[str, str, str]
    native_name: str
    heads: int
    groups: int
    head_dim: int
    columns: Shape
    optional = ()

    @property
    def _rows_per_group(self) -> tuple[int, int, int]:
        return self.heads // self.groups * self.head_dim, self.head_dim, self.head_dim

    def to_native(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        parts = []
        for name, rows in zip(self.hf, self._rows_per_group, strict=True):
            part = expect_shape(name, tensors[name], (self.groups * rows, *self.columns))
            parts.append(part.reshape(self.groups, rows, *self.columns))
        yield self.native_name, _concatenate(parts, dim=1).flatten(0, 1)

    def to_hf(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        total = sum(self._rows_per_group)
        fused = expect_shape(
            self.native_name, tensors[self.native_name], (self.groups * total, *self.columns)
        )
        grouped = fused.reshape(self.groups, total, *self.columns)
        for name, part in zip(self.hf, grouped.split(self._rows_per_group, dim=1), strict=True):
            yield name, part.flatten(0, 1)


@dataclass(frozen=True)
class JoinedQKV(OneHF):
    """Reorders one matrix of [all queries, all keys, all values] (Phi-3's `qkv_proj`) by query group."""

    hf_name: str
    apart: FusedQKV
    """The rule of the three apart, under any names."""
    optional = ()

    @property
    def native(self) -> tuple[str, ...]:
        return self.apart.native

    def to_native(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        split = self.apart
        rows = [heads * split.head_dim for heads in (split.heads, split.groups, split.groups)]
        whole = expect_shape(self.hf_name, tensors[self.hf_name], (sum(rows), *split.columns))
        yield from split.to_native(dict(zip(split.hf, whole.split(rows), strict=True)))

    def to_hf(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield self.hf_name, _concatenate([part for _, part in self.apart.to_hf(tensors)])


@dataclass(frozen=True)
class GatedMLP(OneNative):
    """Stacks gate and up projections, each of `shape`, as [gate, up]."""

    hf: tuple[str, str]
    native_name: str
    shape: Shape
    optional = ()

    def to_native(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield (
            self.native_name,
            _concatenate([expect_shape(name, tensors[name], self.shape) for name in self.hf]),
        )

    def to_hf(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        rows, *columns = self.shape
        fused = expect_shape(self.native_name, tensors[self.native_name], (2 * rows, *columns))
        yield from zip(self.hf, fused.split(rows), strict=True)


@dataclass(frozen=True)
class PaddedVocab(OneHF, OneNative):
    """Pads the `vocab` rows of a vocabulary with zeros to `native_rows`.

    A Hugging Face folder may have more rows, `hf_rows` (an image token, which is none of the vocabulary in training).
    They repeat row `fill_row`, so that their logits never exceed those of a token that was there before. A `tied_head`
    may be present in a source; it must then equal the embedding and is not written again.
    """

    hf_name: str
    native_name: str
    vocab: int
    native_rows: int
    hf_rows: int
    hidden: int
    fill_row: int = 0
    tied_head: str | None = None

    @property
    def optional(self) -> tuple[str, ...]:
        return (self.tied_head,) if self.tied_head else ()

    def to_native(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        rows = expect_shape(self.hf_name, tensors[self.hf_name], (self.hf_rows, self.hidden))
        if self.tied_head and self.tied_head in tensors and not rows.equal(tensors[self.tied_head]):
            raise ConversionError(
                f"tie_word_embeddings is true, but {self.tied_head} differs from {self.hf_name}; "
                "set tie_word_embeddings to false in config.json, or remove the head"
            )
        padded = rows.new_zeros(self.native_rows, self.hidden)
        padded[: self.vocab] = rows[: self.vocab]
        yield self.native_name, padded

    def to_hf(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        rows = expect_shape(self.native_name, tensors[self.native_name], (self.native_rows, self.hidden))
        extra = rows[self.fill_row].expand(self.hf_rows - self.vocab, self.hidden)
        yield self.hf_name, _concatenate([rows[: self.vocab], extra])


def _concatenate(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    import torch

    return torch.cat(list(parts), dim)
