"""The language model: a Megatron `GPTModel` with LLaMA-type layers.

Dimensions: B micro batch, S sequence, L label positions, D hidden, V vocabulary (of this tensor-parallel rank where
logits are parallel). `_SBD` is Megatron's order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor, nn

from neva.constants import IGNORE_INDEX
from neva.errors import ConfigError
from neva.families.configs import LanguageConfig
from neva.model.attention import RMSNorm, SDPAttention
from neva.model.experts import ExpertLayer, expert_fields, experts_spec
from neva.model.packed import PackedSamples, Rows
from neva.model.seeding import SeededLayer, seed_for


class LanguageModel(GPTModel):
    """A decoder that computes logits only where they are wanted."""

    def __init__(
        self,
        config: TransformerConfig,
        language: LanguageConfig,
        pre_process: bool,
        post_process: bool,
        virtual_stage: int | None = None,
    ) -> None:
        seed = torch.initial_seed()
        seed_for(seed, "language_model.embedding")
        super().__init__(
            config=config,
            transformer_layer_spec=block_spec(config, language, seed, virtual_stage),
            vocab_size=language.padded_vocab_size,
            max_sequence_length=language.max_positions,
            pre_process=pre_process,
            post_process=post_process,
            parallel_output=True,
            share_embeddings_and_output_weights=language.tied,
            position_embedding_type="rope",
            rotary_base=language.rope_theta,  # a float serves: Hugging Face's bases are floats
            # The merge needs whole sequences; under sequence parallel it scatters afterwards.
            scatter_embedding_sequence_parallel=False,
            vp_stage=virtual_stage,
        )
        torch.manual_seed(seed)  # the next virtual stage of a pipeline starts from the same seed
        self.vocab_size_without_padding = language.vocab_size
        self.window = language.sliding_window
        scale_rope(self.rotary_pos_emb, language)
        if post_process:
            self.output_layer.sequence_parallel = False  # `_output` gathers before it selects positions

    def embed(self, ids_BS: Tensor) -> Tensor:
        """Returns token embeddings [B, S, D]."""
        return self.embedding.word_embeddings(ids_BS)

    @property
    def blocks(self) -> list[nn.Module]:
        """The modules that FSDP may shard one by one."""
        ends = (
            []
            if self.share_embeddings_and_output_weights
            else [self.embedding.word_embeddings, self.output_layer]
        )
        return [*self.decoder.layers, *ends]

    @property
    def output_weight(self) -> Tensor:
        """The weight [V, D] of the head; the embedding's where they are tied."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight

    def forward(
        self,
        decoder_input_SBD: Tensor | None,
        labels_BS: Tensor | None = None,
        rows: Rows | None = None,
    ) -> Tensor:
        """Runs the layers of this pipeline stage.

        Args:
            decoder_input_SBD: embeddings after the merge; None on later stages, whose input the schedule sets.
            labels_BS: targets, already shifted, `IGNORE_INDEX` where there is no loss.
            rows: what layers are told of them; None: each is one sample.

        Returns:
            Hidden states before the last stage; on it: losses [L] in float32 of the L label positions in reading
            order when labels are given, else logits [B, S, V].
        """
        length = self.rotary_pos_emb.get_rotary_seq_len(
            None, self.decoder, decoder_input_SBD, self.config, None
        )
        hidden_SBD = self.decoder(
            hidden_states=decoder_input_SBD,
            attention_mask=None,
            rotary_pos_emb=self._rotary(length, rows),
            packed_seq_params=rows,
        )
        if not self.post_process:
            return hidden_SBD
        return self._output(hidden_SBD, labels_BS)

    def _rotary(self, length: int, rows: Rows | None) -> Tensor:
        """Returns the rotary angles [s, 1, 1, D] of this rank's positions, or [s, B, 1, D] of those in each sample."""
        if not isinstance(rows, PackedSamples):
            return self.rotary_pos_emb(length)
        whole_S11D = self.rotary_pos_emb(length, packed_seq=True)  # not this rank's shard
        return whole_S11D[:, 0][rows.positions_sB]

    def _output(self, hidden_SBD: Tensor, labels_BS: Tensor | None) -> Tensor:
        if self.config.sequence_parallel:
            # The output layer's own backward already sums over the tensor-parallel ranks.
            hidden_SBD = gather_from_sequence_parallel_region(hidden_SBD, tensor_parallel_output_grad=False)
        if labels_BS is not None:
            is_label_SB = (labels_BS != IGNORE_INDEX).t()
            logits_LV = self._logits(hidden_SBD[is_label_SB])
            logits_LV = self._without_padding(
                logits_LV.to(torch.promote_types(logits_LV.dtype, torch.float32))
            )
            return vocab_parallel_cross_entropy(logits_LV, labels_BS.t()[is_label_SB])
        return self._gathered(hidden_SBD.transpose(0, 1))

    def _logits(self, hidden: Tensor, gather: bool = False) -> Tensor:
        weight = (
            self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        )
        return self.output_layer(hidden, weight=weight, runtime_gather_output=gather)[0]

    def _without_padding(self, logits_LV: Tensor) -> Tensor:
        """Takes the padding rows of the vocabulary out of the softmax: their number depends on the layout."""
        first_column = self.pg_collection.tp.rank() * logits_LV.size(-1)
        num_valid = max(0, self.vocab_size_without_padding - first_column)
        if num_valid >= logits_LV.size(-1):
            return logits_LV
        is_padding_V = torch.arange(logits_LV.size(-1), device=logits_LV.device) >= num_valid
        return logits_LV.masked_fill(is_padding_V, -torch.inf)

    def _gathered(self, hidden: Tensor) -> Tensor:
        """Returns logits over the whole vocabulary, without its padding, on every rank."""
        return self._logits(hidden, gather=True)[..., : self.vocab_size_without_padding]


