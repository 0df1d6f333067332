"""Names and sizes of NeMo 1's NeVA and GPT models against the native ones.

decoder.layers.L.self_attention.linear_qkv.layer_norm_weight                            a norm inside a fused layer
…embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector.0.weight     the projector
…embedding.word_embeddings.vision_encoder.vision_model.…                                a trained tower
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from neva.constants import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER
from neva.errors import CheckpointError
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.decoder_rules import PaddedVocab
from neva.families.language import layer_shapes
from neva.families.llama.table import layer_rules
from neva.families.mapping import Rename, Rule, Shape, Table
from neva.families.naming import LANGUAGE, HFNaming
from neva.families.vision_table import tower_shapes, tower_table
from neva.formats.nemo1 import Nemo1File
from neva.formats.vocabulary import tokenizer_size
from neva.weights.lazy import Converted, Filtered
from neva.weights.parts import projector_weights

EMBEDDING = "embedding.word_embeddings."
NAMING = HFNaming(
    tower=f"{EMBEDDING}vision_encoder.vision_model.",
    projector=f"{EMBEDDING}adapter_layer.mm_projector_adapter.mm_projector.",
)
HEAD = "output_layer.weight"
LANGUAGE_NAMES = (f"{EMBEDDING}weight", "decoder.", HEAD)
FUSED_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
"""Native name -> the name that Transformer Engine's fused layers give the same tensor."""

PREFIXES = {
    LANGUAGE_MODEL: LANGUAGE_NAMES,
    PROJECTOR: (NAMING.projector,),
    VISION_TOWER: (NAMING.tower,),
}
"""Part -> what the names of its tensors start with."""

# What NeMo 1 assumed for a key that its file does not have; null means: no such choice.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "normalization": ("rmsnorm",),
    "activation": ("fast-swiglu", "swiglu"),
    "position_embedding_type": ("rope",),
    "bias": (False,),
    "rotary_percentage": (1.0, None),
    "rotary_interleaved": (False, None),
    "scale_positional_embedding": (False, None),
}


def language_config(nemo1: Nemo1File, tokenizer_dir: str | Path) -> LanguageConfig:
    """Returns the language model's sizes; its real vocabulary is the tokenizer's.

    Raises:
        CheckpointError: another kind of model, or a tokenizer that does not fit.
    """
    size, rows = tokenizer_size(tokenizer_dir), _vocabulary_rows(nemo1)
    if size is None or (rows is not None and size > rows):
        raise CheckpointError(
            f"{tokenizer_dir}: found a tokenizer of {size} ids, expected tokenizer.json with at most the {rows} "
            f"vocabulary rows of {nemo1.path}"
        )
    return _language_config(nemo1.config, str(nemo1.path), size, nemo1.weights)


def held_parts(nemo1: Nemo1File) -> list[str]:
    """Returns the parts that the file holds.

    Raises:
        CheckpointError: a tensor belongs to none.
    """
    known = tuple(prefix for prefixes in PREFIXES.values() for prefix in prefixes)
    if unknown := [name for name in nemo1.weights if not name.startswith(known)]:
        raise CheckpointError(f"{nemo1.path}: {len(unknown)} tensors have no place in NeVA: {unknown[0]}")
    return [part for part, prefixes in PREFIXES.items() if nemo1.holds(*prefixes)]


def language_part(nemo1: Nemo1File, language: LanguageConfig) -> Mapping[str, Tensor]:
    """Returns the native tensors of the language model.

    Raises:
        ConversionError: a tensor is missing or unknown.
    """
    part = Filtered(nemo1.weights, *LANGUAGE_NAMES)
    return Converted(_language_table(language, _vocabulary_rows(nemo1) or 0, part), part, nemo1.path)


def projector_part(
    nemo1: Nemo1File, kind: str, vision: VisionConfig, language: LanguageConfig
) -> Mapping[str, Tensor]:
    """Returns the native tensors of the projector."""
    return projector_weights(nemo1.weights, kind, vision, language, NAMING, nemo1.path)


def tower_part(nemo1: Nemo1File, vision: VisionConfig) -> Mapping[str, Tensor]:
    """Returns the native tensors of the tower."""
    has_head = nemo1.holds(f"{NAMING.tower}head.probe")
    table = tower_table(tower_shapes(vision, has_head), NAMING.tower)
    return Converted(table, Filtered(nemo1.weights, NAMING.tower), nemo1.path)


def _vocabulary_rows(nemo1: Nemo1File) -> int | None:
    name = f"{EMBEDDING}weight"
    return nemo1.weights.shape(name)[0] if name in nemo1.weights else None


def _language_table(language: LanguageConfig, rows: int, names: Mapping[str, Tensor]) -> Table:
    """Returns the table of NeMo 1's names; but for the norms inside fused layers they are the native ones."""

    def vocabulary(name: str) -> PaddedVocab:
        size = language.vocab_size
        return PaddedVocab(name, LANGUAGE + name, size, size, rows, language.hidden_size)

    rules: list[Rule] = [vocabulary(f"{EMBEDDING}weight")]
    for layer in range(language.num_layers):
        prefix = f"decoder.layers.{layer}."
        for native, size in _layer_shapes(language).items():
            fused = prefix + FUSED_NORMS.get(native, native)
            stored = fused if fused in names else prefix + native
            rules.append(Rename(stored, f"{LANGUAGE}{prefix}{native}", size))
    final = "decoder.final_layernorm.weight"
    rules.append(Rename(final, LANGUAGE + final, (language.hidden_size,)))
    if not language.tied:
        rules.append(vocabulary(HEAD))
    return Table(tuple(rules), ignored=(r".*\.inv_freq",))


def _layer_shapes(language: LanguageConfig) -> dict[str, Shape]:
    """Returns native names and shapes of a layer, in the order of a Hugging Face folder."""
    shapes = layer_shapes(language)
    return {name: shapes[name] for rule in layer_rules(language, "", "") for name in rule.native}


def _language_config(
    config: DictConfig, where: str, vocab_size: int, names: Mapping[str, Tensor]
) -> LanguageConfig:
    for key, allowed in EXPECTED.items():
        if config.get(key) not in allowed:
            raise CheckpointError(f"{where}: {key} is {config.get(key)!r}, expected {allowed[0]!r}")
    factor, window = config.get("seq_len_interpolation_factor"), config.get("window_size")
    heads = config.num_attention_heads
    return LanguageConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.ffn_hidden_size,
        num_heads=heads,
        num_query_groups=config.get("num_query_groups") or heads,
        head_dim=config.get("kv_channels") or config.hidden_size // heads,
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        max_positions=config.get("max_position_embeddings") or config.encoder_seq_length,
        rope_theta=float(config.get("rotary_base") or 10000.0),
        rope_scaling={"rope_type": "linear", "factor": float(factor)} if factor else None,
        rms_norm_eps=config.layernorm_epsilon,
        tied=config.get("share_embeddings_and_output_weights", True),
        qkv_bias=any(name.endswith("linear_qkv.bias") for name in names),
        qk_norm=any(name.endswith("q_layernorm.weight") for name in names),
        sliding_window=None if window is None else int(window[0]),
    )
