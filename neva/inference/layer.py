"""The weights of a decoder layer, taken once from Megatron's modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor


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
    gate_up: Tensor
    down: Tensor
    core_attention: Any


def weights_of(layer: Any) -> LayerWeights:
    """Returns the weights of one of Megatron's layers."""
    attention, mlp = layer.self_attention, layer.mlp
    return LayerWeights(
        attention_norm=norm_of(layer.input_layernorm),
        qkv=_weight(attention.linear_qkv, ColumnParallelLinear),
        qkv_bias=attention.linear_qkv.bias,
        query_norm=_head_norm(attention.q_layernorm),
        key_norm=_head_norm(attention.k_layernorm),
        projection=_weight(attention.linear_proj, RowParallelLinear),
        mlp_norm=norm_of(layer.pre_mlp_layernorm),
        gate_up=_weight(mlp.linear_fc1, ColumnParallelLinear),
        down=_weight(mlp.linear_fc2, RowParallelLinear),
        core_attention=attention.core_attention,
    )


def norm_of(module: Any) -> Norm:
    """Returns a norm with a module's weight."""
    return Norm(module.weight, module.eps)


def _head_norm(module: Any) -> Norm | None:
    return None if isinstance(module, IdentityOp) else norm_of(module)


def _weight(module: Any, kind: type) -> Tensor:
    """What is no plain linear layer (an adapter) has arithmetic of its own, which must not be passed over."""
    found = type(module)
    assert found is kind, f"found {found.__name__}, expected {kind.__name__}"
    weight: Tensor = module.weight
    return weight
