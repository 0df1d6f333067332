"""Which parts of a model train, and at which share of the learning rate: one rule for training, dry run, planner."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from neva.config.peft import has_adapters
from neva.config.tower import SECOND_ENCODER
from neva.constants import ADAPTERS, LANGUAGE_MODEL, PROJECTOR, SECOND_TOWER, VISION_TOWER


@dataclass(frozen=True)
class PartRule:
    """How one part trains; `lr_ratio` is its learning rate as a share of `optim.lr`."""

    is_trained: bool
    lr_ratio: float


def part_rules(model_cfg: DictConfig) -> dict[str, PartRule]:
    """Returns the rule of each part, as the freeze switches and ratios of a resolved `model` section say."""
    mm_cfg = model_cfg.mm_cfg
    towers = {VISION_TOWER: mm_cfg.vision_encoder, SECOND_TOWER: mm_cfg.get(SECOND_ENCODER)}
    rules = {
        **{
            part: PartRule(not tower.freeze, tower.vision_encoder_lr_ratio)
            for part, tower in towers.items()
            if tower is not None
        },
        PROJECTOR: PartRule(not mm_cfg.mm_mlp_adapter_freeze, mm_cfg.mm_mlp_adapter_lr_ratio),
        LANGUAGE_MODEL: PartRule(not mm_cfg.llm.freeze, 1.0),
    }
    return rules | {ADAPTERS: PartRule(True, 1.0)} if has_adapters(model_cfg) else rules


def trained_parts(model_cfg: DictConfig) -> frozenset[str]:
    """Returns the names of the parts that train."""
    return frozenset(name for name, rule in part_rules(model_cfg).items() if rule.is_trained)
