"""A language model that transformers runs, as it is, in the place of Megatron's: any architecture, on whole ranks.

Dimensions: B micro batch, S sequence, N samples, C columns with a label, L label positions, D hidden, V vocabulary.
`_SBD` is Megatron's order.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from neva.constants import IGNORE_INDEX
from neva.families import hugging_face
from neva.families.configs import LanguageConfig
from neva.model.packed import PackedSamples, Span
from neva.model.seeding import seed_for
from neva.model.whole_adapters import adapt


class HuggingFaceLanguageModel(MegatronModule):
    """What `LanguageModel` is to the rest of neva; it is whole on every rank.

    Packed samples run one below the other, each padded to the longest: no architecture sees two of them as one.
    """

    sees_whole_images = sees_whole_prompts = ends_early = False
    share_embeddings_and_output_weights = False
    """Megatron has no copies to keep equal: a tied head is the embedding itself."""
    pre_process = post_process = True
    model_type = ModelType.encoder_or_decoder

    def __init__(self, config: TransformerConfig, language: LanguageConfig) -> None:
        super().__init__(config=config)
        self.pg_collection = ProcessGroupCollection.use_mpu_process_groups()
        self.num_layers, self.vocab_size = language.num_layers, language.vocab_size
        seed = torch.initial_seed()
        seed_for(seed, "language_model")
        self.model: Any = hugging_face.build(language)
        torch.manual_seed(seed)
        adapt(self.model, hugging_face.adapted(language), language.lora, hugging_face.MODULE)
        for parameter in self.model.parameters():  # buffers, such as RoPE's frequencies, keep their precision
            parameter.data = parameter.data.to(config.params_dtype)
        self.model.register_state_dict_post_hook(_only_parameters)
        self.model.register_load_state_dict_pre_hook(_with_the_rest)
        if config.recompute_granularity == "full":
            for layer in hugging_face.blocks(self.model, self.num_layers):
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        self.keeps_logits = "logits_to_keep" in signature(self.model.forward).parameters

    @property
    def blocks(self) -> list[nn.Module]:
        """The modules that FSDP may shard one by one."""
        layers = hugging_face.blocks(self.model, self.num_layers)
        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        is_tied = ends[1] is None or ends[0].weight is ends[1].weight
        return layers if is_tied else [*layers, *ends]

    def embed(self, ids_BS: Tensor) -> Tensor:
        """Returns token embeddings [B, S, D]."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids_BS)
        return embeddings

    def forward(
        self,
        decoder_input_SBD: Tensor,
        labels_BS: Tensor | None = None,
        packed: PackedSamples | None = None,
    ) -> Tensor:
        """Returns what `LanguageModel.forward` does on a last stage."""
        embeddings_BSD = decoder_input_SBD.transpose(0, 1)
        if labels_BS is None:
            logits_BSV: Tensor = self.model(inputs_embeds=embeddings_BSD, use_cache=False).logits
            return logits_BSV
        if packed is None:
            return self._losses(embeddings_BSD, labels_BS)
        return self._packed_losses(embeddings_BSD, labels_BS, packed.spans)

    def _losses(self, embeddings_NSD: Tensor, labels_NS: Tensor) -> Tensor:
        """Returns losses [L], first all of the first position, then of the second, …

        The head runs where any of the samples has a label.
        """
        columns_C = (labels_NS != IGNORE_INDEX).any(0).nonzero()[:, 0]
        kept = {"logits_to_keep": columns_C} if self.keeps_logits else {}
        logits_NCV = self.model(inputs_embeds=embeddings_NSD, use_cache=False, **kept).logits
        if not self.keeps_logits:
            logits_NCV = logits_NCV[:, columns_C]
        labels_CN = labels_NS[:, columns_C].t()
        is_label_CN = labels_CN != IGNORE_INDEX
        logits_LV = logits_NCV.transpose(0, 1)[is_label_CN]
        logits_LV = logits_LV.to(torch.promote_types(logits_LV.dtype, torch.float32))
        return F.cross_entropy(logits_LV, labels_CN[is_label_CN], reduction="none")

    def _packed_losses(self, embeddings_BSD: Tensor, labels_BS: Tensor, spans: list[Span]) -> Tensor:
        """Returns the same for rows of several samples."""
        cut = [(span, labels_BS[span.row, span.first : span.end]) for span in spans]
        cut = [(span, labels) for span, labels in cut if bool((labels != IGNORE_INDEX).any())] or cut[:1]
        rows = [embeddings_BSD[span.row, span.first : span.end] for span, _ in cut]
        labels_NS = pad_sequence([labels for _, labels in cut], True, IGNORE_INDEX)
        losses_L = self._losses(pad_sequence(rows, batch_first=True), labels_NS)
        within_L, sample_L = (labels_NS != IGNORE_INDEX).t().nonzero().unbind(1)
        places = torch.tensor([(span.first, span.row) for span, _ in cut], device=labels_BS.device)
        losses_SB = losses_L.new_zeros(labels_BS.t().shape)
        losses_SB[places[sample_L, 0] + within_L, places[sample_L, 1]] = losses_L
        return losses_SB[(labels_BS != IGNORE_INDEX).t()]

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Nothing: there is no stage before."""

    def shared_embedding_or_output_weight(self) -> Tensor:
        """Returns the embedding."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight


def _only_parameters(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leaves each parameter once in a state: neither the second name of a tied one nor buffers."""
    names = {prefix + name for name, _ in module.named_parameters()}
    for name in [name for name in state if name.startswith(prefix) and name not in names]:
        del state[name]


def _with_the_rest(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Gives a state what `_only_parameters` left out, as the module has it."""
    names = {name for name, _ in module.named_parameters()}
    twice = {
        name: weight for name, weight in module.named_parameters(remove_duplicate=False) if name not in names
    }
    first = {id(weight): name for name, weight in module.named_parameters()}
    for name, weight in twice.items():
        state.setdefault(prefix + name, state.get(prefix + first[id(weight)], weight))
    for parent, owner in module.named_modules(prefix=prefix.removesuffix(".")):
        for name in owner._buffers.keys() - owner._non_persistent_buffers_set:
            state.setdefault(f"{parent}.{name}".lstrip("."), owner._buffers[name])
