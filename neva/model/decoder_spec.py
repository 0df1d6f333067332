"""What the decoder is made of: Megatron's parallel layers with our attention and norms, and their configuration."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from neva.families.adapters import DOWN, GATE_UP, PROJECTION, QKV
from neva.families.configs import EACH_HEAD, GELU_TANH, LAYER_NORM, SILU, LanguageConfig
from neva.model.adapted import with_adapter
from neva.model.attention import SDPAttention
from neva.model.experts import ExpertLayer, expert_fields, experts_spec
from neva.model.norms import norm_of_form, qk_norm
from neva.model.seeding import SeededLayer
from neva.model.self_attention import DecoderAttention

ACTIVATIONS = {SILU: F.silu, GELU_TANH: partial(F.gelu, approximate="tanh")}


def block_spec(
    config: TransformerConfig, language: LanguageConfig, seed: int, virtual_stage: int | None = None
) -> TransformerBlockSubmodules:
    """Returns the layers of this pipeline stage, made of Megatron's parallel layers and our attention and norm.

    `seed` is that of the initial weights.
    """
    layers = get_num_layers_to_build(config, virtual_stage)
    first = get_transformer_layer_offset(config, virtual_stage)
    specs = [layer_spec(language, seed, first + number) for number in range(layers)]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=norm_of_form(language))


def layer_spec(language: LanguageConfig, seed: int, number: int) -> ModuleSpec:
    """Returns the layer of that number in the whole model, counted from 0."""
    norm, form = norm_of_form(language), language.form
    norm_before = norm if form.norms_before else IdentityOp

    def matrix(kind: type, site: str) -> ModuleSpec:
        return with_adapter(kind, language, site, number, seed)

    feed_forward = ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(
            linear_fc1=matrix(ColumnParallelLinear, GATE_UP), linear_fc2=matrix(RowParallelLinear, DOWN)
        ),
    )
    return ModuleSpec(
        module=SeededLayer if language.experts is None else ExpertLayer,
        params={"seed": seed, "norm_after": norm if form.norms_after else None},
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm_before,
            self_attention=ModuleSpec(
                module=DecoderAttention,
                params={"attn_mask_type": AttnMaskType.causal, "language": language},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=partial(build_module, matrix(ColumnParallelLinear, QKV)),
                    core_attention=partial(SDPAttention, language=language),
                    linear_proj=matrix(RowParallelLinear, PROJECTION),
                    q_layernorm=qk_norm(language, language.num_heads),
                    k_layernorm=qk_norm(language, language.num_query_groups),
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm_before,
            mlp=feed_forward if language.experts is None else experts_spec(),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def transformer_config(language: LanguageConfig, **overrides: object) -> TransformerConfig:
    """Returns Megatron's configuration of a decoder.

    Args:
        language: sizes of the model.
        overrides: fields of Megatron's `TransformerConfig`: parallel sizes, dtype, recomputation, initialisation.
    """
    form = language.form
    fields: dict[str, object] = {
        "num_layers": language.num_layers,
        "hidden_size": language.hidden_size,
        "ffn_hidden_size": language.ffn_hidden_size,
        "num_attention_heads": language.num_heads,
        "num_query_groups": language.num_query_groups,
        "kv_channels": language.head_dim,
        "normalization": "LayerNorm" if form.norm == LAYER_NORM else "RMSNorm",
        "layernorm_epsilon": language.rms_norm_eps,
        "gated_linear_unit": True,
        "activation_func": ACTIVATIONS[form.activation],
        "add_bias_linear": False,
        "add_qkv_bias": language.qkv_bias,
        # Megatron sums the gradients of such norms over tensor-parallel ranks, unless they are sharded themselves.
        "qk_layernorm": language.qk_norm and form.qk_norm_over == EACH_HEAD,
        "softmax_scale": None if form.query_scalar is None else form.query_scalar**-0.5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        # Weights are drawn on the CPU as a whole and then sharded: every layout starts from the same numbers.
        "use_cpu_initialization": True,
        # These kernels need Apex or Transformer Engine.
        "masked_softmax_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        # The loss of a step is a sum over label tokens; Megatron divides gradients by their global number.
        "calculate_per_token_loss": True,
        # Checkpoints name every layer, so that a layer can be found by its name in any layout.
        "hetereogenous_dist_checkpoint": True,
        **expert_fields(language),
    }
    # Interleaved stages send both ways between the same two ranks; batched messages would be mistaken for each other.
    is_interleaved = overrides.get("virtual_pipeline_model_parallel_size") is not None
    fields |= {"overlap_p2p_comm": is_interleaved, "batch_p2p_comm": not is_interleaved}
    return TransformerConfig(**{**fields, **overrides})
