"""Connectors that make one position of four neighbouring features: NeMo's NeVA, its fork with tiles, and VILA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neva.errors import CheckpointError
from neva.families.connector import Connector, Quarters, connector_named
from neva.families.mapping import Shape
from neva.families.naming import LLAVA_HF, LLAVA_ORIGINAL, HFNaming
from neva.registry import CONNECTORS

if TYPE_CHECKING:
    from torch import nn

SUFFIX = "_downsample"


@dataclass(frozen=True)
class DownsamplingConnector(Connector):
    """Four features that lie in a square make one position."""

    needs_square: ClassVar[bool] = True

    def tokens_out(self, tokens_in: int) -> int:
        """See `Connector`. A side of an odd number is filled up."""
        half: int = (math.isqrt(tokens_in) + 1) // 2
        return half * half

    def stored_names(self, names: list[str], naming: HFNaming) -> dict[str, str]:
        """See `Connector`.

        Raises:
            CheckpointError: the layout is one of LLaVA's, whose code builds no such projector.
        """
        if naming in (LLAVA_HF, LLAVA_ORIGINAL):
            raise CheckpointError(
                f"neither layout of LLaVA has a {self.kind} projector: there is no export; models to be exported are "
                "trained with mlp2x_gelu"
            )
        return {name: name for name in names}


@dataclass(frozen=True)
class SquaresConnector(DownsamplingConnector):
    """`mlp_downsample`: the features of each 2 x 2 square behind each other, layer norm, linear, GELU, linear.

    Source: NeMo's NeVA, of which it has names of the parameters and order of the positions; VILA
    (https://arxiv.org/abs/2312.07533).
    """

    quarters: ClassVar[Quarters] = "optional"

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        """See `Connector`."""
        from torch import nn

        from neva.model.downsampling import Squares

        width = 4 * vision_hidden_size
        return nn.Sequential(
            Squares(),
            nn.LayerNorm(width),
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        width = 4 * vision_hidden_size
        return {
            "1.weight": (width,),
            "1.bias": (width,),
            "2.weight": (hidden_size, width),
            "2.bias": (hidden_size,),
            "4.weight": (hidden_size, hidden_size),
            "4.bias": (hidden_size,),
        }

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """Counts the inputs of layer norm and GELU and, trained, of the linear layers, a quarter for each feature."""
        width = 4 * vision_hidden_size
        return (width + hidden_size + is_trained * (width + hidden_size)) // 4


@dataclass(frozen=True)
class QuartersConnector(DownsamplingConnector):
    """`<KIND>_downsample`: KIND on the image at half size, and on what a convolution adds of its quarters.

    Source: the fork of NeMo's NeVA by lihengtao, `mlp2x_gelu_downsample`.
    """

    forms = ("mlp2x_gelu_downsample", "…")
    quarters: ClassVar[Quarters] = "needed"
    has_thumbnail: ClassVar[bool] = True

    @property
    def inner(self) -> Connector:
        """The connector behind the sum."""
        return connector_named(self.kind.removesuffix(SUFFIX))

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        """See `Connector`."""
        from torch import nn

        from neva.model.downsampling import AddedQuarters

        layers = self.inner.build(vision_hidden_size, hidden_size)
        assert isinstance(layers, nn.Sequential)
        return AddedQuarters(layers, vision_hidden_size)

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        return {
            "alpha": (1,),
            **self.inner.parameter_shapes(vision_hidden_size, hidden_size),
            "downsample.weight": (vision_hidden_size, vision_hidden_size, 3, 3),
            "downsample.bias": (vision_hidden_size,),
        }

    def flops(self, vision_hidden_size: int, hidden_size: int, tokens_in: int) -> tuple[float, float]:
        """See `Connector`. Of the features, a fifth is the image at half size; the convolution reads the others."""
        tokens = tokens_in / 5
        first, others = self.inner.flops(vision_hidden_size, hidden_size, round(tokens))
        return 2 * 9 * tokens * vision_hidden_size**2, first + others

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """Adds to those of KIND the input of the convolution and its output, a quarter for each feature."""
        behind = self.inner.saved_width(vision_hidden_size, hidden_size, is_trained)
        return (behind + is_trained * 5 * vision_hidden_size) // 4


CONNECTORS.register("mlp_downsample", SquaresConnector)
CONNECTORS.register(r"mlp[1-9]\d*x_gelu" + SUFFIX, QuartersConnector)
