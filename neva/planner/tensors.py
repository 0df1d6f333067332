"""What a rank holds: the parameters of one pipeline stage, in the model's order, as sizes and without torch.

The shapes are those of `neva.model`; a test compares them with the built model, tensor by tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from neva.config.keys.peft import INT8
from neva.constants import ADAPTERS, SECOND_TOWER
from neva.families.adapters import BLOCK, factor_shapes, site_shapes
from neva.families.configs import LanguageConfig, LoraConfig, VisionConfig, padded_vocab_size
from neva.families.connector import connector_named
from neva.families.hugging_face import adapted, shapes
from neva.families.language import layer_shapes
from neva.families.llama.sizes import FINAL, norm_shapes
from neva.families.mapping import Shape
from neva.families.mixtral.table import EXPERTS
from neva.families.tower_adapters import tower_sites
from neva.families.vision import vision_family
from neva.precision import FLOAT32

ROUTER = "mlp.router."
"""Of experts: what it chooses by is never packed."""

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
    is_expert: bool = False
    """Whether it is of an expert that expert-parallel ranks share out: fewer ranks have copies of it."""
    packing: str | None = None
    """How it is packed into few bits; None: it is not."""

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def bytes_of(self, elements: int, num_bytes: int) -> int:
        """Returns the bytes of so many of its elements in a model of `num_bytes` an element; scales are whole."""
        if self.packing is None:
            return elements * num_bytes
        scales = self.shape[0] if self.packing == INT8 else self.numel // BLOCK
        return elements // (1 if self.packing == INT8 else 2) + FLOAT32.num_bytes * scales


@dataclass(frozen=True)
class ModelSpec:
    """What is built, and which of its parts train."""

    vision: VisionConfig
    language: LanguageConfig
    adapter_type: str
    vocab_divisible_by: int
    trained_parts: frozenset[str]
    packing: str | None = None
    """How a model that answers has the matrices of its layers packed; None: as beside its adapters."""

    @property
    def towers(self) -> tuple[tuple[str, VisionConfig], ...]:
        """The towers by the names of their parts."""
        return tuple(zip((TOWER, SECOND_TOWER), self.vision.towers, strict=False))


@dataclass(frozen=True)
class Split:
    """One tensor-parallel rank of one pipeline stage."""

    tensor: int
    pipeline: int
    stage: int
    expert: int = 1

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
        weights += [*_tower(model), *_projector(model)]
    is_trained = LANGUAGE in model.trained_parts
    if model.language.hf_config is not None:
        named = {name: Weight(LANGUAGE, shape, is_trained) for name, shape in shapes(model.language).items()}
        return [*weights, *_beside(named, adapted(model.language), model.language.lora, model)]
    vocabulary = _vocabulary(model, split.tensor)
    is_shared = model.language.tied and split.pipeline > 1
    if split.is_first:
        weights.append(Weight(LANGUAGE, vocabulary, is_trained, is_shared))
    layers = model.language.num_layers // split.pipeline
    for number in range(split.stage * layers, (split.stage + 1) * layers):
        weights += _layer(model, split, is_trained, number)
    if split.is_last:
        weights += [
            Weight(LANGUAGE, shape, is_trained) for shape in norm_shapes(model.language, FINAL).values()
        ]
        if not (model.language.tied and split.is_first):
            weights.append(Weight(LANGUAGE, vocabulary, is_trained, is_shared))
    return weights


def _layer(model: ModelSpec, split: Split, is_trained: bool, number: int) -> Iterator[Weight]:
    """Of experts, the first share: all shares are alike. Adapters stand behind their matrix."""
    experts = model.language.experts
    kept = 0 if experts is None else experts.number // split.expert
    shapes, lora = layer_shapes(model.language, split.tensor), model.language.lora
    last = {name.rpartition(".")[0]: name for name in shapes}
    for name, shape in shapes.items():
        is_expert = name.startswith(EXPERTS)
        if not is_expert or int(name.removeprefix(EXPERTS).split(".")[0]) < kept:
            is_shared_out = is_expert and split.expert > 1
            packing = model.packing or (lora.packing if lora is not None else None)
            if len(shape) != 2 or not name.endswith(".weight") or name.startswith(ROUTER):
                packing = None
            yield Weight(LANGUAGE, shape, is_trained, is_expert=is_shared_out, packing=packing)
        if name == last[site := name.rpartition(".")[0]]:
            for factor in site_shapes(model.language, site, number, split.tensor).values():
                yield Weight(ADAPTERS, factor, ADAPTERS in model.trained_parts)


def _vocabulary(model: ModelSpec, tensor: int) -> tuple[int, int]:
    rows = padded_vocab_size(model.language.vocab_size, model.vocab_divisible_by, tensor)
    return rows // tensor, model.language.hidden_size


def _tower(model: ModelSpec) -> Iterator[Weight]:
    """Every tensor-parallel rank holds whole towers; what the selected hidden state does not need never trains."""
    for part, vision in model.towers:
        family, is_trained = vision_family(vision.model_type), part in model.trained_parts
        named = {
            name: Weight(part, shape, is_trained and family.is_used(name, vision))
            for name, shape in family.module_shapes(vision).items()
        }
        yield from _beside(named, tower_sites(vision), vision.lora, model)


def _beside(
    named: Mapping[str, Weight], sites: Mapping[str, Shape], lora: LoraConfig | None, model: ModelSpec
) -> Iterator[Weight]:
    """Yields weights by their names, and adapters behind the last weight of their matrix."""
    last = {name.rpartition(".")[0]: name for name in named}
    for name, weight in named.items():
        yield weight
        matrix = name.rpartition(".")[0]
        if matrix in sites and name == last[matrix]:
            assert lora is not None
            for factor in factor_shapes(lora, sites[matrix]).values():
                yield Weight(ADAPTERS, factor, ADAPTERS in model.trained_parts)


def _projector(model: ModelSpec) -> Iterator[Weight]:
    """Every tensor-parallel rank holds the whole projector."""
    connector = connector_named(model.adapter_type)
    for shape in connector.parameter_shapes(model.vision.feature_size, model.language.hidden_size).values():
        yield Weight(PROJECTOR, shape, PROJECTOR in model.trained_parts)
