"""The language model while it generates: the weights of Megatron's layers in the fewest operators, with a cache.

Training runs Megatron's modules; here their bookkeeping for each layer and token would take longer than the arithmetic
of a small model. The two are held equal by tests that compare both with transformers.

Dimensions: T tokens of all rows one after another, R rows, G query groups of this rank, Q queries of a group, D head
size, K key positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor

from neva.distributed.pipeline import StageLink
from neva.inference.cache import KeyValueCache
from neva.inference.layer import LayerWeights, norm_of, weights_of
from neva.inference.linear import VocabularyHead, linear
from neva.inference.rotary import RotaryTable, turn
from neva.model.llava import AnyLanguageModel, NevaModel
from neva.model.merge import merge, text_ids
from neva.model.packed import Rows
from neva.model.seen_together import whole_images, whole_prompts


@dataclass(frozen=True)
class _Step:
    """What all layers share: tokens' cos and sin, where their keys go, and how they attend."""

    cache: KeyValueCache
    waves: Sequence[tuple[Tensor, Tensor]]  # cos and sin [T, 1, 1, R] of each set of angles
    slots: Tensor
    lengths: Sequence[int] | None  # of whole prompts; None: one token a row
    rows: int
    keys: int
    masks_R11K: Mapping[int | None, Tensor | None]  # by the window of a layer
    told: Sequence[Rows | None]  # of each whole prompt


