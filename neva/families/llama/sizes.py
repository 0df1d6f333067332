"""Shapes of a decoder layer in Megatron."""

from __future__ import annotations

from neva.families.configs import ALL_HEADS, LAYER_NORM, LanguageConfig
from neva.families.mapping import Shape

BEFORE_ATTENTION, BEFORE_MLP = "input_layernorm", "pre_mlp_layernorm"
AFTER_ATTENTION, AFTER_MLP = "post_self_attn_layernorm", "post_mlp_layernorm"
FINAL = "decoder.final_layernorm"
"""Native names of the norms, those behind a layer's parts as in later versions of Megatron."""


def norm_shapes(language: LanguageConfig, name: str) -> dict[str, Shape]:
    """Returns names and shapes of a norm over the hidden size."""
    kinds = ("weight", "bias") if language.form.norm == LAYER_NORM else ("weight",)
    return {f"{name}.{kind}": (language.hidden_size,) for kind in kinds}


def layer_shapes(language: LanguageConfig, tensor_parallel_size: int = 1) -> dict[str, Shape]:
    """Returns names and shapes of one layer on a tensor-parallel rank, in the module's order."""
    form, hidden, queries = language.form, language.hidden_size, language.num_heads * language.head_dim
    keys = language.num_query_groups * language.head_dim
    qkv = (queries + 2 * keys) // tensor_parallel_size
    inner = language.ffn_hidden_size // tensor_parallel_size
    shapes: dict[str, Shape] = norm_shapes(language, BEFORE_ATTENTION) if form.norms_before else {}
    shapes |= {
        "self_attention.linear_proj.weight": (hidden, queries // tensor_parallel_size),
        "self_attention.linear_qkv.weight": (qkv, hidden),
    }
    if language.qkv_bias:
        shapes["self_attention.linear_qkv.bias"] = (qkv,)
    if language.qk_norm:
        widths = (language.head_dim, language.head_dim)
        if form.qk_norm_over == ALL_HEADS:
            widths = (queries // tensor_parallel_size, keys // tensor_parallel_size)
        for part, width in zip("qk", widths, strict=True):
            shapes[f"self_attention.{part}_layernorm.weight"] = (width,)
    if form.norms_before:
        shapes |= norm_shapes(language, BEFORE_MLP)
    shapes |= {"mlp.linear_fc1.weight": (2 * inner, hidden), "mlp.linear_fc2.weight": (hidden, inner)}
    if form.norms_after:
        shapes |= norm_shapes(language, AFTER_ATTENTION) | norm_shapes(language, AFTER_MLP)
    return shapes
