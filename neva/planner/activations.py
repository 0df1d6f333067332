"""Bytes that a forward pass keeps for its backward pass, and those that are needed for a moment.

Every tensor below is named after the operation of `neva.model` that saves it. Tests count the real saved tensors and
the peak of a forward and a backward pass on a CPU; on a GPU the same operations save the same tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from neva.families.adapters import DOWN, GATE_UP, PROJECTION, QKV, SPLIT_BY_COLUMNS, WHOLE, piece_shape
from neva.families.configs import (
    ALL_HEADS,
    CAPPED_CHUNK,
    LAYER_NORM,
    RMS_NORM_PLUS_ONE,
    padded_vocab_size,
)
from neva.families.hugging_face import adapted
from neva.families.language import layer_shapes
from neva.planner.experts import expert_bytes, gated_bytes
from neva.planner.images import projector_bytes, tower_bytes, towers_moment
from neva.planner.micro_batch import FLOAT_BYTES, MicroBatchSpec
from neva.planner.tensors import (
    LANGUAGE,
    ModelSpec,
    Split,
)


@dataclass(frozen=True)
class SavedActivations:
    """Bytes that one micro batch keeps on a rank until its backward pass."""

    layers: int
    vision_tower: int
    projector: int
    logits: int


@dataclass(frozen=True)
class PeakWorkspace:
    """Bytes that are needed for a moment, never two of them together."""

    vision_tower: int
    logits: int
    layer: int

    @property
    def largest(self) -> int:
        """The highest of the moments."""
        return max(self.vision_tower, self.logits, self.layer)


def saved_activations(model: ModelSpec, split: Split, work: MicroBatchSpec) -> SavedActivations:
    """Counts what one micro batch keeps on a rank of a stage."""
    number, hidden = model.language.num_layers // split.pipeline, _hidden(model, split, work)
    one = layer_bytes(model, split, work)
    if work.recompute == "full" and work.recompute_method == "uniform":
        layers = -(-number // work.recompute_layers) * hidden
    elif work.recompute == "full":
        kept = min(work.recompute_layers, number)
        layers = kept * hidden + (number - kept) * one
    else:
        layers = number * one
    # The last stage has a final norm; the schedule holds what the others sent on.
    layers += _norm_bytes(model, split, work) if split.is_last else hidden
    layers += _wave_bytes(model, work)
    return SavedActivations(
        layers=layers,
        vision_tower=tower_bytes(model, split, work) if split.is_first else 0,
        projector=projector_bytes(model, split, work) if split.is_first else 0,
        logits=_logits_bytes(model, split, work) if split.is_last else 0,
    )


def _wave_bytes(model: ModelSpec, work: MicroBatchSpec) -> int:
    """Bytes of the cosines and sines that all layers turn heads by."""
    sets = 1 + (model.language.form.local_rope_theta is not None)
    return work.sequence_length // work.context * sets * model.language.rotary_dim * work.width


def _hidden(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Bytes of the residual stream."""
    ways = split.tensor if work.sequence_parallel else 1
    return work.tokens * model.language.hidden_size * work.width // ways