def block_spec(
    config: TransformerConfig, language: LanguageConfig, seed: int, virtual_stage: int | None = None
) -> TransformerBlockSubmodules:
    """Returns the layers of this pipeline stage, made of Megatron's parallel layers and our attention and norm.

    `seed` is that of the initial weights.
    """
    qk_norm = RMSNorm if language.qk_norm else IdentityOp
    feed_forward = ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
    )
    layer = ModuleSpec(
        module=SeededLayer if language.experts is None else ExpertLayer,
        params={"seed": seed},
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=SDPAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=qk_norm,
                    k_layernorm=qk_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=feed_forward if language.experts is None else experts_spec(),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, virtual_stage), layer_norm=RMSNorm
    )


def scale_rope(rotary: Any, language: LanguageConfig) -> None:
    """Applies a `rope_scaling` of Hugging Face's kinds `linear` and `llama3` to Megatron's frequencies.

    Raises:
        ConfigError: for a kind that is not one of the two.
    """
    scaling = language.rope_scaling
    if scaling is None:
        return
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        rotary.inv_freq = rotary.inv_freq / scaling["factor"]
    elif kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rotary.inv_freq = rotary._apply_scaling(rotary.inv_freq, **{name: scaling[name] for name in names})
    elif kind != "default":
        raise ConfigError(f"rope_scaling: found rope_type {kind!r}, expected 'linear', 'llama3' or 'default'")


def transformer_config(language: LanguageConfig, **overrides: object) -> TransformerConfig:
    """Returns Megatron's configuration of a LLaMA-type decoder.

    Args:
        language: sizes of the model.
        overrides: fields of Megatron's `TransformerConfig`: parallel sizes, dtype, recomputation, initialisation.
    """
    fields: dict[str, object] = {
        "num_layers": language.num_layers,
        "hidden_size": language.hidden_size,
        "ffn_hidden_size": language.ffn_hidden_size,
        "num_attention_heads": language.num_heads,
        "num_query_groups": language.num_query_groups,
        "kv_channels": language.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": language.rms_norm_eps,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "add_qkv_bias": language.qkv_bias,
        "qk_layernorm": language.qk_norm,
        "window_size": (language.sliding_window - 1, 0) if language.sliding_window else None,
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
