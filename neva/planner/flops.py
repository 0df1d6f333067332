"""Floating-point operations that a training step asks for, part by part, from sizes alone and without torch.

A product of [n, k] and [k, m] is 2nkm. Attention is counted over the pairs that its mask leaves. A backward pass has as
many for the gradients of the inputs, where something before them trains, and as many for those of the weights, where
they train (the count of the PaLM paper, https://arxiv.org/abs/2204.02311, appendix B). Logits exist at labels alone;
before the first label the last layer makes keys and values, and nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from neva.constants import ADAPTERS, LANGUAGE_MODEL, PROJECTOR, VISION_TOWER
from neva.families.adapters import QKV, adapter_shapes
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.connector import connector_named
from neva.families.hugging_face import shapes
from neva.families.language import layer_shapes
from neva.families.mixtral.table import EXPERTS
from neva.families.tower_adapters import tower_adapter_shapes
from neva.families.vision import vision_family
from neva.families.vision_sizes import num_layers_run
from neva.planner.tensors import ModelSpec

HEAD = "head"
PARTS = (VISION_TOWER, PROJECTOR, LANGUAGE_MODEL, HEAD)
NO_MATRICES = ("position", "token")
"""Words in the names of a tower's tensors that are added to or put in front of others, and no factors."""


@dataclass(frozen=True)
class StepWork:
    """What one step computes, whatever the layout.

    `samples`: how many there are of each length. `labels`: positions with logits. `tiles`: how many images, or tiles of
    them, there are of each number of patches. `unread`: in how many rows nobody reads so many first positions of the
    last layer.
    """

    samples: Mapping[int, float]
    labels: float
    tiles: Mapping[int, float]
    unread: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Flops:
    """Of one part in one step; `recomputed` are forward ones that are done again for the backward pass."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """What the model asks for: nothing counts twice."""
        return self.forward + self.backward

    @property
    def run(self) -> float:
        """What is computed."""
        return self.model + self.recomputed


def step_flops(
    model: ModelSpec, work: StepWork, recompute: str | None, recomputed_share: float = 1.0
) -> dict[str, Flops]:
    """Returns the operations of each of `PARTS`; those of a second tower are among those of the first.

    Args:
        model: sizes, and which parts train.
        work: of the global batch.
        recompute: `full`, `selective` (attention alone) or None.
        recomputed_share: share of the layers that full recomputation is for.
    """
    trained = model.trained_parts
    language = model.language
    reads, others = _of_connector(model, work)
    layers, attention = _of_layers(language, work)
    towers = {
        part: sum(number * tower_flops(vision, patches) for patches, number in work.tiles.items())
        for part, vision in model.towers
    }
    of_trained = sum(of_tower for part, of_tower in towers.items() if part in trained)
    of_factors = _of_tower_adapters(model.vision, work)
    before_connector = any(part in trained for part in towers) or of_factors > 0
    before_language = before_connector or PROJECTOR in trained
    trains_language, of_adapters = LANGUAGE_MODEL in trained, _of_adapters(language, work)
    flows = before_language or trains_language or ADAPTERS in trained
    again = {"full": recomputed_share * (layers + attention + of_adapters), "selective": attention}.get(
        recompute or "", 0.0
    )
    of_head = 2 * work.labels * language.hidden_size * language.vocab_size
    connector_trains, gradient = PROJECTOR in trained, PROJECTOR in trained or before_connector
    return {
        # beside adapters, gradients of hidden states alone flow through the matrices
        VISION_TOWER: Flops(
            sum(towers.values()) + of_factors,
            2 * of_trained + (towers[VISION_TOWER] if of_factors else 0.0) + 2 * of_factors,
        ),
        PROJECTOR: Flops(
            reads + others,
            reads * (connector_trains + before_connector) + others * (connector_trains + gradient),
        ),
        LANGUAGE_MODEL: Flops(
            layers + attention + of_adapters,
            layers * (flows + trains_language) + 2 * (attention + of_adapters) * flows,
            again * flows,
        ),
        HEAD: Flops(of_head, of_head * (flows + trains_language)),
    }


def _of_adapters(language: LanguageConfig, work: StepWork) -> float:
    """Returns the forward operations of the adapters."""
    return 2 * (
        _positions(work.samples) * _adapter_elements(language)
        - _positions(work.unread) * _adapter_elements(language, only_read=True)
    )


def _of_tower_adapters(vision: VisionConfig, work: StepWork) -> float:
    """Returns the forward operations of the adapters beside the tower."""
    elements = sum(math.prod(shape) for _, shape in tower_adapter_shapes(vision))
    tokens = sum((patches + vision.class_token_length) * number for patches, number in work.tiles.items())
    return 2.0 * tokens * elements


@cache
def _adapter_elements(language: LanguageConfig, only_read: bool = False) -> int:
    """Returns the elements of all adapters, or of those of the last layer behind its attention."""
    last = f".{language.num_layers - 1}."
    return sum(
        math.prod(shape)
        for name, shape in adapter_shapes(language)
        if not only_read or (last in name and QKV not in name)
    )


def total(parts: Iterable[Flops]) -> Flops:
    """Returns the operations of all parts as one."""
    found = list(parts)
    return Flops(
        sum(each.forward for each in found),
        sum(each.backward for each in found),
        sum(each.recomputed for each in found),
    )


def causal_pairs(length: float, window: int | None = None) -> float:
    """Returns the pairs of a query and a key at or before it, no further than `window` where there is one."""
    if window is None or length <= window:
        return length * (length + 1) / 2
    return window * (window + 1) / 2 + (length - window) * window


@cache
def tower_flops(vision: VisionConfig, patches: int) -> float:
    """Returns the forward operations for one tile of so many patches, up to the last hidden state that is selected."""
    family = vision_family(vision.model_type)
    tokens = patches + vision.class_token_length
    of_weights = 0.0
    for name, shape in family.module_shapes(vision).items():
        is_matrix = len(shape) > 1 and not any(word in name for word in NO_MATRICES)
        if is_matrix and family.is_used(name, vision):
            of_weights += 2 * math.prod(shape) * (patches if len(shape) == 4 else tokens)
    return of_weights + num_layers_run(vision) * 4 * tokens**2 * vision.hidden_size


def _of_connector(model: ModelSpec, work: StepWork) -> tuple[float, float]:
    """Returns the forward operations: of what reads the tower's features, and of all behind it."""
    vision, connector = model.vision, connector_named(model.adapter_type)
    tiles = 4 + connector.has_thumbnail if vision.image_tiles else 1  # whose features make one map
    reads = others = 0.0
    for patches, number in work.tiles.items():
        features = tiles * (patches + vision.kept_tokens)
        of_map = connector.flops(vision.feature_size, model.language.hidden_size, features)
        reads, others = reads + number / tiles * of_map[0], others + number / tiles * of_map[1]
    return reads, others


