"""What a rank holds: the parameters of one pipeline stage, in the model's order, as sizes and without torch.

The shapes are those of `neva.model`; a test compares them with the built model, tensor by tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from neva.families.configs import LanguageConfig, VisionConfig, padded_vocab_size

TOWER, PROJECTOR, LANGUAGE = "vision_tower", "projector", "language_model"


@dataclass(frozen=True)
class Weight:
    """One parameter as a rank holds it.

    `is_shared` marks the tied embedding where first and last stage hold a copy each.
    """

    part: str
    shape: tuple[int, ...]
    is_trained: bool
    is_shared: bool = False

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelSpec:
    """What is built, and which of its parts train."""

    vision: VisionConfig
    language: LanguageConfig
    adapter_type: str
    vocab_divisible_by: int
    trained_parts: frozenset[str]


@dataclass(frozen=True)
class Split:
    """One tensor-parallel rank of one pipeline stage."""

    tensor: int
    pipeline: int
    stage: int

    @property
    def is_first(self) -> bool:
        """Whether tower, projector and embeddings are here."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether the final norm and the head are here."""
        return self.stage == self.pipeline - 1


@cache
def stage_weights(model: ModelSpec, split: Split) -> list[Weight]:
    """Returns the parameters of one rank, in the order of `NevaModel.named_parameters()`."""
    weights: list[Weight] = []
    if split.is_first:
        weights += _tower(model)
        weights += [
            Weight(PROJECTOR, shape, PROJECTOR in model.trained_parts) for shape in projector_shapes(model)
        ]
    is_trained = LANGUAGE in model.trained_parts
    vocabulary = _vocabulary(model, split.tensor)
    is_shared = model.language.tied and split.pipeline > 1
    if split.is_first:
        weights.append(Weight(LANGUAGE, vocabulary, is_trained, is_shared))
    for _ in range(model.language.num_layers // split.pipeline):
        weights += [
            Weight(LANGUAGE, shape, is_trained) for shape in layer_shapes(model.language, split.tensor)
        ]
    if split.is_last:
        weights.append(Weight(LANGUAGE, (model.language.hidden_size,), is_trained))
        if not (model.language.tied and split.is_first):
            weights.append(Weight(LANGUAGE, vocabulary, is_trained, is_shared))
    return weights


def _vocabulary(model: ModelSpec, tensor: int) -> tuple[int, int]:
    rows = padded_vocab_size(model.language.vocab_size, model.vocab_divisible_by, tensor)
    return rows // tensor, model.language.hidden_size


def layer_shapes(shape: LanguageConfig, tensor: int) -> list[tuple[int, ...]]:
    """Returns the shapes of one decoder layer on a tensor-parallel rank."""
    width, queries = shape.hidden_size, shape.num_heads * shape.head_dim
    rows = (queries + 2 * shape.num_query_groups * shape.head_dim) // tensor
    inner = shape.ffn_hidden_size // tensor
    shapes: list[tuple[int, ...]] = [(width,), (width, queries // tensor), (rows, width)]
    shapes += [(rows,)] * shape.qkv_bias + [(shape.head_dim,)] * 2 * shape.qk_norm
    return [*shapes, (width,), (2 * inner, width), (width, inner)]


def projector_shapes(model: ModelSpec) -> list[tuple[int, ...]]:
    """Returns weights and biases of the projector; every tensor-parallel rank holds all of it."""
    widths = [model.vision.hidden_size] + [model.language.hidden_size] * projector_depth(model.adapter_type)
    return [shape for into, out in zip(widths, widths[1:], strict=False) for shape in ((out, into), (out,))]


def projector_depth(kind: str) -> int:
    """Returns the number of linear layers of `linear` or `mlp<N>x_gelu`."""
    match = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    return int(match[1]) if match else 1


def tower_layers_run(vision: VisionConfig) -> int:
    """Returns how many of the tower's layers stand before the selected hidden state."""
    return vision.select_layer % (vision.num_layers + 1)


def _tower(model: ModelSpec) -> Iterator[Weight]:
    """Every tensor-parallel rank holds the whole tower; what lies behind the selected layer never trains."""
    vision, is_trained = model.vision, TOWER in model.trained_parts
    if vision.model_type not in ("clip", "siglip"):
        for shape in _shapes_of_built_tower(vision):
            yield Weight(TOWER, shape, is_trained)
        return
    is_clip, width, inner = vision.model_type == "clip", vision.hidden_size, vision.ffn_hidden_size
    patch = (width, 3, vision.patch_size, vision.patch_size)
    positions = (vision.num_tokens + vision.class_token_length, width)
    norm: list[tuple[int, ...]] = [(width,), (width,)]
    attention: list[tuple[int, ...]] = [(width, width), (width,)] * 4
    mlp: list[tuple[int, ...]] = [(inner, width), (inner,), (width, inner), (width,)]
    layer = [*attention, *norm, *mlp, *norm] if is_clip else [*norm, *attention, *norm, *mlp]
    head = [(1, 1, width), (3 * width, width), (3 * width,), (width, width), (width,), *norm, *mlp]
    embeddings = [(width,), patch, positions, *norm] if is_clip else [patch, (width,), positions]
    for shape in embeddings:
        yield Weight(TOWER, shape, is_trained)
    for number in range(vision.num_layers):
        for shape in layer:
            yield Weight(TOWER, shape, is_trained and number < tower_layers_run(vision))
    for shape in norm if is_clip else norm + head:
        yield Weight(TOWER, shape, False)


@cache
def _shapes_of_built_tower(vision: VisionConfig) -> list[tuple[int, ...]]:
    """Shapes of a tower whose make-up only `transformers` knows; it is built without memory, which loads torch."""
    import torch

    from neva.model.vision import build_tower

    with torch.device("meta"):
        return [tuple(parameter.shape) for parameter in build_tower(vision).parameters()]
