"""A Q-Former: learned queries that attend to each other and to the features (BLIP-2, InstructBLIP)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neva.families.connector import NativeConnector
from neva.families.mapping import Shape
from neva.registry import CONNECTORS

if TYPE_CHECKING:
    from torch import nn

_PATTERN = (
    r"qformer_n(?P<queries>[1-9]\d*)_d(?P<depth>[1-9]\d*)_h(?P<heads>[1-9]\d*)x(?P<head_dim>[1-9]\d*)"
    r"_m(?P<inner>[1-9]\d*)(?:_e(?P<every>[1-9]\d*))?"
)


@dataclass(frozen=True)
class QFormerConnector(NativeConnector):
    """`qformer_n<QUERIES>_d<DEPTH>_h<HEADS>x<HEAD_DIM>_m<WIDTH>[_e<EVERY>]`, of whose layers every second one looks.

    BLIP-2's is `qformer_n32_d12_h12x64_m3072`; `_e1` has all layers look at the features. Heads times
    their width is the width of the queries; a matrix makes positions of them.
    """

    forms = ("qformer_n32_d12_h12x64_m3072", "…")

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of the kind by name."""
        found = re.fullmatch(_PATTERN, self.kind)
        assert found is not None
        return {name: int(number) for name, number in found.groupdict(default="2").items()}

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        """See `Connector`."""
        from neva.model.qformer import QFormer

        return QFormer(vision_hidden_size, hidden_size, **self.sizes)

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        sizes = self.sizes
        width, inner = sizes["heads"] * sizes["head_dim"], sizes["inner"]
        shapes: dict[str, Shape] = {
            "query_tokens": (1, sizes["queries"], width),
            **_norm("qformer.layernorm", width),
        }
        for number in range(sizes["depth"]):
            layer = f"qformer.encoder.layer.{number}"
            shapes |= _attention(f"{layer}.attention", width, width)
            if number % sizes["every"] == 0:
                shapes |= _attention(f"{layer}.crossattention", width, vision_hidden_size)
            shapes |= _linear(f"{layer}.intermediate_query.dense", width, inner)
            shapes |= _linear(f"{layer}.output_query.dense", inner, width)
            shapes |= _norm(f"{layer}.output_query.LayerNorm", width)
        return shapes | _linear("language_projection", width, hidden_size)

    def tokens_out(self, tokens_in: int) -> int:
        """See `Connector`."""
        return self.sizes["queries"]

    def flops(self, vision_hidden_size: int, hidden_size: int, tokens_in: int) -> tuple[float, float]:
        """See `Connector`."""
        sizes, reads, others = self.sizes, 0.0, 0.0
        for name, shape in self.parameter_shapes(vision_hidden_size, hidden_size).items():
            if re.search(r"crossattention\.attention\.(key|value)\.weight", name):
                reads += 2 * tokens_in * math.prod(shape)
            elif len(shape) == 2:
                others += 2 * sizes["queries"] * math.prod(shape)
        looking = -(-sizes["depth"] // sizes["every"])
        seen = sizes["depth"] * sizes["queries"] + looking * tokens_in
        return reads, others + 4 * sizes["queries"] * seen * sizes["heads"] * sizes["head_dim"]

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """Counts keys and values of each patch in the layers that look, and its features."""
        sizes = self.sizes
        looking = -(-sizes["depth"] // sizes["every"])
        return vision_hidden_size * is_trained + 2 * looking * sizes["heads"] * sizes["head_dim"]


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, width: int, seen: int) -> dict[str, Shape]:
    return {
        **_linear(f"{name}.attention.query", width, width),
        **_linear(f"{name}.attention.key", seen, width),
        **_linear(f"{name}.attention.value", seen, width),
        **_linear(f"{name}.output.dense", width, width),
        **_norm(f"{name}.output.LayerNorm", width),
    }


CONNECTORS.register(_PATTERN, QFormerConnector)