def _of_layers(language: LanguageConfig, work: StepWork) -> tuple[float, float]:
    """Returns the forward operations of all layers: of matrices, and of attention."""
    windows = Counter(map(language.window_of, range(language.num_layers)))
    pairs = sum(
        number * layers * causal_pairs(length, window)
        for length, number in work.samples.items()
        for window, layers in windows.items()
    )
    last = language.window_of(language.num_layers - 1)
    pairs -= sum(number * causal_pairs(first, last) for first, number in work.unread.items())
    met = _positions(work.samples) * _elements_met(language)
    if work.unread:
        met -= _positions(work.unread) * _elements_read(language)
    return 2 * met, 4 * pairs * language.num_heads * language.head_dim


def _positions(rows: Mapping[int, float]) -> float:
    return sum(length * number for length, number in rows.items())


@cache
def _elements_met(language: LanguageConfig) -> float:
    """Returns the elements of the matrices of all layers that a token meets; every step of a run asks."""
    if language.hf_config is None:
        return language.num_layers * sum(_active(language))
    matrices = [shape for shape in shapes(language).values() if len(shape) > 1]
    # embeddings and head are as wide as the vocabulary
    return sum(math.prod(shape) for shape in matrices if language.vocab_size not in shape)


@cache
def _elements_read(language: LanguageConfig) -> int:
    """Returns the elements of a layer's matrices that make what is read of it, beside queries, keys and values."""
    return sum(
        math.prod(shape)
        for name, shape in layer_shapes(language).items()
        if len(shape) > 1 and not name.startswith(QKV)
    )


def _active(language: LanguageConfig) -> Iterable[float]:
    """Yields the elements of the matrices of a layer that a token meets: of experts, those that it is sent to."""
    experts = language.experts
    share = 1.0 if experts is None else experts.per_token / experts.number
    for name, shape in layer_shapes(language).items():
        if len(shape) > 1:
            yield math.prod(shape) * (share if name.startswith(EXPERTS) else 1.0)
