"""Where each part's first weights come from."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from omegaconf import DictConfig

from neva.config.model_config import language_config_of
from neva.constants import PARTS
from neva.formats.nemo import open_nemo
from neva.model.llava import NevaModel
from neva.weights.load import load_language_model, load_native, load_vision_tower

logger = logging.getLogger(__name__)

SCRATCH = "scratch"


@dataclass(frozen=True)
class Source:
    """Origin of a part's weights. `embedded` ones cannot be read again from `path` alone and must be saved."""

    path: str
    embedded: bool


def load_initial_weights(model: NevaModel, model_cfg: DictConfig) -> dict[str, Source]:
    """Fills the model: `from_pretrained` folders, then a stage-1 projector, then `restore_from_path` over them.

    Loads are strict: a part that has a source is filled completely, or the error names the tensors.

    Returns:
        The source of each part.
    """
    mm_cfg = model_cfg.mm_cfg
    sources = dict.fromkeys(PARTS, Source(SCRATCH, embedded=True))
    if mm_cfg.llm.from_pretrained is not None:
        load_language_model(model, mm_cfg.llm.from_pretrained, language_config_of(model_cfg))
        sources["language_model"] = Source(mm_cfg.llm.from_pretrained, embedded=False)
    if mm_cfg.vision_encoder.from_pretrained is not None:
        load_vision_tower(model, mm_cfg.vision_encoder.from_pretrained)
        sources["vision_tower"] = Source(mm_cfg.vision_encoder.from_pretrained, embedded=False)
    if mm_cfg.pretrain_mm_mlp_adapter is not None:
        sources |= _from_nemo(model, mm_cfg.pretrain_mm_mlp_adapter, model_cfg.vocab_size, ("projector",))
    if model_cfg.restore_from_path is not None:
        sources |= _from_nemo(model, model_cfg.restore_from_path, model_cfg.vocab_size, PARTS)
    return sources


def _from_nemo(model: NevaModel, path: str, vocab_size: int, parts: tuple[str, ...]) -> dict[str, Source]:
    """Fills those of `parts` that a `.nemo` holds."""
    weights = open_nemo(path).weights
    held = [part for part in parts if any(name.startswith(f"{part}.") for name in weights)]
    if not held:
        raise ValueError(
            f"{path} holds none of {', '.join(parts)}; expected a .nemo of neva with at least one of them"
        )
    load_native(model, weights, vocab_size, tuple(f"{part}." for part in held))
    return {part: Source(str(path), embedded=True) for part in held}