def _norm_bytes(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Counts what a norm of the decoder saves."""
    # one kernel everywhere, which keeps mean and deviation of a row
    if model.language.form.norm == LAYER_NORM:
        return _hidden(model, split, work) + 2 * work.tokens * FLOAT_BYTES
    if work.fused_norm:
        kept = FLOAT_BYTES if model.language.form.norm == RMS_NORM_PLUS_ONE else work.width
        return _hidden(model, split, work) * kept // work.width + work.tokens * FLOAT_BYTES
    copies = 1 + (LANGUAGE in model.trained_parts)
    return copies * FLOAT_BYTES * _hidden(model, split, work) // work.width


def layer_bytes(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Counts what one decoder layer saves when it is not recomputed as a whole."""
    hidden = _hidden(model, split, work)
    form, is_trained, experts = model.language.form, LANGUAGE in model.trained_parts, model.language.experts
    norms = 2 * (form.norms_before + form.norms_after)
    total = norms * _norm_bytes(model, split, work) + _attention_bytes(model, split, work)
    # inputs of linear_qkv, and of linear_fc1 or the router
    total += hidden * (_keeps_input(model, QKV) + _keeps_input(model, GATE_UP)) + _factor_bytes(
        model, split, work
    )
    if experts is not None:
        shards = (split.tensor if work.sequence_parallel else 1, split.tensor)
        hidden_size = model.language.hidden_size
        return total + expert_bytes(experts, work.tokens, hidden_size, shards, work.width, is_trained)
    inner = model.language.ffn_hidden_size // split.tensor
    return (
        total
        + gated_bytes(work.tokens, inner, work.width)
        + (work.tokens * inner * work.width * _keeps_input(model, DOWN))
    )


def _keeps_input(model: ModelSpec, site: str) -> bool:
    """Whether a matrix of a layer keeps its input for a gradient: its own, or that of an adapter."""
    lora = model.language.lora
    if LANGUAGE in model.trained_parts or lora is None:
        return LANGUAGE in model.trained_parts
    return model.language.hf_config is not None or site in dict(lora.sites)


def _factor_bytes(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Counts what adapters save between their factors, and before lengths that are learnt."""
    lora = model.language.lora
    if lora is None:
        return 0
    if model.language.hf_config is not None:
        matrices = adapted(model.language).values()
        widths = sum(lora.rank + shape[0] * lora.has_magnitudes for shape in matrices)
        return work.tokens * widths * work.width // model.language.num_layers
    pairs = sum(len(pieces) for _, pieces in lora.sites)
    widths = pairs * lora.rank
    if lora.has_magnitudes:
        widths += sum(_stretched_width(model, split, work, site) for site, _ in lora.sites)
    return work.tokens * widths * work.width


def _stretched_width(model: ModelSpec, split: Split, work: MicroBatchSpec, site: str) -> int:
    """Width of a matrix's product before learnt lengths; with dropout of the input, of what stands for it twice."""
    lora, rows = model.language.lora, piece_shape(model.language, site, WHOLE)[0]
    assert lora is not None
    is_split = work.sequence_parallel if site in SPLIT_BY_COLUMNS else True
    return rows // (split.tensor if is_split else 1) * (2 if lora.dropout and lora.drops_input else 1)


def _attention_bytes(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Counts what lies between the outputs of linear_qkv and the input of linear_proj."""
    language, tokens = model.language, work.tokens
    queries = tokens * language.num_heads * language.head_dim * work.width // split.tensor
    keys = tokens * language.num_query_groups * language.head_dim * work.width // split.tensor
    is_trained, is_kept = _keeps_input(model, PROJECTION), work.recompute != "selective"
    is_gathered = work.context > 1 and is_kept
    # queries after RoPE, and keys; under context parallel those of all ranks
    total = queries + (2 * keys * work.context if is_gathered else keys)
    if not is_gathered or language.qk_norm:
        total += queries + 2 * keys  # output of linear_qkv, which the values are a view of
    if language.qk_norm:
        total += _head_norm_bytes(model, work, queries, keys)
    # Attention's output and the input of linear_proj, which are one tensor where the sequence is whole.
    if language.form.score_cap is not None:  # scores, mask and what is made of them are computed anew
        return total + queries * is_trained
    total += queries * (is_kept + is_trained if work.context > 1 else is_kept or is_trained)
    if is_kept:
        total += tokens * language.num_heads // split.tensor * FLOAT_BYTES  # attention's log sums
    if language.looks_ahead:
        return total + work.tokens * work.sequence_length * work.width
    if language.sliding_window and work.sequence_length > language.sliding_window:
        masked = sum(map(language.has_window, range(language.num_layers)))
        mask = work.sequence_length**2 // work.context * work.width
        total += mask * masked // language.num_layers
    return total


def _head_norm_bytes(model: ModelSpec, work: MicroBatchSpec, queries: int, keys: int) -> int:
    """Counts what norms of queries and keys save beside the output of linear_qkv."""
    language, form = model.language, model.language.form
    is_cast = work.width != FLOAT_BYTES
    # grouped queries are copied before their norm
    copied = queries * (language.num_heads != language.num_query_groups)
    is_written_out = form.qk_norm_over == ALL_HEADS or not work.fused_norm
    if not is_written_out and form.norm != RMS_NORM_PLUS_ONE:
        return copied
    # In float32: what is normed, where it was not, and the result before its weight.
    floats = is_cast + (is_written_out and LANGUAGE in model.trained_parts)
    return copied * (not is_cast) + floats * (queries + keys) * FLOAT_BYTES // work.width


def _logits_bytes(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Softmax over the vocabulary in float32 and the hidden states of the label positions."""
    rows, logits = work.label_tokens * model.language.hidden_size, work.label_tokens * _columns(model, split)
    total = logits * FLOAT_BYTES + rows * work.width * (LANGUAGE in model.trained_parts)
    if model.language.form.logit_cap is not None:
        total += logits * work.width  # its tanh
    return total


def _columns(model: ModelSpec, split: Split) -> int:
    rows = padded_vocab_size(model.language.vocab_size, model.vocab_divisible_by, split.tensor)
    return rows // split.tensor


def peak_workspace(model: ModelSpec, split: Split, work: MicroBatchSpec) -> PeakWorkspace:
    """Estimates the moments: a tower that only runs forward, logits on their way, one layer going backward."""
    language = model.language
    tower = towers_moment(model, split, work) if split.is_first else 0
    logits = 0
    if split.is_last:
        columns = _columns(model, split)
        # In the model's precision, or their gradient; and the gradient of the head before it joins the buffer.
        logits = work.label_tokens * columns * work.width
        if columns * split.tensor != language.vocab_size:
            logits += work.label_tokens * columns * FLOAT_BYTES  # with the padding masked
        logits += columns * language.hidden_size * work.width * (LANGUAGE in model.trained_parts)
    return PeakWorkspace(
        tower, logits, max(_layer_moment(model, split, work), _scores_moment(model, split, work))
    )


def _scores_moment(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Estimates one chunk of attention with a soft cap: scores, their tanh and their shares, and gradients of two."""
    language = model.language
    if language.form.score_cap is None:
        return 0
    heads = work.micro_batch_size * language.num_heads // split.tensor
    return 5 * heads * min(CAPPED_CHUNK, work.sequence_length) * work.sequence_length * work.width


def _layer_moment(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Estimates the backward pass of the last layer's gated activation, or of its largest matrix if that takes more.

    The recomputed unit is there, and gradients of the activation's inputs and outputs; logits, final norm and the
    input of linear_fc2 are gone.
    """
    is_trained = LANGUAGE in model.trained_parts
    hidden = _hidden(model, split, work)
    experts, rows, width = model.language.experts, work.tokens, model.language.ffn_hidden_size
    if experts is not None:
        # of all experts together their copies' hidden states, and the activation of a single one
        hidden += work.tokens * experts.per_token * model.language.hidden_size * work.width
        rows, width = rows * experts.per_token // experts.number, experts.ffn_hidden_size
    inner = rows * width * work.width // split.tensor
    matrix = (
        max(math.prod(shape) for shape in layer_shapes(model.language, split.tensor).values()) * work.width
    )
    total = hidden + max((5 - is_trained) * inner, is_trained * matrix)
    if work.recompute == "full":
        units = work.recompute_layers if work.recompute_method == "uniform" else 1
        total += units * layer_bytes(model, split, replace(work, recompute=None)) - hidden
    if split.is_last:
        total -= _logits_bytes(model, split, work) + _norm_bytes(model, split, work)
    return total
