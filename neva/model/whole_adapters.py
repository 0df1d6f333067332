"""Adapters beside torch's matrices, whole on every rank as these are: in a tower, or a model that transformers runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neva.constants import ADAPTER
from neva.families.adapters import INPUT, OUTPUT, WHOLE, factor_shapes
from neva.families.configs import LoraConfig
from neva.model.adapters import Factors, drawn
from neva.model.dora import length, stretched


class WholeAdapter(nn.Module):
    """What the factors beside a matrix make of its product."""

    def __init__(self, shape: tuple[int, int], lora: LoraConfig, name: str, seed: int) -> None:
        super().__init__()
        self.lora = lora
        shapes: Any = factor_shapes(lora, shape)
        pair = (shapes[f"{WHOLE}.{INPUT}"], shapes[f"{WHOLE}.{OUTPUT}"])
        self.whole = Factors(pair, lora.has_magnitudes, torch.float32)
        with torch.no_grad():
            for kind, of_kind, method in zip(
                (INPUT, OUTPUT), pair, (lora.input_init, lora.output_init), strict=True
            ):
                getattr(self.whole, kind).copy_(drawn(of_kind, method, seed, f"{name}.{kind}"))

    def beside(self, product: Tensor, hidden: Tensor, matrix: nn.Linear) -> Tensor:
        """Returns the product of the matrix and `hidden` with what the adapter makes of it."""
        lora = self.lora
        seen = self._dropped(hidden) if lora.drops_input else hidden
        added = F.linear(F.linear(seen, self.whole.linear_in), self.whole.linear_out) * lora.scale
        if not lora.drops_input:
            added = self._dropped(added)
        if not lora.has_magnitudes:
            return product + added
        stretch = self.whole.magnitude / length(matrix.weight, self.whole, lora.scale)
        if seen is hidden:
            return stretched(product, matrix.bias, stretch, added)
        return product + (stretch - 1) * F.linear(seen, matrix.weight) + stretch * added

    def _dropped(self, values: Tensor) -> Tensor:
        if not (self.training and self.lora.dropout):
            return values
        return F.dropout(values, self.lora.dropout)

    @torch.no_grad()
    def measure(self, matrix: nn.Linear) -> None:
        """Gives every row the length that it has, where lengths are learnt."""
        if self.lora.has_magnitudes:
            self.whole.magnitude.copy_(length(matrix.weight, self.whole, self.lora.scale))


class AdaptedLinear(nn.Linear):
    """A matrix in the place of another, whose weight and bias it has, with an adapter."""

    def __init__(self, matrix: nn.Linear, adapter: WholeAdapter) -> None:
        has_bias = matrix.bias is not None
        super().__init__(matrix.in_features, matrix.out_features, has_bias, device="meta")
        self.weight, self.bias = matrix.weight, matrix.bias
        self.adapter = adapter

    def forward(self, input: Tensor) -> Tensor:
        """See torch's."""
        return self.adapter.beside(super().forward(input), input, self)


def adapt(module: nn.Module, names: Iterable[str], lora: LoraConfig | None, prefix: str) -> None:
    """Puts adapters beside matrices of a module, whose native name is `prefix`; the names are none without `lora`."""
    seed = torch.initial_seed()
    for name in names:
        assert lora is not None
        parent, _, child = name.rpartition(".")
        matrix = module.get_submodule(name)
        assert isinstance(matrix, nn.Linear)
        shape = (matrix.out_features, matrix.in_features)
        adapter = WholeAdapter(shape, lora, f"{prefix}{name}{ADAPTER}{WHOLE}", seed)
        setattr(module.get_submodule(parent), child, AdaptedLinear(matrix, adapter))
