"""The weights of a decoder layer, taken once from Megatron's modules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp

from neva.inference.feed_forward import FeedForward, Function, feed_forward_of
from neva.inference.linear import Product, product_of
from neva.model.norms import RMSNorm


@dataclass(frozen=True)
class LayerWeights:
    """What a layer multiplies by, this rank's shard; a norm is None where the form has none."""

    attention_norm: Function | None
    qkv: Product
    query_norm: Function | None
    key_norm: Function | None
    projection: Product
    attended_norm: Function | None
    mlp_norm: Function | None
    feed_forward: FeedForward
    transformed_norm: Function | None
    core_attention: Any
    angles: int
    """Which set of angles turns its queries and keys."""


def weights_of(layer: Any) -> LayerWeights:
    """Returns the weights of one of Megatron's layers."""
    attention = layer.self_attention
    return LayerWeights(
        attention_norm=norm_of(layer.input_layernorm),
        qkv=product_of(attention.linear_qkv, ColumnParallelLinear),
        query_norm=norm_of(attention.q_layernorm),
        key_norm=norm_of(attention.k_layernorm),
        projection=product_of(attention.linear_proj, RowParallelLinear),
        attended_norm=norm_of(getattr(layer, "post_self_attn_layernorm", None)),
        mlp_norm=norm_of(layer.pre_mlp_layernorm),
        feed_forward=feed_forward_of(layer.mlp),
        transformed_norm=norm_of(getattr(layer, "post_mlp_layernorm", None)),
        core_attention=attention.core_attention,
        angles=attention.angles,
    )


def norm_of(module: Any) -> Function | None:
    """Returns the arithmetic of a norm, without what modules do around it; None where there is none."""
    if module is None or isinstance(module, IdentityOp):
        return None
    if type(module) is RMSNorm:
        shape = module.normalized_shape
        return partial(F.rms_norm, normalized_shape=shape, weight=module.weight, eps=module.eps)
    forward: Function = module.forward
    return forward