class Decoder:
    """Prompts in, then a token of every row at a time; each step returns the logits of what follows.

    Tensor-parallel ranks and pipeline stages all call it with the same prompts and tokens, and all have the logits.

    Args:
        model: this rank's pipeline stage in eval mode, whose weights stay as they are.
    """

    def __init__(self, model: NevaModel) -> None:
        self.model, self.language = model, model.language_model
        self.tensor_group = self.language.pg_collection.tp
        self.layers = [weights_of(layer) for layer in self.language.decoder.layers]
        self.stage = StageLink()
        if self.stage.is_last:
            self.final_norm = norm_of(self.language.decoder.final_layernorm)
            self.head = VocabularyHead(self.language.output_weight)
        attention = self.language.decoder.layers[0].self_attention
        self.groups = attention.num_query_groups_per_partition
        self.head_size = attention.hidden_size_per_attention_head
        self.queries = attention.num_attention_heads_per_partition // self.groups
        weight = self.layers[0].qkv
        self.dtype, self.device = weight.dtype, weight.device
        self._rotary = RotaryTable(self.language.rotary, weight)
        self.turning_length: int | None = self.language.rotary.turning_length
        self._windows = {layer.core_attention.window for layer in self.layers}

    def cache(self, rows: int) -> KeyValueCache:
        """Returns an empty cache for that many answers at a time."""
        return KeyValueCache(len(self.layers), rows, self.groups, self.head_size, self.dtype, self.device)

    def prefill(
        self,
        cache: KeyValueCache,
        rows: Sequence[int],
        prompts: Sequence[Tensor],
        features: Sequence[Tensor],
        room: int,
        prefixes: Sequence[int] | None = None,
    ) -> Tensor:
        """Reads prompts.

        Args:
            cache: of this decoder.
            rows: where they go; a row's former tokens are forgotten.
            prompts: ids [S] of each, `IMAGE_TOKEN_ID` at image positions.
            features: [F, D] at the image positions of each, in reading order.
            room: tokens that will follow each.
            prefixes: tokens of each that stand before its first answer; None: all.

        Returns:
            Logits [prompts, V] of their first new tokens.
        """
        lengths = [len(prompt) for prompt in prompts]
        ids_1T = torch.cat(list(prompts))[None]
        positions = torch.cat([torch.arange(length) for length in lengths]).to(ids_1T.device)
        rows_T = torch.tensor(rows).repeat_interleave(torch.tensor(lengths)).to(ids_1T.device)
        cache.reserve(max(lengths) + room)
        step = self._step(
            cache, rows_T, positions, lengths, len(rows), max(lengths), {}, self._told(prompts, prefixes)
        )
        embedded = embedded_prompts(self.language, ids_1T, features)[0] if self.stage.is_first else None
        ends = torch.tensor(lengths, device=ids_1T.device).cumsum(0) - 1
        return self._logits(self._run(embedded, ids_1T.size(1), step), ends)

    def _told(self, prompts: Sequence[Tensor], prefixes: Sequence[int] | None) -> list[Rows | None]:
        """Returns what layers are told of each prompt, as in training."""
        group = self.language.pg_collection.cp
        if self.language.sees_whole_prompts:
            lengths = prefixes or [len(prompt) for prompt in prompts]
            return [
                Rows(together=whole_prompts(prompt[None], None, [[prefix]], group))
                for prompt, prefix in zip(prompts, lengths, strict=True)
            ]
        if not self.language.sees_whole_images:
            return [None] * len(prompts)
        found = [whole_images(prompt[None], None, group) for prompt in prompts]
        return [None if images is None else Rows(together=images) for images in found]

    def decode(self, cache: KeyValueCache, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Adds one token to each of the first rows, at its position, and returns logits [R, V] of the next ones."""
        device, keys = self.device, max(positions) + 1
        cache.reserve(keys)
        positions_R = torch.tensor(positions, device=device)
        masks = {}
        for window in self._windows:
            masks[window] = self._mask(positions_R, keys, min(positions), window)
        step = self._step(
            cache, torch.arange(len(tokens), device=device), positions_R, None, len(tokens), keys, masks
        )
        ids = torch.tensor(tokens, device=device)
        embedded = self.language.embed(ids) if self.stage.is_first else None
        return self._logits(self._run(embedded, len(tokens), step), slice(None))

    def _mask(self, positions_R: Tensor, keys: int, first: int, window: int | None) -> Tensor | None:
        """Returns what is added to the scores: minus infinity behind a row's token, and in front of a window.

        `first` is the least of the positions. None: all keys are seen.
        """
        if first + 1 == keys and keys <= (window or keys):
            return None
        distance_RK = positions_R[:, None] - torch.arange(keys, device=positions_R.device)
        hidden_RK = distance_RK < 0
        if window is not None:
            hidden_RK |= distance_RK >= window
        mask = torch.zeros(hidden_RK.shape, dtype=self.dtype, device=hidden_RK.device)
        return mask.masked_fill_(hidden_RK, -torch.inf)[:, None, None]

    def _step(
        self,
        cache: KeyValueCache,
        rows_T: Tensor,
        positions_T: Tensor,
        lengths: Sequence[int] | None,
        rows: int,
        keys: int,
        masks: Mapping[int | None, Tensor | None],
        told: Sequence[Rows | None] = (),
    ) -> _Step:
        if lengths is None:
            waves = self._rotary.at(positions_T, cache.capacity)
        else:
            waves = self._rotary.of_whole(lengths, positions_T, cache.capacity)
        return _Step(cache, waves, cache.slots(rows_T, positions_T), lengths, rows, keys, masks, told)

    def _run(self, embedded_TH: Tensor | None, tokens: int, step: _Step) -> Tensor:
        """Returns the hidden states [T, H] behind the last layer of this stage, which the next one is sent."""
        shape = (tokens, self.language.config.hidden_size)
        hidden_TH = (
            self.stage.received(shape, self.dtype, self.device) if embedded_TH is None else embedded_TH
        )
        for number, layer in enumerate(self.layers):
            normed = layer.attention_norm(hidden_TH) if layer.attention_norm else hidden_TH
            added = self._summed(linear(self._attend(number, layer, normed, step), layer.projection))
            hidden_TH = hidden_TH + (layer.attended_norm(added) if layer.attended_norm else added)
            normed = layer.mlp_norm(hidden_TH) if layer.mlp_norm else hidden_TH
            added = self._summed(layer.feed_forward(normed))
            hidden_TH = hidden_TH + (layer.transformed_norm(added) if layer.transformed_norm else added)
        if not self.stage.is_last:
            self.stage.send(hidden_TH)
        return hidden_TH

    def _attend(self, number: int, layer: LayerWeights, normed_TH: Tensor, step: _Step) -> Tensor:
        """Returns [T, G * Q * D]."""
        qkv = linear(normed_TH, layer.qkv, layer.qkv_bias)
        qkv_TGhD = qkv.view(len(qkv), self.groups, self.queries + 2, self.head_size)  # h: queries, key, value
        if layer.query_norm is not None and layer.key_norm is not None:
            queries = qkv_TGhD[:, :, :-2]  # heads in one dimension: a norm may be over all of them
            qkv_TGhD[:, :, :-2] = layer.query_norm(queries.flatten(1, 2)).view_as(queries)
            qkv_TGhD[:, :, -2] = layer.key_norm(qkv_TGhD[:, :, -2])
        turn(qkv_TGhD[:, :, :-1], *step.waves[layer.angles])
        step.cache.write(number, step.slots, qkv_TGhD[:, :, -2:])
        if step.lengths is not None:
            parts = zip(qkv_TGhD.split(step.lengths), step.told, strict=True)
            return torch.cat([self._prompt(layer, part, told) for part, told in parts])
        key, value = step.cache.read(number, step.rows, step.keys)
        return layer.core_attention.of_last(
            qkv_TGhD[:, :, :-2], key, value, step.masks_R11K[layer.core_attention.window]
        )

    def _prompt(self, layer: LayerWeights, qkv_SGhD: Tensor, told: Rows | None) -> Tensor:
        """Returns the attention [S, G * Q * D] of one prompt, as in training."""
        query_S1hD = qkv_SGhD[:, :, :-2].flatten(1, 2)[:, None]
        key_S1GD, value_S1GD = qkv_SGhD[:, None, :, -2:].unbind(3)
        attended_S1: Tensor = layer.core_attention(
            query_S1hD, key_S1GD, value_S1GD, None, packed_seq_params=told
        )
        return attended_S1[:, 0]

    def _summed(self, partial: Tensor) -> Tensor:
        if self.tensor_group.size() == 1:
            return partial
        return reduce_from_tensor_model_parallel_region(partial, self.tensor_group)

    def _logits(self, hidden_TH: Tensor, wanted: Tensor | slice) -> Tensor:
        """Returns logits [R, V] over the whole vocabulary, without its padding, behind the tokens that are wanted."""
        hidden_RH, vocabulary, logits = hidden_TH[wanted], self.language.vocab_size_without_padding, None
        if self.stage.is_last:
            assert self.final_norm is not None
            logits = self.language.capped(self.head(self.final_norm(hidden_RH)))
            if self.tensor_group.size() > 1:
                logits = gather_from_tensor_model_parallel_region(logits, self.tensor_group)
            logits = logits[:, :vocabulary]
        return self.stage.of_last(logits, (len(hidden_RH), vocabulary), self.device)


def embedded_prompts(language: AnyLanguageModel, ids_1T: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Returns embeddings [1, T, H] with image features at their positions."""
    hidden_1TH = language.embed(text_ids(ids_1T))
    if shown := [images for images in features if len(images)]:
        hidden_1TH = merge(hidden_1TH, ids_1T, torch.cat(shown))
    return hidden_1TH
