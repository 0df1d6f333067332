"""Tensors of transformers' `models/{llama,mistral,qwen2,qwen3}` and Megatron's."""

from __future__ import annotations

from collections.abc import Callable

from neva.families.configs import LanguageConfig
from neva.families.llama.sizes import layer_shapes
from neva.families.mapping import FusedQKV, GatedMLP, PaddedVocab, Rename, Rule, Shape, Table
from neva.families.naming import LANGUAGE

ROTARY_BUFFERS = r".*\.rotary_emb\.inv_freq"


FeedForwardRules = Callable[[LanguageConfig, str, str], list[Rule]]
"""The rules of what follows attention in one layer, of its sizes and its prefixes in the folder and here."""


def feed_forward_rules(language: LanguageConfig, hf: str, native: str) -> list[Rule]:
    """Returns the rules of one feed-forward layer; `hf` and `native` are its prefixes."""
    gate, up = (f"{hf}mlp.{part}_proj.weight" for part in ("gate", "up"))
    inner, hidden = language.ffn_hidden_size, language.hidden_size
    return [
        GatedMLP((gate, up), f"{native}mlp.linear_fc1.weight", (inner, hidden)),
        Rename(f"{hf}mlp.down_proj.weight", f"{native}mlp.linear_fc2.weight", (hidden, inner)),
    ]


def llama_table(
    language: LanguageConfig,
    body: str,
    head: str,
    hf_rows: int,
    fill_row: int,
    feed_forward: FeedForwardRules = feed_forward_rules,
) -> Table:
    """Returns the table of a LLaMA-type model, its biases and q/k norms as `language` says.

    Args:
        language: sizes.
        body, head: prefix and name in the Hugging Face folder.
        hf_rows: rows of its vocabulary.
        fill_row: the row that those beyond `language.vocab_size` repeat.
        feed_forward: returns the rules of what follows attention.
    """
    hidden = language.hidden_size

    def vocab(hf: str, native: str, tied_head: str | None = None) -> PaddedVocab:
        sizes = (language.vocab_size, language.padded_vocab_size, hf_rows, hidden)
        return PaddedVocab(hf, LANGUAGE + native, *sizes, fill_row, tied_head)

    embedding = "embedding.word_embeddings.weight"
    rules: list[Rule] = [vocab(f"{body}embed_tokens.weight", embedding, head if language.tied else None)]
    for layer in range(language.num_layers):
        hf, native = f"{body}layers.{layer}.", f"{LANGUAGE}decoder.layers.{layer}."
        rules += layer_rules(language, hf, native, feed_forward)
    rules.append(Rename(f"{body}norm.weight", f"{LANGUAGE}decoder.final_layernorm.weight", (hidden,)))
    if not language.tied:
        rules.append(vocab(head, "output_layer.weight"))
    return Table(tuple(rules), ignored=(ROTARY_BUFFERS,))


def layer_rules(
    language: LanguageConfig, hf: str, native: str, feed_forward: FeedForwardRules = feed_forward_rules
) -> list[Rule]:
    """Returns the rules of one layer; `hf` and `native` are its prefixes."""
    return attention_rules(language, hf, native) + feed_forward(language, hf, native)


def attention_rules(language: LanguageConfig, hf: str, native: str) -> list[Rule]:
    """Returns the rules of one layer's attention and norms; `hf` and `native` are its prefixes."""
    shapes = layer_shapes(language)

    def rename(hf_name: str, native_name: str) -> Rename:
        return Rename(
            f"{hf}{hf_name}.weight", f"{native}{native_name}.weight", shapes[f"{native_name}.weight"]
        )

    def qkv(kind: str, columns: Shape) -> FusedQKV:
        q, k, v = (f"{hf}self_attn.{part}_proj.{kind}" for part in "qkv")
        fused = f"{native}self_attention.linear_qkv.{kind}"
        return FusedQKV(
            (q, k, v), fused, language.num_heads, language.num_query_groups, language.head_dim, columns
        )

    rules: list[Rule] = [
        rename("input_layernorm", "input_layernorm"),
        qkv("weight", (language.hidden_size,)),
        rename("self_attn.o_proj", "self_attention.linear_proj"),
        rename("post_attention_layernorm", "pre_mlp_layernorm"),
    ]
    if language.qkv_bias:
        rules.append(qkv("bias", ()))
    if language.qk_norm:
        rules += [rename(f"self_attn.{part}_norm", f"self_attention.{part}_layernorm") for part in "qk"]
    return rules
