"""A perceiver resampler: as many positions as it has latents, whatever the image (Idefics2, beni)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neva.errors import CheckpointError, ConfigError
from neva.families.connector import NativeConnector
from neva.families.mapping import Shape
from neva.families.naming import IDEFICS2, HFNaming
from neva.registry import CONNECTORS

if TYPE_CHECKING:
    from torch import nn

_PATTERN = (
    r"perceiver_n(?P<latents>[1-9]\d*)_d(?P<depth>[1-9]\d*)_h(?P<heads>[1-9]\d*)x(?P<head_dim>[1-9]\d*)"
    r"(?:_g(?P<groups>[1-9]\d*))?(?:_m(?P<inner>[1-9]\d*))?(?P<separate>_separate)?"
)


@dataclass(frozen=True)
class PerceiverConnector(NativeConnector):
    """`perceiver_n<LATENTS>_d<DEPTH>_h<HEADS>x<HEAD_DIM>[_g<GROUPS>][_m<WIDTH>][_separate]`.

    Features are projected to the language model's width, by one matrix or, with `_m`, by a gated layer of that width
    between (Idefics2's `text_config.intermediate_size`); then latents attend to them. `_g` says how many key-value
    heads there are (as many as heads). With `_separate`, latents attend to the features alone, not to themselves too
    (beni's `concat_latents_kv=False`). Idefics2-8B's is `perceiver_n64_d3_h16x96_g4_m14336`.
    """

    forms = ("perceiver_n64_d3_h16x96_g4_m14336", "…")

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of the kind by name; `inner` 0: one matrix."""
        found = re.fullmatch(_PATTERN, self.kind)
        assert found is not None
        numbers = found.groupdict(default="0")
        numbers["separate"] = str(int(found["separate"] is not None))
        sizes = {name: int(number) for name, number in numbers.items()}
        sizes["groups"] = sizes["groups"] or sizes["heads"]
        if sizes["heads"] % sizes["groups"]:
            raise ConfigError(
                f"model.mm_cfg.mm_mlp_adapter_type={self.kind}: {sizes['heads']} heads cannot be divided by "
                f"{sizes['groups']} groups; correct the number behind g"
            )
        return sizes

    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        """See `Connector`."""
        from neva.model.perceiver import Perceiver

        return Perceiver(vision_hidden_size, hidden_size, **self.sizes)

    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """See `Connector`."""
        sizes, width = self.sizes, hidden_size
        queries, keys = sizes["heads"] * sizes["head_dim"], sizes["groups"] * sizes["head_dim"]
        shapes: dict[str, Shape] = {"latents": (sizes["latents"], width)}
        if inner := sizes["inner"]:
            shapes |= _gated("modality_projection", vision_hidden_size, inner, width)
        else:
            shapes["modality_projection.weight"] = (width, vision_hidden_size)
        for layer in range(sizes["depth"]):
            name = f"layers.{layer}"
            shapes |= {
                f"{name}.input_latents_norm.weight": (width,),
                f"{name}.input_context_norm.weight": (width,),
            }
            shapes |= {f"{name}.q_proj.weight": (queries, width), f"{name}.k_proj.weight": (keys, width)}
            shapes |= {f"{name}.v_proj.weight": (keys, width), f"{name}.o_proj.weight": (width, queries)}
            shapes[f"{name}.post_attention_layernorm.weight"] = (width,)
            shapes |= _gated(f"{name}.mlp", width, 4 * width, width)
        return shapes | {"norm.weight": (width,)}

    def stored_names(self, names: list[str], naming: HFNaming) -> dict[str, str]:
        """See `Connector`.

        Raises:
            CheckpointError: the layout is not Idefics2's, or this is another perceiver than it has.
        """
        if naming.model_type != IDEFICS2.model_type:
            return super().stored_names(names, naming)
        if not self.sizes["inner"] or self.sizes["separate"]:
            raise CheckpointError(
                f"an Idefics2 has a gated projection before its perceiver, whose latents attend to themselves too; "
                f"{self.kind} has not: train with _m<WIDTH> and without _separate, or convert to a .nemo file"
            )
        attention = re.compile(r"\.([qkvo]_proj\.)")
        return {
            name: name
            if name.startswith("modality_projection.")
            else "perceiver_resampler." + attention.sub(r".self_attn.\1", name)
            for name in names
        }

    def tokens_out(self, tokens_in: int) -> int:
        """See `Connector`."""
        return self.sizes["latents"]

    def flops(self, vision_hidden_size: int, hidden_size: int, tokens_in: int) -> tuple[float, float]:
        """See `Connector`."""
        sizes, shapes = self.sizes, self.parameter_shapes(vision_hidden_size, hidden_size)
        seen = tokens_in + (0 if sizes["separate"] else sizes["latents"])
        reads = others = 0.0
        for name, shape in shapes.items():
            if name.endswith("proj.weight") or name == "modality_projection.weight":
                is_of_patches = name.startswith("modality_projection")
                is_of_seen = name.endswith(("k_proj.weight", "v_proj.weight"))
                tokens = tokens_in if is_of_patches else seen if is_of_seen else sizes["latents"]
                others += 2 * tokens * math.prod(shape)
                if is_of_patches and shape[1] == vision_hidden_size and not name.endswith("down_proj.weight"):
                    reads += 2 * tokens * math.prod(shape)
        attention = 4 * sizes["latents"] * seen * sizes["heads"] * sizes["head_dim"] * sizes["depth"]
        return reads, others - reads + attention

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """Estimates what each patch keeps: its projection, and its norm, keys and values in each layer."""
        sizes = self.sizes
        projection = vision_hidden_size * is_trained + 3 * sizes["inner"] + hidden_size
        return projection + sizes["depth"] * (2 * hidden_size + 2 * sizes["groups"] * sizes["head_dim"])


def _gated(name: str, inputs: int, inner: int, outputs: int) -> dict[str, Shape]:
    return {
        f"{name}.gate_proj.weight": (inner, inputs),
        f"{name}.up_proj.weight": (inner, inputs),
        f"{name}.down_proj.weight": (outputs, inner),
    }


CONNECTORS.register(_PATTERN, PerceiverConnector)
