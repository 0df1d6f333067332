"""Another connector with a learned newline beside it: what stands at the end of each row of an image cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from neva.errors import CheckpointError
from neva.families.connector import Connector, connector_named
from neva.families.mapping import Shape
from neva.families.naming import HFNaming
from neva.registry import CONNECTORS

if TYPE_CHECKING:
    from torch import nn

SUFFIX = "_newline"
NEWLINE = "image_newline"
"""Name of the parameter; transformers and LLaVA call it so too."""


@dataclass(frozen=True)
class NewlineConnector(Connector):
    """`<KIND>_newline`: the connector KIND, and LLaVA-NeXT's `image_newline`."""

    forms = ("mlp2x_gelu_newline", "…")
    has_newline: ClassVar[bool] = True

    @property
    def inner(self) -> Connector:
        """The connector without the newline."""
        return connector_named(self.kind.removesuffix(SUFFIX))

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        """See `Connector`. The module gives one feature more than positions: behind those of each tile, the newline.

        As one of a tile's features it goes the way of the others through every layout: the rank that encodes a tile
        has the gradient of the newlines that are taken from it.
        """
        import torch
        from torch import nn

        from neva.model.with_newline import WithNewline

        layers = self.inner.build(vision_hidden_size, hidden_size)
        assert isinstance(layers, nn.Sequential)
        return WithNewline(layers, torch.randn(hidden_size) / hidden_size**0.5)

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        return {
            NEWLINE: (hidden_size,),
            **self.inner.parameter_shapes(vision_hidden_size, hidden_size),
        }

    def tokens_out(self, tokens_in: int) -> int:
        """See `Connector`; the newline is not counted, as it is taken once a row."""
        return self.inner.tokens_out(tokens_in)

    def flops(self, vision_hidden_size: int, hidden_size: int, tokens_in: int) -> tuple[float, float]:
        """See `Connector`."""
        return self.inner.flops(vision_hidden_size, hidden_size, tokens_in)

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """See `Connector`."""
        return self.inner.saved_width(vision_hidden_size, hidden_size, is_trained)

    def stored_names(self, names: list[str], naming: HFNaming) -> dict[str, str]:
        """See `Connector`.

        Raises:
            CheckpointError: the layout has no place for a newline.
        """
        if naming.newline is None:
            raise CheckpointError(
                f"this layout has no place for the newline of a {self.kind} projector: only models that are trained "
                "with model.data.image_aspect_ratio=anyres have an export, in the llava-hf layout"
            )
        within = replace(naming, connector=(naming.connector or "").removesuffix(SUFFIX))
        return self.inner.stored_names(names, within)

    def stored_apart(self, naming: HFNaming) -> dict[str, str]:
        """See `Connector`."""
        return {} if naming.newline is None else {NEWLINE: naming.newline}


CONNECTORS.register(r"(?:linear|mlp[1-9]\d*x_gelu(?:_h[1-9]\d*(?:_nobias)?)?)" + SUFFIX, NewlineConnector)
