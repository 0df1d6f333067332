"""Which parts of a run have their weights in its checkpoints, and which start from random ones for good."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from neva.config.tower import SECOND_ENCODER
from neva.constants import ALL_PARTS
from neva.errors import CheckpointError
from neva.findings import Findings
from neva.weights.resolve import resolve_weights


def saved_parts(model_cfg: DictConfig, trained: Collection[str], found: Findings) -> list[str]:
    """Returns the parts that checkpoints hold: those that train, or that no folder has.

    A `.nemo` that cannot be used is a problem; where it is missing, that is said with the other files.
    """
    try:
        origins = resolve_weights(model_cfg)
    except CheckpointError as error:
        named = (model_cfg.restore_from_path, model_cfg.mm_cfg.pretrain_mm_mlp_adapter)
        if all(path is None or Path(path).exists() for path in named):
            found.problems.append(str(error))
        return list(ALL_PARTS)
    return [part for part, origin in origins.items() if part in trained or origin.embedded]


def note_random_parts(model_cfg: DictConfig, found: Findings) -> None:
    """Notes the parts that are frozen at random weights."""
    mm_cfg = model_cfg.mm_cfg
    for name, section in (
        ("tower", mm_cfg.vision_encoder),
        ("second tower", mm_cfg.get(SECOND_ENCODER)),
        ("language model", mm_cfg.llm),
    ):
        if section is None:
            continue
        if section.freeze and section.from_pretrained is None and model_cfg.restore_from_path is None:
            found.notes.append(
                f"the {name} is frozen with random weights: give it from_pretrained or train it"
            )
