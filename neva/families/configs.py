"""Configurations of tower and language model: what every family's `config.json` and our YAML are read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower. Image sizes are pixels of a square side."""

    model_type: str
    image_size: int
    """What the checkpoint was trained with: so many learned positions there are."""
    patch_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_hidden_size: int
    hidden_act: str
    layer_norm_eps: float
    select_layer: int | tuple[int, ...]
    """Index into the tower's hidden states, or several, whose features are joined."""
    class_token_length: int
    """Leading tokens that are dropped."""
    input_size: int | None = None
    """What it sees, where that is another size: learned positions are interpolated. None: `image_size`."""

    kept_tokens: int = 0
    """Leading tokens that are no patches and are not dropped either."""
    image_tiles: bool = False
    """Whether images have twice the side, and the tower sees their quarters."""
    post_layernorm: bool = False
    """Whether the tower's last norm is applied to what is selected."""
    others: tuple[tuple[str, Any], ...] = ()
    """What else its `config.json` says, by key: of towers that are more than their sizes."""
    recolour: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """What each colour is multiplied by, and what is then added, before it sees pixels; None: nothing."""
    second: VisionConfig | None = None
    """Another tower that sees the same images, whose features are joined to those of this one; None: there is none."""
    lora: LoraConfig | None = None
    """Adapters beside it, by the last words of its matrices' names (`all`: every one); None: there are none."""

    @property
    def select_layers(self) -> tuple[int, ...]:
        """Indices of the hidden states whose features are joined."""
        return self.select_layer if isinstance(self.select_layer, tuple) else (self.select_layer,)

    @property
    def feature_size(self) -> int:
        """Width of a feature: of all selected hidden states together, of both towers."""
        own = self.hidden_size * len(self.select_layers)
        return own if self.second is None else own + self.second.feature_size

    @property
    def towers(self) -> tuple[VisionConfig, ...]:
        """This tower, and the second where there is one."""
        return (self,) if self.second is None else (self, self.second)

    @property
    def side(self) -> int:
        """Pixels of a side of the square that it sees."""
        return self.input_size or self.image_size

    @property
    def num_tokens(self) -> int:
        """Features of one square picture that the tower sees."""
        return self.num_features(self.side, self.side)

    def num_features(self, height: int, width: int) -> int:
        """Returns the features of a picture of that many pixels, without the leading tokens that are dropped."""
        return self.kept_tokens + (height // self.patch_size) * (width // self.patch_size)

    @property
    def map_tokens(self) -> int:
        """Features of the map of one square image, of which the connector makes positions."""
        return self.num_tokens * (4 if self.image_tiles else 1)

    @property
    def image_side(self) -> int:
        """Pixels of a side of a square image, of which the tower sees the whole or the quarters."""
        return self.side * (2 if self.image_tiles else 1)


RMS_NORM, RMS_NORM_PLUS_ONE, LAYER_NORM = "rmsnorm", "rmsnorm1p", "layernorm"
"""Norms: root mean square; the same with a weight that counts from one; centred, with a bias."""

BEFORE, AFTER, AROUND = "pre_ln", "sublayer_post_ln", "sandwich_ln"
"""Where the norms of a layer stand: in front of attention and feed-forward, behind both, or before and behind."""

SILU, GELU_TANH = "swiglu", "approx-geglu"
"""What the gate of the feed-forward layer goes through."""

EACH_HEAD, ALL_HEADS = "head", "all"
"""What a norm of queries or keys is taken over."""

CAPPED_CHUNK = 256
"""Queries whose scores are in memory at a time where these have a soft cap."""


@dataclass(frozen=True)
class DecoderForm:
    """How the arithmetic of a decoder differs from LLaMA's, which is what the defaults say."""

    norm: str = RMS_NORM
    norm_place: str = BEFORE
    activation: str = SILU
    rotary_share: float = 1.0
    """Of each head, from its first element on, how much is turned by its position."""
    qk_norm_over: str = EACH_HEAD
    query_scalar: float | None = None
    """Scores are divided by its root; None: the width of a head."""
    score_cap: float | None = None
    """Scores s become `cap * tanh(s / cap)`; None: they stay."""
    logit_cap: float | None = None
    """The same of the logits."""
    scales_embeddings: bool = False
    """Whether embeddings of tokens are multiplied by the root of the hidden size."""
    global_interval: int | None = None
    """Each so many layers, the last of them sees the whole sequence, not the window; None: all have the window."""
    local_rope_theta: float | None = None
    """RoPE's base in layers with the window, never scaled; None: as in the others."""

    @property
    def norms_before(self) -> bool:
        """Whether what enters attention and feed-forward is normed."""
        return self.norm_place != AFTER

    @property
    def norms_after(self) -> bool:
        """Whether what they add to the residual stream is normed."""
        return self.norm_place != BEFORE


LLAMA_FORM = DecoderForm()


@dataclass(frozen=True)
class ExpertsConfig:
    """Feed-forward layers of which a router chooses some for each token (https://arxiv.org/abs/2401.04088)."""

    number: int
    """In a layer; every layer has them."""
    per_token: int
    ffn_hidden_size: int
    pre_softmax: bool
    """Whether weights are probabilities among all experts, so that those of the chosen sum to below 1; else to 1."""
    shared_ffn_hidden_size: int | None = None
    """Width of the one beside them that every token passes, weighted by a gate of its own; None: there is none."""
    aux_loss_coeff: float = 0.0
    """Weight of the loss that balances the experts."""


ALL = "all"
"""Stands for every matrix among the names of some."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank factors beside frozen matrices: W x + (alpha / rank) B A x (https://arxiv.org/abs/2106.09685)."""

    rank: int
    alpha: float
    dropout: float
    drops_input: bool
    """Whether dropout falls on x, else on what the factors add."""
    sites: tuple[tuple[str, tuple[str, ...]], ...]
    """Native name of a matrix within its layer, and the pieces of its rows that have factors of their own."""
    layers: tuple[int, ...] | None
    """Numbers of the layers, from 0; None: all."""
    input_init: str
    """How A is drawn."""
    output_init: str
    """How B is drawn."""
    packing: str | None = None
    """How the frozen matrices are packed into few bits; None: they are not."""
    has_magnitudes: bool = False
    """Whether the lengths of rows are learnt apart from their directions (https://arxiv.org/abs/2402.09353)."""

    @property
    def scale(self) -> float:
        """What is multiplied to the product of the factors."""
        return self.alpha / self.rank

    def pieces(self, site: str, layer: int) -> tuple[str, ...]:
        """Returns the pieces of a matrix that have factors in a layer, counted from 0."""
        is_chosen = self.layers is None or layer in self.layers
        return dict(self.sites).get(site, ()) if is_chosen else ()

    def names(self, matrix: str) -> bool:
        """Whether the sites, where they are last words of names, name a matrix."""
        named = dict(self.sites)
        return ALL in named or matrix.rpartition(".")[2] in named


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes and form of a language model; `padded_vocab_size` counts the rows of embedding and head.

    `family` is the Hugging Face `model_type` of a family that the sizes do not tell; None: they do.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    padded_vocab_size: int
    max_positions: int
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = field(hash=False)
    rms_norm_eps: float
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    sliding_window: int | None
    family: str | None = None
    sees_whole_images: bool = False
    """Whether the positions of an image see each other, not only those before them."""
    sees_whole_prompts: bool = False
    """Whether the positions before the first answer see each other."""
    form: DecoderForm = LLAMA_FORM
    experts: ExpertsConfig | None = None
    """None: one feed-forward layer for all tokens."""
    lora: LoraConfig | None = None
    """None: there are no adapters."""
    hf_config: Mapping[str, Any] | None = field(default=None, hash=False)
    """All that its `config.json` says, of a model that transformers runs itself; None: Megatron runs it."""

    @property
    def looks_ahead(self) -> bool:
        """Whether some positions see others behind them."""
        return self.sees_whole_images or self.sees_whole_prompts

    @property
    def ends_early(self) -> bool:
        """Whether its last layer may leave out positions that nobody reads; experts are balanced over all."""
        return not self.looks_ahead and self.experts is None and self.hf_config is None

    @property
    def rotary_dim(self) -> int:
        """Elements of each head that are turned by its position."""
        return int(self.head_dim * self.form.rotary_share)

    def has_window(self, layer: int) -> bool:
        """Whether a layer, counted from 0, sees `sliding_window` keys alone."""
        interval = self.form.global_interval
        return self.sliding_window is not None and (interval is None or (layer + 1) % interval != 0)

    def window_of(self, layer: int) -> int | None:
        """Returns how many keys a layer, counted from 0, sees; None: all."""
        return self.sliding_window if self.has_window(layer) else None

    def with_vocabulary(self, rows: int) -> LanguageConfig:
        """Returns the same model with another number of vocabulary rows, and no padding."""
        config = None if self.hf_config is None else {**self.hf_config, "vocab_size": rows}
        return replace(self, vocab_size=rows, padded_vocab_size=rows, hf_config=config)


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """Returns the next multiple of `divisible_by * tensor_parallel_size` from `vocab_size` on (Megatron's rule)."""
    multiple = divisible_by * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple
