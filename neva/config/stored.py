"""The `model` section that a `.nemo` records: what neva reads of it is checked by the rules of the same keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neva.config.experts import EXPERT_KEYS, NUMBER
from neva.config.keys.field import Key
from neva.config.keys.training import Training
from neva.config.language import FORM_KEYS, LANGUAGE_KEYS
from neva.config.peft import has_adapters
from neva.config.plain import plain
from neva.config.schema import NULLABLE, value_problems, walk
from neva.config.tower import SECOND_ENCODER, TOWER_KEYS
from neva.errors import CheckpointError, ConfigError
from neva.families.rope import check_scaling
from neva.families.values import LARGEST, MOST_LAYERS

LANGUAGE = (*LANGUAGE_KEYS, "max_position_embeddings")
TOWER = (*TOWER_KEYS, "vision_select_layer", "class_token_length")
SECOND_NEEDED = ("image_mean", "image_std")
"""What a second tower cannot be read without beside that."""

LLAVA = (
    *(f"mm_cfg.vision_encoder.{key}" for key in (*TOWER, "from_pretrained")),
    "mm_cfg.llm.from_pretrained",
    "mm_cfg.mm_mlp_adapter_type",
    "data.conv_template",
    "data.image_aspect_ratio",
)
"""Keys that a model cannot be read without."""

MEDIA = (
    "image_grid_pinpoints",
    "min_num_tiles",
    "max_num_tiles",
    "tile_grid",
    "use_thumbnail",
    "shortest_edge",
    "longest_edge",
    "do_image_splitting",
    "max_num_patches",
    "media_type",
    "num_frames",
    "splice_single_frame",
    "sep_token_between_frames",
    "video_reader",
    "jpeg_decoder",
)
OPTIONAL = (
    *FORM_KEYS,
    *(f"mm_cfg.vision_encoder.{key}" for key in ("input_size", "config", "post_layernorm")),
    *(
        "language_backend",
        "image_attention",
        *(f"mm_cfg.llm.{key}" for key in ("family", "config", "model_type")),
    ),
    *("mm_cfg.use_im_start_end", "mm_cfg.use_image_tile"),
    "moe_shared_expert_intermediate_size",
    *("data.system", "data.template", "data.exif_transpose", "data.sep_image_conv_front"),
    *(f"data.{key}" for key in MEDIA),
    *(
        f"peft.{key}"
        for key in ("peft_scheme", "quantization")
        + tuple(f"lora_tuning.{key}" for key in ("alpha", "layer_selection", "vision_target_modules"))
    ),
)
TUNING = tuple(
    f"peft.lora_tuning.{key}"
    for key in ("variant", "target_modules", "adapter_dim", "adapter_dropout", "dropout_position")
    + ("column_init_method", "row_init_method")
)
"""Keys that a model with adapters cannot be read without."""

EXPERTS = tuple(key for key in EXPERT_KEYS if key != "moe_shared_expert_intermediate_size")
"""Keys that a model with experts cannot be read without."""

"""Keys that are read where they are there."""

EMPTY = (*NULLABLE, "mm_cfg.vision_encoder.from_pretrained", "mm_cfg.llm.from_pretrained")
"""Keys whose null says something."""


def check_stored(config: DictConfig, where: str | Path) -> None:
    """Raises CheckpointError when the section lacks a key or has a value that no model can have, a line for each."""
    rules = {path.removeprefix("model."): (hint, rule) for path, hint, rule in walk(Training)}
    needed = (*LANGUAGE, *LLAVA) if "mm_cfg" in config else LANGUAGE
    if config.get(NUMBER) is not None:
        needed = (*needed, *EXPERTS)
    if has_adapters(config):
        needed = (*needed, *TUNING)
    found = [problem for key in needed for problem in _problems(config, key, *rules[key], is_needed=True)]
    if OmegaConf.select(config, f"mm_cfg.{SECOND_ENCODER}", default=None) is not None:
        for key in TOWER + SECOND_NEEDED:
            of_first = rules[f"mm_cfg.vision_encoder.{key}"]
            found += _problems(config, f"mm_cfg.{SECOND_ENCODER}.{key}", *of_first, is_needed=True)
    found += [problem for key in OPTIONAL for problem in _problems(config, key, *rules[key], is_needed=False)]
    if found:
        raise CheckpointError(f"model_config.yaml of {where}: {'; '.join(found[:3])}")


def _problems(config: DictConfig, key: str, hint: Any, rule: Any, is_needed: bool) -> list[str]:
    assert isinstance(rule, Key)
    missing = object()
    try:
        value = OmegaConf.select(config, key, default=missing)
    except (OmegaConfBaseException, TypeError, AttributeError) as error:
        return [f"{key} cannot be read ({' '.join(str(error).split()):.100})"]
    if value is missing or (value is None and key not in EMPTY):
        return [f"{key} is missing"] if is_needed and key not in EMPTY else []
    value = plain(value)
    most = MOST_LAYERS if key.endswith("num_layers") else LARGEST
    if isinstance(value, int) and value > most:
        return [f"{key}={value}: must be <= {most}"]
    if key == "rope_scaling" and isinstance(value, dict):
        try:
            check_scaling(value)
        except ConfigError as error:
            return [f"{key}: {error}"]
    return list(value_problems(key, value, hint, rule))
