"""Shapes of a LLaMA-type layer in Megatron."""

from __future__ import annotations

from neva.families.configs import LanguageConfig
from neva.families.mapping import Shape


def layer_shapes(language: LanguageConfig, tensor_parallel_size: int = 1) -> dict[str, Shape]:
    """Returns names and shapes of one layer on a tensor-parallel rank, in the module's order."""
    hidden, queries = language.hidden_size, language.num_heads * language.head_dim
    qkv = (queries + 2 * language.num_query_groups * language.head_dim) // tensor_parallel_size
    inner = language.ffn_hidden_size // tensor_parallel_size
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "self_attention.linear_proj.weight": (hidden, queries // tensor_parallel_size),
        "self_attention.linear_qkv.weight": (qkv, hidden),
    }
    if language.qkv_bias:
        shapes["self_attention.linear_qkv.bias"] = (qkv,)
    if language.qk_norm:
        shapes |= {f"self_attention.{part}_layernorm.weight": (language.head_dim,) for part in "qk"}
    return shapes | {
        "pre_mlp_layernorm.weight": (hidden,),
        "mlp.linear_fc1.weight": (2 * inner, hidden),
        "mlp.linear_fc2.weight": (hidden, inner),
    }
