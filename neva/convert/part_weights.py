"""Parts of a LLaVA model as native tensors, checked against the sizes of the model that takes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from neva.errors import CheckpointError
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.language import backend_of, read_language_config
from neva.formats.nemo_header import is_nemo, is_nemo1
from neva.weights.parts import language_weights, tower_weights

logger = logging.getLogger(__name__)


def checked_language_weights(source: Path, language: LanguageConfig) -> Mapping[str, Tensor]:
    """Returns the tensors of a language model in a Hugging Face folder or a `.nemo`, of NeMo 1 too.

    Raises:
        CheckpointError: it has other sizes than `language`.
    """
    if is_nemo1(source):
        from neva.convert.readers import nemo1_tables
        from neva.formats.nemo1 import open_nemo1

        return nemo1_tables.language_part(open_nemo1(source), language)
    if not is_nemo(source):
        found = read_language_config(source, backend_of(language))
        if found.vocab_size != language.vocab_size:
            raise CheckpointError(
                f"{source} has {found.vocab_size} vocabulary rows, the model {language.vocab_size}"
            )
    return language_weights(source, language)


def vision_weights(source: Path, vision: VisionConfig) -> Mapping[str, Tensor]:
    """Returns the tensors of a vision tower in a Hugging Face folder or a `.nemo`."""
    return tower_weights(source, vision)


def require_path(folder: str | Path | None, part: str, flag: str) -> Path:
    """Returns `folder`.

    Raises:
        CheckpointError: it does not exist; the message names `part` and `flag`.
    """
    if folder is None or not Path(folder).exists():
        raise CheckpointError(
            f"the .nemo file holds no {part} and {folder} does not exist; say where it is with {flag}"
        )
    return Path(folder)


def equal_tower(held: Mapping[str, Tensor], folder: str | Path | None, vision: VisionConfig) -> Path | None:
    """Returns `folder` when its tower is bit for bit the one held, else None."""
    if folder is None or not Path(folder).exists():
        return None
    original = vision_weights(Path(folder), vision)
    changed = [name for name in held if name not in original or not torch.equal(held[name], original[name])]
    if changed:
        logger.info(
            "the vision tower was trained: %d of %d tensors differ from %s", len(changed), len(held), folder
        )
        return None
    return Path(folder)
