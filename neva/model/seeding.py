"""Initial weights that do not depend on the layout: each layer draws from a generator of its own name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, get_transformer_layer_offset
from torch import Tensor, nn

from neva.model.packed import PackedSamples, Rows


def seed_for(seed: int, name: str) -> None:
    """Seeds the generator that initial weights are drawn from, for the part of the model called `name`."""
    torch.manual_seed(_seed_of(seed, name))


def generator_for(seed: int, name: str) -> torch.Generator:
    """Returns a generator for the part of the model called `name`, which leaves the one of the others as it is."""
    return torch.Generator("cpu").manual_seed(_seed_of(seed, name))


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


class SeededLayer(TransformerLayer):
    """A decoder layer that starts from the same weights on whichever pipeline stage it stands.

    Args:
        config, submodules, layer_number, arguments: see Megatron's.
        seed: of the initial weights.
        norm_after: norm of what attention and feed-forward add to the residual stream; None: there is none.
    """

    _rows: Rows | None = None
    """What the micro batch that runs is made of."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: Any,
        layer_number: int = 1,
        *,
        seed: int,
        norm_after: type[nn.Module] | None = None,
        **arguments: Any,
    ) -> None:
        stage = arguments["pg_collection"].pp.rank()
        first = get_transformer_layer_offset(config, arguments.get("vp_stage"), stage)
        seed_for(seed, f"language_model.decoder.layers.{layer_number + first}")
        super().__init__(config, submodules, layer_number, **arguments)
        if norm_after is not None:
            sizes = {"hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
            self.post_self_attn_layernorm = norm_after(config=config, **sizes)
            self.post_mlp_layernorm = norm_after(config=config, **sizes)
            # Megatron's turns gradients on where a checkpointed layer has them off, for sums that keep nothing.
            self.bias_dropout_add_exec_handler = nullcontext
            self._add: Callable[..., Any] = self._add_attended
            self.mlp_bda = self._add_transformed
        else:
            self._add = get_bias_dropout_add
        self.self_attn_bda = self._add_to_read

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See Megatron's."""
        self._rows = kwargs.get("packed_seq_params")
        return super().forward(*args, **kwargs)

    def _add_to_read(self, is_training: bool, is_fused: bool) -> Callable[..., Tensor]:
        """See `get_bias_dropout_add`, whose place it takes: for attention that gives what is read alone."""
        add = self._add(is_training, is_fused)
        return lambda output, residual, dropout: add(output, self._read_of(residual, output[0]), dropout)

    def _read_of(self, hidden: Tensor, part: Tensor) -> Tensor:
        """Returns the positions of `hidden` [S, B, D] that `part` has: all, the last, or those of `LastRead`."""
        rows = self._rows
        if isinstance(rows, PackedSamples):
            if rows.last_read is None or not self.self_attention.core_attention.is_last:
                return hidden
            return hidden.flatten(0, 1).index_select(0, rows.last_read.hidden_index_N)[:, None]
        return hidden[len(hidden) - len(part) :]

    def _add_attended(self, is_training: bool, is_fused: bool) -> Callable[..., Tensor]:
        """See `get_bias_dropout_add`."""
        return partial(_add_normed, self.post_self_attn_layernorm)

    def _add_transformed(self, is_training: bool, is_fused: bool) -> Callable[..., Tensor]:
        """The same behind the feed-forward layer."""
        return partial(_add_normed, self.post_mlp_layernorm)


def _add_normed(
    norm: nn.Module, output: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float
) -> Tensor:
    """Returns the residual stream with what a part of the layer adds, normed; the model has no dropout."""
    assert dropout == 0
    added, bias = output
    normed: Tensor = norm(added if bias is None else added + bias)
    return residual + normed
