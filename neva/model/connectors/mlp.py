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

    @property
    def has_bias(self) -> bool:
        """Whether the linear layers add a bias."""
        return True

    def widths(self, vision_hidden_size: int, hidden_size: int) -> list[tuple[int, int]]:
        """Returns inputs and outputs of each linear layer."""
        return [(vision_hidden_size, hidden_size), *[(hidden_size, hidden_size)] * (self.depth - 1)]

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Sequential:
        """See `Connector`."""
        from torch import nn

        layers: list[nn.Module] = []
        for inputs, outputs in self.widths(vision_hidden_size, hidden_size):
            layers += [nn.GELU()] if layers else []
            layers.append(nn.Linear(inputs, outputs, bias=self.has_bias))
        return nn.Sequential(*layers)

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        shapes: dict[str, Shape] = {}
        for index, (inputs, outputs) in enumerate(self.widths(vision_hidden_size, hidden_size)):
            shapes[f"{2 * index}.weight"] = (outputs, inputs)
            if self.has_bias:
                shapes[f"{2 * index}.bias"] = (outputs,)
        return shapes

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """Counts the inputs of GELU and, trained, of the linear layers."""
        inputs = super().saved_width(vision_hidden_size, hidden_size, is_trained)
        return inputs + sum(outputs for _, outputs in self.widths(vision_hidden_size, hidden_size)[:-1])

    def stored_names(self, names: list[str], naming: HFNaming) -> dict[str, str]:
        """Numbers the layers as the module does, but gives a single one no number.

        Raises:
            CheckpointError: the layout has names for another number of layers.
        """
        if naming.connector is None:
            return {name: name.removeprefix("0.") if self.depth == 1 else name for name in names}
        if naming.connector != self.kind:
            raise CheckpointError(
                f"a llava-hf folder holds an mlp2x_gelu projector, this one is {self.kind}; "
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


@dataclass(frozen=True)
class WideMLPConnector(LinearConnector):
    """`mlp2x_gelu_h<WIDTH>`: two linear layers with WIDTH numbers between them; `_nobias` leaves the biases out.

    Pai-Megatron-Patch's is `mlp2x_gelu_h14336_nobias`, Asagi's may have twice the language model's width.
    """

    forms = ("mlp2x_gelu_h14336", "mlp2x_gelu_h14336_nobias", "…")

    @property
    def depth(self) -> int:
        """Linear layers."""
        return 2

    @property
    def has_bias(self) -> bool:
        """See `LinearConnector`."""
        return not self.kind.endswith("_nobias")

    def widths(self, vision_hidden_size: int, hidden_size: int) -> list[tuple[int, int]]:
        """See `LinearConnector`."""
        width = int(self.kind.removesuffix("_nobias").removeprefix("mlp2x_gelu_h"))
        return [(vision_hidden_size, width), (width, hidden_size)]


CONNECTORS.register("linear", LinearConnector)
CONNECTORS.register(r"mlp[1-9]\d*x_gelu", MLPConnector)
CONNECTORS.register(r"mlp2x_gelu_h[1-9]\d*(?:_nobias)?", WideMLPConnector)
