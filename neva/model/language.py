"""The language model: a Megatron `GPTModel` with layers of LLaMA's make and its relatives'.

Dimensions: B micro batch, S sequence, L label positions, D hidden, V vocabulary (of this tensor-parallel rank where
logits are parallel). `_SBD` is Megatron's order.
"""

from __future__ import annotations

from functools import partial

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
from torch import Tensor, nn

from neva.constants import IGNORE_INDEX
from neva.families.adapters import DOWN, GATE_UP, PROJECTION, QKV
from neva.families.configs import EACH_HEAD, GELU_TANH, LAYER_NORM, SILU, LanguageConfig
from neva.model.adapted import with_adapter
from neva.model.attention import SDPAttention
from neva.model.context import positions
from neva.model.experts import ExpertLayer, expert_fields, experts_spec
from neva.model.norms import norm_of_form, qk_norm
from neva.model.packed import PackedSamples, Rows
from neva.model.rotary import Rotary
from neva.model.seeding import SeededLayer, seed_for
from neva.model.self_attention import DecoderAttention


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
            position_embedding_type="none",  # of Megatron's: `Rotary` has the angles
            # The merge needs whole sequences; under sequence parallel it scatters afterwards.
            scatter_embedding_sequence_parallel=False,
            vp_stage=virtual_stage,
        )
        torch.manual_seed(seed)  # the next virtual stage of a pipeline starts from the same seed
        self.vocab_size_without_padding = language.vocab_size
        self.rotary = Rotary(language)
        self.form, self.sees_whole_images = language.form, language.sees_whole_images
        # Of a recomputed layer whose input needs no gradient, torch would compute none of its adapters' either.
        self.input_needs_gradient = language.lora is not None and config.recompute_granularity == "full"
        self.sees_whole_prompts = language.sees_whole_prompts
        # shards of a sequence are of one size
        is_whole = not config.sequence_parallel and self.pg_collection.cp.size() == 1
        self.ends_early = is_whole and language.ends_early
        if post_process:
            self.output_layer.sequence_parallel = False  # `_output` gathers before it selects positions

    def embed(self, ids_BS: Tensor) -> Tensor:
        """Returns token embeddings [B, S, D]."""
        embedded_BSD = self.embedding.word_embeddings(ids_BS)
        if self.form.scales_embeddings:  # by a number of the model's precision, as transformers does
            embedded_BSD = embedded_BSD * embedded_BSD.new_tensor(self.config.hidden_size**0.5)
        return embedded_BSD

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
        if decoder_input_SBD is not None and self.input_needs_gradient and self.training:
            decoder_input_SBD = with_gradient(decoder_input_SBD)
        hidden_SBD = self.decoder(
            hidden_states=decoder_input_SBD,
            attention_mask=None,
            rotary_pos_emb=self._waves(decoder_input_SBD, rows),
            packed_seq_params=rows,
        )
        if not self.post_process:
            return hidden_SBD
        return self._output(hidden_SBD, labels_BS)

    def _waves(self, decoder_input_SBD: Tensor | None, rows: Rows | None) -> Tensor:
        """Returns waves [s, 1, 1, T * R] of this rank's positions, or [s, B, 1, T * R] of those in each sample.

        Where they depend on the length of a sequence, that is the length of the rows, or of their longest sample.
        """
        hidden = self.decoder.input_tensor if decoder_input_SBD is None else decoder_input_SBD
        group = self.pg_collection.cp
        ways = self.pg_collection.tp.size() if self.config.sequence_parallel else 1
        if isinstance(rows, PackedSamples):
            return self.rotary.waves(rows.longest, hidden)[:, 0][rows.positions_sB]
        length = hidden.size(0) * ways * group.size()
        whole_S11D, shard = self.rotary.waves(length, hidden), positions(length, group, hidden.device)
        return whole_S11D if shard is None else whole_S11D[shard]

    def _output(self, hidden_SBD: Tensor, labels_BS: Tensor | None) -> Tensor:
        if self.config.sequence_parallel:
            # The output layer's own backward already sums over the tensor-parallel ranks.
            hidden_SBD = gather_from_sequence_parallel_region(hidden_SBD, tensor_parallel_output_grad=False)
        if labels_BS is not None:
            labels_BS = labels_BS[:, labels_BS.size(1) - hidden_SBD.size(0) :]  # before them there is none
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
        return self.capped(self.output_layer(hidden, weight=weight, runtime_gather_output=gather)[0])

    def capped(self, logits: Tensor) -> Tensor:
        """Returns logits with the soft cap of the form, if it has one."""
        cap = self.form.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

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


def with_gradient(hidden: Tensor) -> Tensor:
    """Returns `hidden` as it is where its gradient is computed or none is, else so that it will be."""
    needs_one = torch.is_grad_enabled() and not hidden.requires_grad
    return hidden.detach().requires_grad_() if needs_one else hidden


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


ACTIVATIONS = {SILU: F.silu, GELU_TANH: partial(F.gelu, approximate="tanh")}


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
