"""Linear layers between patch features and token embeddings: LLaVA's kinds (https://arxiv.org/abs/2310.03744)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from neva.errors import CheckpointError
from neva.families.connector import Connector
from neva.families.mapping import Shape
from neva.families.naming import HFNaming
from neva.registry import CONNECTORS

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LinearConnector(Connector):
    """One linear layer; with more, GELU stands between them. They are the members 0, 2, 4, … of the module."""

    @property
    def depth(self) -> int:
        """Linear layers."""
        return 1

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Sequential:
        """See `Connector`."""
        from torch import nn

        layers: list[nn.Module] = [nn.Linear(vision_hidden_size, hidden_size)]
        for _ in range(1, self.depth):
            layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
        return nn.Sequential(*layers)

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        shapes: dict[str, Shape] = {}
        for index in range(self.depth):
            columns = hidden_size if index else vision_hidden_size
            shapes |= {f"{2 * index}.weight": (hidden_size, columns), f"{2 * index}.bias": (hidden_size,)}
        return shapes

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """Counts the inputs of GELU and, trained, of the linear layers."""
        inputs = super().saved_width(vision_hidden_size, hidden_size, is_trained)
        return inputs + (self.depth - 1) * hidden_size

    def stored_names(self, names: list[str], naming: HFNaming) -> dict[str, str]:
        """Numbers the layers as the module does, but gives a single one no number.

        Raises:
            CheckpointError: the layout has names for another number of layers.
        """
        if naming.connector is None:
            return {name: name.removeprefix("0.") if self.depth == 1 else name for name in names}
        if naming.connector != self.kind:
            raise CheckpointError(
                f"a llava-hf folder holds a projector of 2 layers (mlp2x_gelu), this one has {self.depth}; "
                "export the original layout instead"
            )
        layers = {f"{2 * index}": layer for index, layer in enumerate(naming.linear_layers)}
        parts = {name: name.split(".") for name in names}
        return {name: f"{layers[number]}.{kind}" for name, (number, kind) in parts.items()}


@dataclass(frozen=True)
class MLPConnector(LinearConnector):
    """`mlp<N>x_gelu`: N linear layers."""

    forms = ("mlp2x_gelu", "mlp3x_gelu", "…")

    @property
    def depth(self) -> int:
        """Linear layers."""
        return int(self.kind.removeprefix("mlp").removesuffix("x_gelu"))


CONNECTORS.register("linear", LinearConnector)
CONNECTORS.register(r"mlp[1-9]\d*x_gelu", MLPConnector)
