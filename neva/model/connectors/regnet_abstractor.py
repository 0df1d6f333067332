"""Honeybee's C-Abstractor: convolutions over the map of patches, before and after it is made smaller."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neva.errors import ConfigError
from neva.families.connector import NativeConnector
from neva.families.mapping import Shape
from neva.registry import CONNECTORS

if TYPE_CHECKING:
    from torch import nn

_PATTERN = r"cabstractor_n(?P<positions>[1-9]\d*)_d(?P<depth>[1-9]\d*)_w(?P<width>[1-9]\d*)"


@dataclass(frozen=True)
class AbstractorConnector(NativeConnector):
    """`cabstractor_n<POSITIONS>_d<DEPTH>_w<WIDTH>`, a square number of positions.

    Honeybee's is `cabstractor_n144_d3_w1024`, with `pos_emb` and end tokens off: convolutions know where they are.
    """

    forms = ("cabstractor_n144_d3_w1024", "…")
    needs_square: ClassVar[bool] = True

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of the kind by name."""
        found = re.fullmatch(_PATTERN, self.kind)
        assert found is not None
        sizes = {name: int(number) for name, number in found.groupdict().items()}
        if math.isqrt(sizes["positions"]) ** 2 != sizes["positions"]:
            raise ConfigError(
                f"model.mm_cfg.mm_mlp_adapter_type={self.kind}: {sizes['positions']} positions are no square; take "
                "such a number behind n, 144 or 256"
            )
        return sizes

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        """See `Connector`."""
        from neva.model.abstractor import Abstractor

        return Abstractor(vision_hidden_size, hidden_size, **self.sizes)

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        width, depth = self.sizes["width"], self.sizes["depth"]
        shapes: dict[str, Shape] = {}
        for stage, first in (("before", vision_hidden_size), ("after", width)):
            for number in range(depth):
                shapes |= _block(f"{stage}.{number}", width if number else first, width)
        for number, inputs in ((0, width), (2, hidden_size)):
            name = f"readout.{number}"
            shapes |= {f"{name}.weight": (hidden_size, inputs), f"{name}.bias": (hidden_size,)}
        return shapes

    def tokens_out(self, tokens_in: int) -> int:
        """See `Connector`.

        Raises:
            ConfigError: the features are no map.
        """
        if math.isqrt(tokens_in) ** 2 != tokens_in:
            raise ConfigError(
                f"model.mm_cfg.mm_mlp_adapter_type={self.kind}: found {tokens_in} features of an image, expected a "
                "square of them, no class token; take another one or another tower"
            )
        return self.sizes["positions"]

    def flops(self, vision_hidden_size: int, hidden_size: int, tokens_in: int) -> tuple[float, float]:
        """See `Connector`. Squeeze and excitation are of one position, the mean."""
        reads = others = 0.0
        for name, shape in self.parameter_shapes(vision_hidden_size, hidden_size).items():
            tokens = tokens_in if name.startswith("before") else self.sizes["positions"]
            if re.search(r"\.(squeeze|excite)\.weight", name):
                others += 2 * math.prod(shape)
            elif name in ("before.0.expand.weight", "before.0.shortcut.weight"):
                reads += 2 * tokens * math.prod(shape)
            elif len(shape) > 1:
                others += 2 * tokens * math.prod(shape)
        return reads, others

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """Counts what three convolutions, their norms and activations keep of a patch, before the map is smaller."""
        return 10 * self.sizes["depth"] * self.sizes["width"]


def _block(name: str, inputs: int, width: int) -> dict[str, Shape]:
    """Returns the shapes of a bottleneck with squeeze and excitation."""
    squeezed = round(inputs * 0.25)
    shapes: dict[str, Shape] = {}
    for part, shape in (
        ("expand", (width, inputs, 1, 1)),
        ("depthwise", (width, 1, 3, 3)),
        ("reduce", (width, width, 1, 1)),
    ):
        shapes |= {f"{name}.{part}.weight": shape, **_norm(f"{name}.{part}_norm", width)}
    shapes |= {f"{name}.squeeze.weight": (squeezed, width, 1, 1), f"{name}.squeeze.bias": (squeezed,)}
    shapes |= {f"{name}.excite.weight": (width, squeezed, 1, 1), f"{name}.excite.bias": (width,)}
    if inputs != width:
        shapes |= {f"{name}.shortcut.weight": (width, inputs, 1, 1), **_norm(f"{name}.shortcut_norm", width)}
    return shapes


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


CONNECTORS.register(_PATTERN, AbstractorConnector)
