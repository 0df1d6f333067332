"""Tensors of transformers' `models/{llama,mistral,qwen2,qwen3,…}` and Megatron's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from neva.families.configs import LanguageConfig
from neva.families.decoder_rules import FusedQKV, GatedMLP, JoinedQKV, PaddedVocab
from neva.families.llama.sizes import (
    AFTER_ATTENTION,
    AFTER_MLP,
    BEFORE_ATTENTION,
    BEFORE_MLP,
    FINAL,
    layer_shapes,
    norm_shapes,
)
from neva.families.mapping import Rename, Rule, Shape, Table
from neva.families.naming import LANGUAGE

ROTARY_BUFFERS = r".*\.rotary_emb\.inv_freq"


@dataclass(frozen=True)
class LayerNames:
    """What a layer's tensors are called where relatives of LLaMA differ."""

    norms: Mapping[str, str]
    """Native name of a norm over the hidden size -> its name in a folder."""
    are_joined: bool = False
    """Whether a folder has queries, keys and values in one matrix `qkv_proj`, gate and up in one `gate_up_proj`."""


LLAMA_NAMES = LayerNames({BEFORE_ATTENTION: "input_layernorm", BEFORE_MLP: "post_attention_layernorm"})
NORMS_AFTER = LayerNames(
    {AFTER_ATTENTION: "post_attention_layernorm", AFTER_MLP: "post_feedforward_layernorm"}
)
NORMS_AROUND = LayerNames(
    {BEFORE_ATTENTION: "input_layernorm", BEFORE_MLP: "pre_feedforward_layernorm", **NORMS_AFTER.norms}
)

FeedForwardRules = Callable[[LanguageConfig, str, str], list[Rule]]
"""The rules of a layer's feed-forward part, of its sizes and its prefixes in the folder and here."""


def llama_table(
    language: LanguageConfig,
    body: str,
    head: str,
    hf_rows: int,
    fill_row: int,
    names: LayerNames = LLAMA_NAMES,
    feed_forward: FeedForwardRules | None = None,
) -> Table:
    """Returns the table of a model of LLaMA's make, its norms and biases as `language` says.

    Args:
        language: sizes and form.
        body, head: prefix and name in the Hugging Face folder.
        hf_rows: rows of its vocabulary.
        fill_row: the row that those beyond `language.vocab_size` repeat.
        names: what its layers' tensors are called there.
        feed_forward: returns the rules of a layer's experts; None: there are none.
    """

    def vocab(hf: str, native: str, tied_head: str | None = None) -> PaddedVocab:
        sizes = (language.vocab_size, language.padded_vocab_size, hf_rows, language.hidden_size)
        return PaddedVocab(hf, LANGUAGE + native, *sizes, fill_row, tied_head)

    embedding = "embedding.word_embeddings.weight"
    rules: list[Rule] = [vocab(f"{body}embed_tokens.weight", embedding, head if language.tied else None)]
    for layer in range(language.num_layers):
        hf, native = f"{body}layers.{layer}.", f"{LANGUAGE}decoder.layers.{layer}."
        rules += layer_rules(language, hf, native, names, feed_forward)
    rules += _norm_rules(language, f"{body}norm", FINAL, LANGUAGE)
    if not language.tied:
        rules.append(vocab(head, "output_layer.weight"))
    return Table(tuple(rules), ignored=(ROTARY_BUFFERS,))


def layer_rules(
    language: LanguageConfig,
    hf: str,
    native: str,
    names: LayerNames = LLAMA_NAMES,
    feed_forward: FeedForwardRules | None = None,
) -> list[Rule]:
    """Returns the rules of one layer; `hf` and `native` are its prefixes."""
    shapes = layer_shapes(language)

    def rename(hf_name: str, native_name: str) -> Rename:
        return Rename(
            f"{hf}{hf_name}.weight", f"{native}{native_name}.weight", shapes[f"{native_name}.weight"]
        )

    before = [name for name in (BEFORE_ATTENTION, BEFORE_MLP) if f"{name}.weight" in shapes]
    after = [name for name in (AFTER_ATTENTION, AFTER_MLP) if f"{name}.weight" in shapes]
    norms = {name: _norm_rules(language, hf + names.norms[name], name, native) for name in [*before, *after]}
    transformed = (
        feed_forward(language, hf, native)
        if feed_forward
        else [_gated(language, hf, native, names), rename("mlp.down_proj", "mlp.linear_fc2")]
    )
    rules: list[Rule] = [
        *norms.get(BEFORE_ATTENTION, ()),
        _qkv(language, hf, native, "weight", (language.hidden_size,), names),
        rename("self_attn.o_proj", "self_attention.linear_proj"),
        *norms.get(BEFORE_MLP, ()),
        *transformed,
        *(rule for name in after for rule in norms[name]),
    ]
    if language.qkv_bias:
        rules.append(_qkv(language, hf, native, "bias", (), names))
    if language.qk_norm:
        rules += [rename(f"self_attn.{part}_norm", f"self_attention.{part}_layernorm") for part in "qk"]
    return rules


def _norm_rules(language: LanguageConfig, hf: str, name: str, native: str) -> list[Rule]:
    """Returns the rules of a norm over the hidden size; `native` is the prefix of `name`."""
    return [
        Rename(f"{hf}.{full.rpartition('.')[2]}", native + full, shape)
        for full, shape in norm_shapes(language, name).items()
    ]


def _qkv(
    language: LanguageConfig, hf: str, native: str, kind: str, columns: Shape, names: LayerNames
) -> Rule:
    fused = f"{native}self_attention.linear_qkv.{kind}"
    sizes = (language.num_heads, language.num_query_groups, language.head_dim, columns)
    q, k, v = (f"{hf}self_attn.{part}_proj.{kind}" for part in "qkv")
    apart = FusedQKV((q, k, v), fused, *sizes)
    return JoinedQKV(f"{hf}self_attn.qkv_proj.{kind}", apart) if names.are_joined else apart


def _gated(language: LanguageConfig, hf: str, native: str, names: LayerNames) -> Rule:
    fused, rows, columns = f"{native}mlp.linear_fc1.weight", language.ffn_hidden_size, language.hidden_size
    if names.are_joined:
        return Rename(f"{hf}mlp.gate_up_proj.weight", fused, (2 * rows, columns))
    gate, up = (f"{hf}mlp.{part}_proj.weight" for part in ("gate", "up"))
    return GatedMLP((gate, up), fused, (rows, columns))
