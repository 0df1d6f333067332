"""Fewer positions than patches: neighbours put together, or the map of patches made smaller, before the projection.

`<REDUCTION>_<PROJECTION>`, such as `pixel_shuffle2_ln_mlp2x_gelu`. Reductions:

- `pixel_shuffle<R>`: R x R neighbours side by side (Idefics3 and SmolVLM: `pixel_shuffle<R>_linear_nobias`; InternVL:
  `pixel_shuffle2_ln_mlp2x_gelu`);
- `concat<R>`: R that follow each other side by side (beni, MiniGPT-v2: `concat8_ln_mlp2x_silu`; R may be 1);
- `bilinear<H>x<W>`: the map interpolated to H rows of W (beni's sparsity plugin).

Projections: `linear`, `linear_nobias`, `mlp2x_gelu`, `mlp2x_silu`, each with a layer norm in front as `ln_…`.
"""

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

_KIND = re.compile(
    r"(?:pixel_shuffle(?P<shuffle>\d+)|concat(?P<concat>\d+)|bilinear(?P<rows>\d+)x(?P<columns>\d+))"
    r"(?P<norm>_ln)?_(?P<projection>\w+)"
)


@dataclass(frozen=True)
class ReducedConnector(NativeConnector):
    """A reduction, a layer norm or none, and a projection."""

    forms = ("pixel_shuffle2_ln_mlp2x_gelu", "concat8_ln_mlp2x_silu", "bilinear9x9_mlp2x_gelu", "…")
    needs_square: ClassVar[bool] = True

    @property
    def _parts(self) -> re.Match[str]:
        found = _KIND.fullmatch(self.kind)
        assert found is not None
        return found

    @property
    def _joined(self) -> int:
        """Patches whose features stand side by side."""
        if self._parts["rows"]:
            return 1
        return int(self._parts["shuffle"]) ** 2 if self._parts["shuffle"] else int(self._parts["concat"])

    def _widths(self, vision_hidden_size: int, hidden_size: int) -> list[tuple[int, int]]:
        first = (vision_hidden_size * self._joined, hidden_size)
        return (
            [first] if self._parts["projection"].startswith("linear") else [first, (hidden_size, hidden_size)]
        )

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        """See `Connector`."""
        from torch import nn

        from neva.model.reduction import Bilinear, Concatenation, PixelShuffle

        parts = self._parts
        widths = self._widths(vision_hidden_size, hidden_size)
        layers: list[nn.Module] = []
        if parts["norm"]:
            layers.append(nn.LayerNorm(widths[0][0]))
        for number, (inputs, outputs) in enumerate(widths):
            if number:
                layers.append(nn.SiLU() if parts["projection"].endswith("silu") else nn.GELU())
            layers.append(nn.Linear(inputs, outputs, bias=self._has_bias))
        if parts["rows"]:
            return Bilinear(layers, int(parts["rows"]), int(parts["columns"]))
        if parts["concat"]:
            return Concatenation(layers, int(parts["concat"]))
        return PixelShuffle(layers, int(parts["shuffle"]))

    @property
    def _has_bias(self) -> bool:
        return not self._parts["projection"].endswith("_nobias")

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        shapes: dict[str, Shape] = {}
        widths = self._widths(vision_hidden_size, hidden_size)
        first = 0
        if self._parts["norm"]:
            shapes = {"0.weight": (widths[0][0],), "0.bias": (widths[0][0],)}
            first = 1
        for number, (inputs, outputs) in enumerate(widths):
            name = f"{first + 2 * number}"
            shapes[f"{name}.weight"] = (outputs, inputs)
            if self._has_bias:
                shapes[f"{name}.bias"] = (outputs,)
        return shapes

    def tokens_out(self, tokens_in: int) -> int:
        """See `Connector`.

        Raises:
            ConfigError: the features cannot be reduced so.
        """
        parts, side = self._parts, math.isqrt(tokens_in)
        if parts["concat"]:
            if tokens_in % self._joined:
                raise ConfigError(self._misfit(f"{tokens_in} features", f"a multiple of {self._joined}"))
            return tokens_in // self._joined
        if side * side != tokens_in:
            raise ConfigError(self._misfit(f"{tokens_in} features", "a square of them, no class token"))
        if parts["rows"]:
            return int(parts["rows"]) * int(parts["columns"])
        factor = int(parts["shuffle"])
        if side % factor:
            raise ConfigError(self._misfit(f"{side} x {side} features", f"sides that {factor} divides"))
        return (side // factor) ** 2

    def _misfit(self, found: str, expected: str) -> str:
        return (
            f"model.mm_cfg.mm_mlp_adapter_type={self.kind}: found {found} of an image, expected {expected}; take "
            "another one, another tower or another model.mm_cfg.vision_encoder.input_size"
        )

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """Counts the inputs of norm, linear layers and activation, for each patch that goes in."""
        wide, *_ = widths = self._widths(vision_hidden_size, hidden_size)
        inputs = wide[0] * (bool(self._parts["norm"]) + is_trained)
        inputs += sum(outputs for _, outputs in widths[:-1]) * (1 + is_trained)
        return -(-inputs // self._joined)


CONNECTORS.register(
    r"(?:pixel_shuffle[2-9]|concat[1-9]\d*|bilinear[1-9]\d*x[1-9]\d*)(?:_ln)?"
    r"_(?:linear(?:_nobias)?|mlp2x_(?:gelu|silu))",
    ReducedConnector,
)
