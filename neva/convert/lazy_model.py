"""A whole model as native tensors that are read when they are asked for, wherever its parts lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from neva.config.keys.peft import NO_PEFT
from neva.errors import DataError
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.naming import LANGUAGE, TOWER
from neva.families.vision import vision_family
from neva.families.vision_table import POOLING, tower_shapes
from neva.weights.lazy import Cast
from neva.weights.merged import Merged


@dataclass(frozen=True)
class Base:
    """Part -> path and fingerprint of what adapters were trained beside."""

    parts: Mapping[str, Mapping[str, str]]


Model = TypeVar("Model", bound="LazyLanguageModel")


@dataclass(frozen=True, kw_only=True)
class LazyLanguageModel:
    """A language model, not in memory.

    Attributes:
        name: what messages and manifests call it.
        config: the `model` section.
        language: its sizes.
        weights: whole tensors by native name.
        tokenizer: the tokenizer's files by name.
    """

    name: str
    config: DictConfig
    language: LanguageConfig
    weights: Mapping[str, Tensor]
    tokenizer: Mapping[str, bytes]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the language model's weights."""
        names = (name for name in self.weights if name.startswith(LANGUAGE))
        return self.weights[min(names, key=lambda name: "norm" not in name)].dtype  # a norm is soon read

    def rounded(self: Model, dtype: torch.dtype | None) -> Model:
        """Returns the model with its weights rounded to `dtype`: what an export in that precision must compute."""
        return self if dtype is None else replace(self, weights=Cast(self.weights, dtype))

    @contextmanager
    def tokenizer_dir(self) -> Iterator[Path]:
        """Yields a temporary folder with the tokenizer's files."""
        with TemporaryDirectory() as folder:
            for name, content in self.tokenizer.items():
                (Path(folder) / name).write_bytes(content)
            yield Path(folder)


@dataclass(frozen=True, kw_only=True)
class LazyModel(LazyLanguageModel):
    """A complete LLaVA model, not in memory.

    Attributes:
        vision: the tower's sizes.
        connector: kind of the projector.
        image_processor: content of its `preprocessor_config.json`.
        tower_reference: folder whose tower is bit-equal to this model's; None: the tower was trained, or has no folder.
    """

    vision: VisionConfig
    connector: str
    image_processor: Mapping[str, Any] | None
    tower_reference: Path | None
    adapters: Mapping[str, Tensor] | None = None
    """Factors beside the language model, under native names; `weights` have none of them."""
    base: Base | None = None
    """What they were trained beside."""

    @property
    def has_pooling_head(self) -> bool:
        """Whether the tower carries SigLIP's attention pooling."""
        return any(name.startswith(TOWER + POOLING) for name in self.weights)

    @property
    def tower_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tower's tensors."""
        return tower_shapes(self.vision, self.has_pooling_head)

    @property
    def tower_file_names(self) -> Mapping[str, str]:
        """The names of the tower's tensors in a Hugging Face folder, those that differ."""
        return vision_family(self.vision.model_type).file_names(self.vision)

    @contextmanager
    def tokenizer_dir(self) -> Iterator[Path]:
        """Yields a temporary folder with the tokenizer's files.

        Raises:
            DataError: the model has none.
        """
        if not self.tokenizer:
            raise DataError(f"{self.name} has no tokenizer; give one with --input_tokenizer")
        with super().tokenizer_dir() as folder:
            yield folder


def resolved_copy(config: DictConfig) -> DictConfig:
    """Returns a configuration of its own, without interpolations."""
    copied = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(copied, DictConfig)
    return copied


def merged(model: LazyModel) -> LazyModel:
    """Returns a model with its adapters merged into its matrices: one like any other."""
    if model.adapters is None:
        return model
    config = resolved_copy(model.config)
    with open_dict(config):
        config.peft.peft_scheme, config.restore_from_path = NO_PEFT, None
    return replace(
        model,
        config=config,
        weights=Merged(model.weights, model.language, model.vision, model.adapters),
        language=replace(model.language, lora=None),
        vision=replace(model.vision, lora=None),
        tower_reference=None if model.vision.lora is not None else model.tower_reference,
        adapters=None,
        base=None,
    )
