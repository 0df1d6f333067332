"""A whole LLaVA model as native tensors, wherever its parts lie: in a `.nemo`, in Hugging Face folders, or
both.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from neva.config.model_config import vision_config_of
from neva.convert.readers.nemo1_file import is_old_nemo, open_old_nemo
from neva.convert.writers.hf_config import stored_config
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.language import language_config_from_hf, language_table
from neva.families.naming import LANGUAGE, PROJECTOR, TOWER, tower_prefix
from neva.families.vision import POOLING, tower_shapes, tower_table
from neva.formats.hf_folder import FolderWeights, read_config
from neva.formats.nemo import TOKENIZER, open_nemo
from neva.weights.lazy import Cast, Chained, Converted, Filtered
from neva.weights.load import is_nemo, language_layout, language_part

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LazyModel:
    """A complete model, not in memory: `weights` is a lazy mapping of native names to whole tensors."""

    name: str
    config: DictConfig
    """The `model` section."""
    language: LanguageConfig
    vision: VisionConfig
    connector: str
    """Kind of the projector."""
    weights: Mapping[str, Tensor]
    tokenizer: Mapping[str, bytes]
    """The tokenizer's files by name."""
    image_processor: Mapping[str, Any] | None
    tower_reference: Path | None
    """Folder whose tower is bit-equal to this model's, or None: the tower was trained or has no folder."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the language model's weights."""
        return self.weights[f"{LANGUAGE}decoder.final_layernorm.weight"].dtype

    def rounded(self, dtype: torch.dtype | None) -> "LazyModel":
        """The model with its weights rounded to `dtype`: what an export in that precision must compute."""
        return self if dtype is None else replace(self, weights=Cast(self.weights, dtype))

    @property
    def has_pooling_head(self) -> bool:
        """Whether the tower carries SigLIP's attention pooling."""
        return any(name.startswith(TOWER + POOLING) for name in self.weights)

    @contextmanager
    def tokenizer_dir(self) -> Iterator[Path]:
        """A temporary folder with the tokenizer's files. ValueError when the model has none."""
        if not self.tokenizer:
            raise ValueError(f"{self.name} has no tokenizer; give one with --input_tokenizer")
        with TemporaryDirectory() as folder:
            for name, content in self.tokenizer.items():
                (Path(folder) / name).write_bytes(content)
            yield Path(folder)

    @property
    def tower_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tower's tensors."""
        return tower_shapes(self.vision, self.has_pooling_head)


def open_model(
    source: str | Path, language_source: str | Path | None = None, tower_source: str | Path | None = None
) -> LazyModel:
    """The model of a LLaVA `.nemo` file, parts that it does not hold taken from their folders.

    A stage-1 file holds a projector, a fine-tuned one language model and projector; the rest is where
    `mm_cfg.llm.from_pretrained` and `mm_cfg.vision_encoder.from_pretrained` say, or in `language_source` and
    `tower_source`. ValueError names a part that is nowhere, and tensors that do not fit.
    """
    nemo = open_nemo(source)
    if "mm_cfg" not in nemo.config:
        raise ValueError(
            f"{source} holds a language model alone; expected a LLaVA model, with mm_cfg in its configuration"
        )
    language, vision = stored_config(nemo.config), vision_config_of(nemo.config)
    sources: list[Mapping[str, Tensor]] = [nemo.weights]
    if not _holds(nemo.weights, PROJECTOR):
        raise ValueError(f"{source} holds no projector; expected a .nemo file that a LLaVA training wrote")
    if not _holds(nemo.weights, LANGUAGE):
        folder = language_source or nemo.config.mm_cfg.llm.from_pretrained
        sources.append(language_weights(require_path(folder, "language model", "--llm_path"), language))
    tower_folder = tower_source or nemo.config.mm_cfg.vision_encoder.from_pretrained
    reference = None
    if _holds(nemo.weights, TOWER):
        reference = equal_tower(Filtered(nemo.weights, TOWER), tower_folder, vision)
    else:
        reference = require_path(tower_folder, "vision tower", "--vision_encoder_path")
        sources.append(tower_weights(reference, vision))
    tokenizer = {name: nemo.read(f"{TOKENIZER}/{name}") for name in nemo.tokenizer_files}
    weights = Chained(*sources)
    return LazyModel(
        str(source),
        nemo.config,
        language,
        vision,
        nemo.config.mm_cfg.mm_mlp_adapter_type,
        weights,
        tokenizer,
        nemo.image_processor,
        reference,
    )


def language_weights(source: Path, shape: LanguageConfig) -> Mapping[str, Tensor]:
    """The native tensors of a language model in a Hugging Face folder or a `.nemo` file; it must have
    `shape`'s sizes.
    """
    if is_nemo(source):
        old = is_old_nemo(source)
        return open_old_nemo(source).language(shape) if old else Filtered(open_nemo(source).weights, LANGUAGE)
    found = language_config_from_hf(read_config(source))
    if found.vocab_size != shape.vocab_size:
        raise ValueError(f"{source} has {found.vocab_size} vocabulary rows, the model {shape.vocab_size}")
    weights = FolderWeights(source)
    layout = language_layout(weights)
    return Converted(language_table(shape, layout), language_part(weights, layout, shape))


def tower_weights(source: Path, shape: VisionConfig) -> Mapping[str, Tensor]:
    """The native tensors of a vision tower in a Hugging Face folder or a `.nemo` file."""
    if is_nemo(source):
        return Filtered(open_nemo(source).weights, TOWER)
    weights = FolderWeights(source)
    prefix = tower_prefix(weights)
    has_head = any(name.startswith(prefix + POOLING) for name in weights)
    stored = Filtered(weights, prefix) if "vision_tower" in prefix else weights
    return Converted(tower_table(tower_shapes(shape, has_head), prefix), stored)


def _holds(weights: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights)


def require_path(folder: str | Path | None, part: str, flag: str) -> Path:
    """`folder`. ValueError naming `part` and `flag` when it does not exist."""
    if folder is None or not Path(folder).exists():
        raise ValueError(
            f"the .nemo file holds no {part} and {folder} does not exist; say where it is with {flag}"
        )
    return Path(folder)


def equal_tower(held: Mapping[str, Tensor], folder: str | Path | None, shape: VisionConfig) -> Path | None:
    """`folder` when its tower is bit for bit the one held, else None."""
    if folder is None or not Path(folder).exists():
        return None
    original = tower_weights(Path(folder), shape)
    changed = [name for name in held if name not in original or not torch.equal(held[name], original[name])]
    if changed:
        logger.info(
            "the vision tower was trained: %d of %d tensors differ from %s", len(changed), len(held), folder
        )
        return None
    return Path(folder)
