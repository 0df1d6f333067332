"""The language model: a Megatron `GPTModel` with layers of LLaMA's make and its relatives'.

Dimensions: B micro batch, S sequence, L label positions, D hidden, V vocabulary (of this tensor-parallel rank where
logits are parallel). `_SBD` is Megatron's order.
"""

from __future__ import annotations

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from neva.constants import IGNORE_INDEX
from neva.families.configs import LanguageConfig
from neva.model.context import positions
from neva.model.decoder_spec import block_spec
from neva.model.packed import PackedSamples, Rows
from neva.model.rotary import Rotary
from neva.model.seeding import seed_for


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
