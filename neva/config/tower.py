"""The vision tower of a resolved `model` section: which key is which size."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

from neva.config.peft import tower_lora_of
from neva.config.plain import plain
from neva.families.configs import VisionConfig
from neva.families.two_towers import Colours, with_second
from neva.families.values import selected_layers
from neva.families.vision import vision_family
from neva.families.vision_sizes import in_order
from neva.registry import VISION_FAMILIES

TOWER_KEYS = {
    "model_type": "model_type",
    "image_size": "image_size",
    "patch_dim": "patch_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "ffn_hidden_size": "ffn_hidden_size",
    "hidden_act": "hidden_act",
    "layernorm_epsilon": "layer_norm_eps",
}
"""Key of `mm_cfg.vision_encoder` -> field of VisionConfig."""

SECOND_ENCODER = "second_vision_encoder"
"""Section of `mm_cfg`, null where there is no second tower, as in models recorded before there was such a key."""


def vision_config_of(model_cfg: DictConfig) -> VisionConfig:
    """Returns the tower of a resolved `model` section, with a second one where there is one.

    A section that was recorded without `use_image_tile` has it off.

    Raises:
        ConfigError: the two do not go together.
    """
    mm_cfg = model_cfg.mm_cfg
    vision = replace(
        _tower_of(mm_cfg.vision_encoder),
        image_tiles=bool(OmegaConf.select(model_cfg, "mm_cfg.use_image_tile")),
        lora=tower_lora_of(model_cfg),
    )
    if (second := mm_cfg.get(SECOND_ENCODER)) is None:
        return vision
    shown, learnt = (
        Colours(plain(tower.image_mean), plain(tower.image_std)) for tower in (mm_cfg.vision_encoder, second)
    )
    return with_second(vision, _tower_of(second), shown, learnt)


def _tower_of(tower: DictConfig) -> VisionConfig:
    sizes = {field: tower[key] for key, field in TOWER_KEYS.items()}
    sizes["layer_norm_eps"] = float(sizes["layer_norm_eps"])  # a YAML may say 1
    # models recorded before there were these keys do as their absence says
    others, dropped = plain(tower.get("config")) or {}, tower.class_token_length
    is_known = tower.model_type in VISION_FAMILIES
    leading = vision_family(tower.model_type).leading_tokens(others) if is_known else dropped
    return VisionConfig(
        **sizes,
        select_layer=selected_layers(plain(tower.vision_select_layer)),
        class_token_length=dropped,
        input_size=tower.get("input_size"),
        kept_tokens=leading - dropped,
        post_layernorm=bool(tower.get("post_layernorm")),
        others=in_order(others),
    )
