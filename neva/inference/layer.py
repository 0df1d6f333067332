"""The weights of a decoder layer, taken once from Megatron's modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor

from neva.inference.feed_forward import FeedForward, feed_forward_of
from neva.inference.linear import weight_of


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm."""

    weight: Tensor
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        """Returns hidden states [..., H], normed."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class LayerWeights:
    """What a layer multiplies by, this rank's shard; `query_norm` and `key_norm` None where heads are not normed."""

    attention_norm: Norm
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Norm | None
    key_norm: Norm | None
    projection: Tensor
    mlp_norm: Norm
    feed_forward: FeedForward
    core_attention: Any


def weights_of(layer: Any) -> LayerWeights:
    """Returns the weights of one of Megatron's layers."""
    attention = layer.self_attention
    return LayerWeights(
        attention_norm=norm_of(layer.input_layernorm),
        qkv=weight_of(attention.linear_qkv, ColumnParallelLinear),
        qkv_bias=attention.linear_qkv.bias,
        query_norm=_head_norm(attention.q_layernorm),
        key_norm=_head_norm(attention.k_layernorm),
        projection=weight_of(attention.linear_proj, RowParallelLinear),
        mlp_norm=norm_of(layer.pre_mlp_layernorm),
        feed_forward=feed_forward_of(layer.mlp),
        core_attention=attention.core_attention,
    )


def norm_of(module: Any) -> Norm:
    """Returns a norm with a module's weight."""
    return Norm(module.weight, module.eps)


def _head_norm(module: Any) -> Norm | None:
    return None if isinstance(module, IdentityOp) else norm_of(module)
