"""Adapters beside the matrices of a vision tower, whole on every rank as these are.

Ranks that share out images draw no common masks: nothing is dropped here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neva.constants import ADAPTER
from neva.families.adapters import INPUT, OUTPUT, WHOLE
from neva.families.configs import LoraConfig, VisionConfig
from neva.families.naming import TOWER
from neva.families.tower_adapters import factor_shapes, tower_sites
from neva.model.adapters import Factors, drawn
from neva.model.dora import length, stretched


class TowerAdapter(nn.Module):
    """What the factors beside a matrix of a tower make of its product."""

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
        narrow = F.linear(hidden, self.whole.linear_in)
        added = F.linear(narrow, self.whole.linear_out) * self.lora.scale
        if not self.lora.has_magnitudes:
            return product + added
        stretch = self.whole.magnitude / length(matrix.weight, self.whole, self.lora.scale)
        return stretched(product, matrix.bias, stretch, added)

    @torch.no_grad()
    def measure(self, matrix: nn.Linear) -> None:
        """Gives every row the length that it has, where lengths are learnt."""
        if self.lora.has_magnitudes:
            self.whole.magnitude.copy_(length(matrix.weight, self.whole, self.lora.scale))


class AdaptedLinear(nn.Linear):
    """A matrix in the place of another, whose weight and bias it has, with an adapter."""

    def __init__(self, matrix: nn.Linear, adapter: TowerAdapter) -> None:
        has_bias = matrix.bias is not None
        super().__init__(matrix.in_features, matrix.out_features, has_bias, device="meta")
        self.weight, self.bias = matrix.weight, matrix.bias
        self.adapter = adapter

    def forward(self, input: Tensor) -> Tensor:
        """See torch's."""
        return self.adapter.beside(super().forward(input), input, self)


def adapt(tower: nn.Module, vision: VisionConfig) -> None:
    """Puts adapters beside the matrices of a tower that are to have them."""
    seed = torch.initial_seed()
    for name, shape in tower_sites(vision).items():
        assert vision.lora is not None
        rows, columns = shape
        parent, _, child = name.rpartition(".")
        matrix = tower.get_submodule(name)
        assert isinstance(matrix, nn.Linear)
        adapter = TowerAdapter((rows, columns), vision.lora, f"{TOWER}{name}{ADAPTER}{WHOLE}", seed)
        setattr(tower.get_submodule(parent), child, AdaptedLinear(matrix, adapter))
