"""Low-rank adapters beside Megatron's parallel matrices (https://arxiv.org/abs/2106.09685).

A matrix that is split by rows has B split as it is and A whole on every rank; one that is split by columns has A split
as it is and B whole. What ranks exchange is as narrow as the rank of the factors.

Dimensions: positions first, rank R of the factors, a matrix has inputs I and outputs O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn

from neva.constants import ADAPTER
from neva.families.adapters import (
    GATE_UP,
    INPUT,
    MAGNITUDE,
    OUTPUT,
    QKV,
    SPLIT_BY_COLUMNS,
    WHOLE,
    is_halved,
    piece_shape,
)
from neva.families.configs import LanguageConfig, LoraConfig
from neva.families.naming import LANGUAGE
from neva.model.seeding import generator_for

_INITS: dict[str, Callable[..., Tensor]] = {
    "xavier": nn.init.xavier_normal_,
    "normal": partial(nn.init.normal_, std=0.2),
    "kaiming": partial(nn.init.kaiming_uniform_, a=5**0.5),
}
"""How NeMo draws a factor by each of its names; `zero` draws nothing."""


class Factors(nn.Module):
    """A pair of factors, this rank's share of it: `linear_in` [R, I], `linear_out` [O, R].

    `magnitude` [O] is there where the lengths of rows are learnt.
    """

    def __init__(
        self, shapes: tuple[tuple[int, int], tuple[int, int]], has_magnitude: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.linear_in, self.linear_out = (nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes)
        if has_magnitude:
            self.magnitude = nn.Parameter(torch.ones(shapes[1][0], dtype=dtype))


class Adapter(nn.Module):
    """What the factors beside one matrix add to its product.

    Args:
        matrix: Megatron's layer.
        language: sizes of the model, and its adapters.
        site: native name of the matrix in its layer.
        layer: number of that, from 0.
        seed: of the initial weights.
    """

    def __init__(
        self,
        matrix: ColumnParallelLinear | RowParallelLinear,
        language: LanguageConfig,
        site: str,
        layer: int,
        seed: int,
    ) -> None:
        super().__init__()
        assert language.lora is not None
        self.lora: LoraConfig = language.lora
        self.site, self.group = site, matrix.tp_group
        self.by_columns = site in SPLIT_BY_COLUMNS
        self.sequence_parallel: bool = matrix.sequence_parallel
        self.groups = language.num_query_groups // self.group.size()
        self.heads_of = {"q": language.num_heads // language.num_query_groups, "k": 1, "v": 1}
        self.head_size = language.head_dim
        for piece in self.lora.pieces(site, layer):
            rows, columns = piece_shape(language, site, piece)
            name = f"{LANGUAGE}decoder.layers.{layer}.{site}{ADAPTER}{piece}"
            self.add_module(piece, self._factors(rows, columns, name, seed, matrix.config))

    def _factors(self, rows: int, columns: int, name: str, seed: int, config: Any) -> Factors:
        """Returns a pair of factors; whole ones are drawn, so that every layout starts from the same."""
        rank, size = self.lora.rank, self.group.size()
        inputs = (rank, columns // size if self.by_columns else columns)
        outputs = (rows if self.by_columns else rows // size, rank)
        made = Factors((inputs, outputs), self.lora.has_magnitudes, config.params_dtype)
        split = made.linear_in if self.by_columns else made.linear_out
        for name_of, parameter in made.named_parameters():
            if parameter is split or (name_of == MAGNITUDE and not self.by_columns):
                set_tensor_model_parallel_attributes(parameter, True, int(self.by_columns), 1)
            else:  # Megatron sums such gradients over the ranks
                parameter.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        if config.perform_initialization:
            halved = is_halved(self.site, name.rpartition(".")[2])
            for kind, shape in ((INPUT, (rank, columns)), (OUTPUT, (rows, rank))):
                method = self.lora.input_init if kind == INPUT else self.lora.output_init
                found = drawn(shape, method, seed, f"{name}.{kind}")
                target = getattr(made, kind)
                if target is split:
                    found = share(found, int(self.by_columns), self.group, halved)
                with torch.no_grad():
                    target.copy_(found)
        return made

    def beside(self, product: Tensor, hidden: Tensor, matrix: Any) -> Tensor:
        """Returns this rank's `product` of the matrix and `hidden` with what the adapter makes of it."""
        return product + self(hidden)

    def in_generation(self, product: Callable[[Tensor], Tensor], matrix: Any) -> Callable[[Tensor], Tensor]:
        """Returns the same of hidden states [T, I], of a matrix split by columns before ranks are summed.

        Nothing is dropped, no rank is asked, and weights stay as they are.
        """
        return lambda hidden: product(hidden) + self.partial_product(hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns what is added to this rank's product of `hidden`, both as the matrix has them."""
        return self._joined({name: self.added(name, self.input_of(hidden)) for name in self.pieces})

    def partial_product(self, hidden: Tensor) -> Tensor:
        """Returns the same of hidden states [T, I] in generation."""
        found = {}
        for name in self.pieces:
            factors = self.factors(name)
            narrow = F.linear(hidden, factors.linear_in)
            found[name] = F.linear(narrow, factors.linear_out) * self.lora.scale
        return self._joined(found)

    @property
    def pieces(self) -> list[str]:
        """The pieces of the matrix that have factors."""
        return [name for name, _ in self.named_children()]

    def factors(self, name: str) -> Factors:
        """Returns those of a piece."""
        found = self.get_submodule(name)
        assert isinstance(found, Factors)
        return found

    def input_of(self, hidden: Tensor) -> Tensor:
        """Returns what a piece sees of `hidden`; another mask for each."""
        if not self.lora.drops_input:
            return hidden
        return self._dropped(hidden, -1 if self.by_columns else 0 if self.sequence_parallel else None)

    def added(self, name: str, hidden: Tensor) -> Tensor:
        """Returns what a piece adds to its rows, of what it sees."""
        factors, is_split = self.factors(name), self.sequence_parallel
        narrow = self.exchanged(F.linear(hidden, factors.linear_in))
        added = F.linear(narrow, factors.linear_out) * self.lora.scale
        if not self.lora.drops_input:
            split = (0 if is_split else None) if self.by_columns else -1
            added = self._dropped(added, split, is_halved(self.site, name))
        return added

    def exchanged(self, values: Tensor) -> Tensor:
        """Returns sums over the ranks where inputs are split, else what all ranks have of the sequence."""
        if self.by_columns:
            enter = (
                reduce_scatter_to_sequence_parallel_region
                if self.sequence_parallel
                else reduce_from_tensor_model_parallel_region
            )
        else:
            enter = (
                gather_from_sequence_parallel_region
                if self.sequence_parallel
                else copy_to_tensor_model_parallel_region
            )
        found: Tensor = enter(values, group=self.group)
        return found

    def _dropped(self, values: Tensor, split: int | None, halved: bool = False) -> Tensor:
        """Drops elements while training. Masks are drawn for all tensor-parallel ranks: none depends on them."""
        if not (self.training and self.lora.dropout):
            return values
        shape, kept = list(values.shape), 1 - self.lora.dropout
        if split is not None:
            shape[split] *= self.group.size()
        mask = torch.empty(shape, dtype=torch.bool, device=values.device).bernoulli_(kept)
        if split is not None:
            mask = share(mask, split, self.group, halved)
        return values * mask / kept

    def _joined(self, pieces: Mapping[str, Tensor]) -> Tensor:
        """Returns the rows of all pieces in the order of the matrix; zeros stand for pieces without factors."""
        if WHOLE in pieces:
            return pieces[WHOLE]
        like = next(iter(pieces.values()))
        if self.site == GATE_UP:
            return torch.cat([pieces.get(name, torch.zeros_like(like)) for name in ("gate", "up")], dim=-1)
        assert self.site == QKV
        heads = []
        for name, number in self.heads_of.items():
            shape = (*like.shape[:-1], self.groups, number, self.head_size)
            heads.append(pieces[name].view(shape) if name in pieces else like.new_zeros(shape))
        return torch.cat(heads, dim=-2).flatten(-3)


def share(whole: Tensor, dim: int, group: Any, halved: bool) -> Tensor:
    """Returns this rank's share of a tensor along a dimension; of each of its two halves, where it is `halved`."""
    parts = whole.chunk(2, dim) if halved else (whole,)
    return torch.cat([part.chunk(group.size(), dim)[group.rank()] for part in parts], dim)


def drawn(shape: tuple[int, int], method: str, seed: int, name: str) -> Tensor:
    """Returns a whole factor of that name as a method draws it, the same in every layout."""
    tensor = torch.zeros(shape, device="cpu")
    if method in _INITS:
        _INITS[method](tensor, generator=generator_for(seed, name))
    return tensor
