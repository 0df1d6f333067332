"""Which parts of a run have their weights in its checkpoints, and which start from random ones for good."""

from __future__ import annotations

from omegaconf import DictConfig

from neva.constants import LANGUAGE_MODEL, VISION_TOWER
from neva.findings import Findings


def is_saved(model_cfg: DictConfig, part: str, is_trained: bool) -> bool:
    """Whether checkpoints hold a part: what is frozen and can be read again from its folder is not saved."""
    mm_cfg = model_cfg.mm_cfg
    folders = {
        VISION_TOWER: mm_cfg.vision_encoder.from_pretrained,
        LANGUAGE_MODEL: mm_cfg.llm.from_pretrained,
    }
    return is_trained or folders.get(part) is None or model_cfg.restore_from_path is not None


def note_random_parts(model_cfg: DictConfig, found: Findings) -> None:
    """Notes the parts that are frozen at random weights."""
    mm_cfg = model_cfg.mm_cfg
    for name, section in (("tower", mm_cfg.vision_encoder), ("language model", mm_cfg.llm)):
        if section.freeze and section.from_pretrained is None and model_cfg.restore_from_path is None:
            found.notes.append(
                f"the {name} is frozen with random weights: give it from_pretrained or train it"
            )
