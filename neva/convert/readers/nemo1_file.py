"""`.nemo` files of NeMo 1's NeVA and GPT: `model_config.yaml` and a distributed checkpoint under Megatron's names.

[model.|model.module.]decoder.layers[.L].self_attention.linear_qkv.layer_norm_weight    layers stacked, or one by one
…embedding.word_embeddings.adapter_layer.mm_projector_adapter.mm_projector.0.weight     the projector
…embedding.word_embeddings.vision_encoder.vision_model.…                                a trained tower
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from neva.config.derive import tokenizer_size
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.connector import projector_table
from neva.families.language import family_of
from neva.families.llama.table import layer_rules
from neva.families.mapping import PaddedVocab, Rename, Rule, Table
from neva.families.naming import LANGUAGE, HFNaming
from neva.families.vision import tower_shapes, tower_table
from neva.formats.archive import ByteRange, members_of, read_range
from neva.formats.nemo import CONFIG, MANIFEST, WEIGHTS
from neva.formats.torch_dist import DistributedWeights
from neva.weights.lazy import Converted, Filtered

PREFIX = re.compile(r"model\.(module\.)?")
STACKED = re.compile(r"decoder\.layers\.(?!\d)(.*)")
EMBEDDING = "embedding.word_embeddings."
OLD = HFNaming(
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


@dataclass(frozen=True)
class OldNemo:
    """An opened file. `weights` are named without `model.`, layer by layer, and read when asked for."""

    path: Path
    config: DictConfig
    weights: "OldWeights"

    def language_config_of(self, tokenizer_dir: str | Path) -> LanguageConfig:
        """The language model; its real vocabulary is the tokenizer's. ValueError for another kind of model."""
        size, rows = tokenizer_size(str(tokenizer_dir)), self._vocabulary_rows()
        if size is None or (rows is not None and size > rows):
            raise ValueError(
                f"{tokenizer_dir}: found a tokenizer of {size} ids, expected tokenizer.json with at most the {rows} "
                f"vocabulary rows of {self.path}"
            )
        return _shape(self.config, str(self.path), size, self.weights)

    def holds(self, *prefixes: str) -> bool:
        """Whether a tensor's name starts with one of `prefixes`."""
        return any(name.startswith(prefixes) for name in self.weights)

    def language(self, shape: LanguageConfig) -> Mapping[str, Tensor]:
        """Native tensors of the language model. ConversionError names a tensor that is missing or unknown."""
        part = Filtered(self.weights, *LANGUAGE_NAMES)
        return Converted(_language_table(shape, self._vocabulary_rows() or 0, part), part)

    def projector(self, kind: str, vision: VisionConfig, shape: LanguageConfig) -> Mapping[str, Tensor]:
        """Native tensors of the projector."""
        table = projector_table(kind, vision.hidden_size, shape.hidden_size, OLD)
        return Converted(table, Filtered(self.weights, OLD.projector))

    def tower(self, vision: VisionConfig) -> Mapping[str, Tensor]:
        """Native tensors of the tower."""
        has_head = self.holds(f"{OLD.tower}head.probe")
        table = tower_table(tower_shapes(vision, has_head), OLD.tower)
        return Converted(table, Filtered(self.weights, OLD.tower))

    def refuse_others(self) -> None:
        """ValueError naming a tensor that belongs to no part."""
        known = (*LANGUAGE_NAMES, OLD.tower, OLD.projector)
        if unknown := [name for name in self.weights if not name.startswith(known)]:
            raise ValueError(f"{self.path}: {len(unknown)} tensors have no place in NeVA: {unknown[0]}")

    def _vocabulary_rows(self) -> int | None:
        name = f"{EMBEDDING}weight"
        return self.weights.shape(name)[0] if name in self.weights else None


def is_old_nemo(source: str | Path) -> bool:
    """Whether `source` is a `.nemo` file, or the folder of an extracted one, without neva's manifest."""
    path = Path(source)
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / MANIFEST).is_file()
    members = members_of(path) if path.is_file() else {}
    return CONFIG in members and MANIFEST not in members


def open_old_nemo(source: str | Path) -> OldNemo:
    """Opens the file or folder. The class it names is not looked at, and nothing in it is executed."""
    path = Path(source)
    members = members_of(path)
    config = OmegaConf.create(read_range(members[CONFIG]).decode())
    assert isinstance(config, DictConfig)
    stored = {
        name.removeprefix(f"{WEIGHTS}/"): place
        for name, place in members.items()
        if name.startswith(f"{WEIGHTS}/")
    }
    return OldNemo(path, config, OldWeights(stored, str(path)))


class OldWeights(Mapping[str, Tensor]):
    """A checkpoint's tensors without their prefix, stacked layers apart."""

    def __init__(self, members: Mapping[str, ByteRange], where: str) -> None:
        self._stored = DistributedWeights(members, where)
        self._source_of: dict[str, tuple[str, int | None]] = {}
        for name, shape in self._stored.shapes.items():
            plain = PREFIX.sub("", name, count=1) if PREFIX.match(name) else name
            if stacked := STACKED.fullmatch(plain):
                for layer in range(shape[0]):
                    self._source_of[f"decoder.layers.{layer}.{stacked[1]}"] = (name, layer)
            else:
                self._source_of[plain] = (name, None)

    def __getitem__(self, name: str) -> Tensor:
        stored, layer = self._source_of[name]
        return self._stored[stored] if layer is None else self._stored.slice(stored, layer)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        stored, layer = self._source_of[name]
        return self._stored.shapes[stored][0 if layer is None else 1 :]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source_of)

    def __len__(self) -> int:
        return len(self._source_of)


def _language_table(shape: LanguageConfig, rows: int, names: Mapping[str, Tensor]) -> Table:
    """Old names against native ones: but for the norms inside fused layers they are the same."""

    def vocabulary(old: str) -> PaddedVocab:
        size = shape.vocab_size
        return PaddedVocab(old, LANGUAGE + old, size, size, rows, shape.hidden_size)

    rules: list[Rule] = [vocabulary(f"{EMBEDDING}weight")]
    for layer in range(shape.num_layers):
        prefix = f"decoder.layers.{layer}."
        for native, size in _layer_shapes(shape).items():
            fused = prefix + FUSED_NORMS.get(native, native)
            old = fused if fused in names else prefix + native
            rules.append(Rename(old, f"{LANGUAGE}{prefix}{native}", size))
    final = "decoder.final_layernorm.weight"
    rules.append(Rename(final, LANGUAGE + final, (shape.hidden_size,)))
    if not shape.tied:
        rules.append(vocabulary(HEAD))
    return Table(tuple(rules), ignored=(r".*\.inv_freq",))


def _layer_shapes(language: LanguageConfig) -> dict[str, tuple[int, ...]]:
    """Native names and shapes of a layer, in the order of a Hugging Face folder."""
    shapes = family_of(language).layer_shapes(language)
    return {name: shapes[name] for rule in layer_rules(language, "", "") for name in rule.native}


def _shape(config: DictConfig, where: str, vocab_size: int, names: Mapping[str, Tensor]) -> LanguageConfig:
    for key, allowed in EXPECTED.items():
        if config.get(key) not in allowed:
            raise ValueError(f"{where}: {key} is {config.get(key)!r}, expected {allowed[0]!r}")
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
