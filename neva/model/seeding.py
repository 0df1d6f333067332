"""Initial weights that do not depend on the layout: each layer draws from a generator of its own name."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, get_transformer_layer_offset


def seed_for(seed: int, name: str) -> None:
    """Seeds the generator that initial weights are drawn from, for the part of the model called `name`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))


class SeededLayer(TransformerLayer):
    """A decoder layer that starts from the same weights on whichever pipeline stage it stands."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: Any,
        layer_number: int = 1,
        *,
        seed: int,
        **arguments: Any,
    ) -> None:
        stage = arguments["pg_collection"].pp.rank()
        first = get_transformer_layer_offset(config, arguments.get("vp_stage"), stage)
        seed_for(seed, f"language_model.decoder.layers.{layer_number + first}")
        super().__init__(config, submodules, layer_number, **arguments)
