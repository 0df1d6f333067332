"""Adapters that learn the lengths of rows apart from their directions (https://arxiv.org/abs/2402.09353).

A row of W + (alpha / rank) B A is stretched to the length that `magnitude` says. As in the paper and in peft, its own
length counts as a number in the backward pass, and dropout of the input leaves the frozen product whole. A row of
joined pieces is a row like any other, so that NeMo's form differs from peft's by the shared A alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from neva.families.adapters import GATE_UP, PIECES, QKV, WHOLE
from neva.model.adapters import Adapter, Factors


class DoraAdapter(Adapter):
    """See above. Of a matrix that is split by columns, ranks add up the squares of their parts of a row."""

    def beside(self, product: Tensor, hidden: Tensor, matrix: Any) -> Tensor:
        """See `Adapter`."""
        rows = self._rows(matrix.weight)
        stretches = {name: self._stretch(name, rows[name]) for name in self.pieces}
        if self.training and self.lora.dropout and self.lora.drops_input:
            return product + self._joined(
                {name: self._of_dropped(name, hidden, rows[name], stretches[name]) for name in self.pieces}
            )
        stretch = 1 + self._joined({name: stretch - 1 for name, stretch in stretches.items()})
        return stretched(product, matrix.bias, stretch, self(hidden))

    def in_generation(self, product: Callable[[Tensor], Tensor], matrix: Any) -> Callable[[Tensor], Tensor]:
        """See `Adapter`."""
        rows = self._rows(matrix.weight)
        with torch.no_grad():
            stretch = 1 + self._joined({name: self._stretch(name, rows[name]) - 1 for name in self.pieces})
        return lambda hidden: stretched(product(hidden), matrix.bias, stretch, self.partial_product(hidden))

    @torch.no_grad()
    def measure(self, matrix: Any) -> None:
        """Gives every row the length that it has: training starts from what matrix and factors compute."""
        rows = self._rows(matrix.weight)
        for name in self.pieces:
            magnitude: Any = self.factors(name).magnitude
            magnitude.copy_(self._length(name, rows[name]))

    def _of_dropped(self, name: str, hidden: Tensor, rows: Tensor, stretch: Tensor) -> Tensor:
        """Returns what a piece adds to its rows when its input is dropped, of the frozen product too."""
        seen = self.input_of(hidden)
        frozen = (
            self.exchanged(F.linear(seen, rows)) if self.by_columns else F.linear(self.exchanged(seen), rows)
        )
        return (stretch - 1) * frozen + stretch * self.added(name, seen)

    def _stretch(self, name: str, rows: Tensor) -> Tensor:
        """Returns what each row of a piece is multiplied by."""
        magnitude: Any = self.factors(name).magnitude
        stretch: Tensor = magnitude / self._length(name, rows)
        return stretch

    def _length(self, name: str, rows: Tensor) -> Tensor:
        """Returns the lengths [O] of the rows of a piece with its factors."""
        return length(rows, self.factors(name), self.lora.scale, self.group if self.by_columns else None)

    def _rows(self, weight: Tensor) -> dict[str, Tensor]:
        """Returns this rank's rows of the pieces that have factors."""
        weight = weight.detach()
        if self.pieces == [WHOLE]:
            return {WHOLE: weight}
        if self.site == GATE_UP:
            return dict(zip(PIECES[GATE_UP], weight.chunk(2), strict=True))
        assert self.site == QKV
        grouped = weight.view(self.groups, -1, self.head_size, weight.size(1))
        parts = dict(zip(self.heads_of, grouped.split(list(self.heads_of.values()), dim=1), strict=True))
        return {name: parts[name].flatten(0, 2) for name in self.pieces}


@torch.no_grad()
def length(rows: Tensor, factors: Factors, scale: float, group: Any = None) -> Tensor:
    """Returns the lengths [O] of rows [O, I] with their factors; the ranks of a group have parts of the rows.

    Rounded as the magnitudes are: before the first step, each of these is divided by itself.
    """
    whole = rows + factors.linear_out @ factors.linear_in * scale
    exact = torch.promote_types(rows.dtype, torch.float32)
    found: Tensor = torch.linalg.vector_norm(whole, dim=1, dtype=exact)
    if group is not None and group.size() > 1:
        square = found.square()
        dist.all_reduce(square, group=group)
        found = square.sqrt()
    return found.to(rows.dtype)


def stretched(product: Tensor, bias: Tensor | None, stretch: Tensor, added: Tensor) -> Tensor:
    """Returns the product with what is added to it, stretched; a bias stays as it is."""
    if bias is None:
        return stretch * (product + added)
    return stretch * (product - bias + added) + bias
