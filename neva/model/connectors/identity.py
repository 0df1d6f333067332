"""No projection: a tower as wide as the language model gives its features as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neva.errors import ConfigError
from neva.families.connector import Connector
from neva.families.mapping import Shape
from neva.registry import CONNECTORS

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class IdentityConnector(Connector):
    """LLaVA's and NeVA's `identity`: a part without tensors."""

    has_tensors: ClassVar[bool] = False

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        """See `Connector`."""
        from torch import nn

        self.check_widths(vision_hidden_size, hidden_size)
        return nn.Identity()

    def check_widths(self, vision_hidden_size: int, hidden_size: int) -> None:
        """See `Connector`."""
        if vision_hidden_size != hidden_size:
            raise ConfigError(
                f"model.mm_cfg.mm_mlp_adapter_type=identity: the tower's features are {vision_hidden_size} wide, the "
                f"language model {hidden_size}; expected the same width: take mlp2x_gelu, or a tower that fits"
            )

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        return {}


CONNECTORS.register("identity", IdentityConnector)
