"""Tower and language model of a resolved `model` section: which key is which size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from neva.config.experts import experts_config_of
from neva.config.peft import lora_of, tower_lora_of
from neva.errors import ConfigError
from neva.families.any_resolution import CAPPED_PATTERN, AnyResolution, CappedResolution
from neva.families.configs import (
    LLAMA_FORM,
    SILU,
    DecoderForm,
    LanguageConfig,
    VisionConfig,
    padded_vocab_size,
)
from neva.families.language import HUGGING_FACE, MEGATRON, language_config_from_hf
from neva.families.media_tokens import MediaRules, media_rules
from neva.families.own_shapes import FlexibleShape, KeptShape, NativeShape, WholeImage
from neva.families.tile_grids import DynamicTiles, FixedGrid
from neva.families.tiling import Tiling
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

LANGUAGE_KEYS = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "num_heads",
    "num_query_groups": "num_query_groups",
    "kv_channels": "head_dim",
    "vocab_size": "vocab_size",
    "rotary_base": "rope_theta",
    "rope_scaling": "rope_scaling",
    "layernorm_epsilon": "rms_norm_eps",
    "share_embeddings_and_output_weights": "tied",
    "add_qkv_bias": "qkv_bias",
    "qk_layernorm": "qk_norm",
    "window_size": "sliding_window",
}
"""Key of `model` -> field of LanguageConfig."""

FORM_KEYS = {
    "normalization": "norm",
    "transformer_block_type": "norm_place",
    "activation": "activation",
    "rotary_percentage": "rotary_share",
    "qk_layernorm_scope": "qk_norm_over",
    "query_pre_attn_scalar": "query_scalar",
    "attn_logit_softcapping": "score_cap",
    "final_logit_softcapping": "logit_cap",
    "scale_embeddings": "scales_embeddings",
    "global_attention_interval": "global_interval",
    "rotary_base_local": "local_rope_theta",
}
"""Key of `model` -> field of DecoderForm. One that is null or absent, as in older models, is LLaMA's."""

SAME_ACTIVATION = {"fast-swiglu": SILU}
"""What NeMo calls a fused kernel of the same arithmetic."""


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


def plain(value: Any) -> Any:
    """Returns a value of a tree without OmegaConf's lists and mappings."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def system_prompt_of(model_cfg: DictConfig) -> str | None:
    """Returns the system prompt of conversations that bring none; None: the template's own.

    Models that were recorded before there was such a key have the template's own.
    """
    return OmegaConf.select(model_cfg, "data.system")


IMAGE_TAGS: dict[str | None, tuple[str, str]] = {
    None: ("<im_start>", "<im_end>"),
    **dict.fromkeys(("nvgpt", "llama_2", "v1", "mistral"), ("<extra_id_4>", "<extra_id_5>")),
    "llama_3": ("<|reserved_special_token_4|>", "<|reserved_special_token_5|>"),
    "idefics2": ("<fake_token_around_image>", "<fake_token_around_image>"),
}
"""`mm_cfg.llm.model_type` -> the tokens around an image: NeVA's by language model, Idefics2's, LLaVA's without one."""


def image_tags_of(model_cfg: DictConfig) -> tuple[str, str] | None:
    """Returns the tokens around an image, None where `use_im_start_end` is off, as in older models."""
    if not OmegaConf.select(model_cfg, "mm_cfg.use_im_start_end"):
        return None
    return IMAGE_TAGS[OmegaConf.select(model_cfg, "mm_cfg.llm.model_type")]


def own_template_of(model_cfg: DictConfig) -> dict[str, Any] | None:
    """Returns `data.template`, None where there is none, as in older models."""
    own = OmegaConf.select(model_cfg, "data.template")
    return None if own is None else OmegaConf.to_container(own)  # type: ignore[return-value]


def turns_images(model_cfg: DictConfig) -> bool:
    """Whether images are turned by their EXIF orientation; models recorded before there was such a key do not."""
    return bool(OmegaConf.select(model_cfg, "data.exif_transpose"))


def jpeg_decoder_of(model_cfg: DictConfig) -> Literal["pillow", "simplejpeg"]:
    """Returns what decodes JPEG files; models recorded before there was a choice say nothing of it."""
    return OmegaConf.select(model_cfg, "data.jpeg_decoder") or "pillow"


def media_rules_of(model_cfg: DictConfig, vision: VisionConfig) -> MediaRules:
    """Returns what media become in a resolved `model` section, or in one that a `.nemo` recorded, with its tower.

    Raises:
        ConfigError: tower, projector and `image_aspect_ratio` do not fit each other.
    """
    separates_frames = bool(model_cfg.data.get("sep_token_between_frames"))
    kind = model_cfg.mm_cfg.mm_mlp_adapter_type
    return media_rules(vision, kind, tiling_of(model_cfg.data), separates_frames)


def tiling_of(data: DictConfig) -> Tiling:
    """Returns how images are cut. Models recorded before there were tiles have none of these keys, and no tiles."""
    kind = data.image_aspect_ratio
    if kind.startswith("anyres"):
        listed = data.image_grid_pinpoints
        pinpoints = None if listed is None else tuple(tuple(size) for size in listed)
        capped = re.fullmatch(CAPPED_PATTERN, kind)
        return (
            AnyResolution(pinpoints) if capped is None else CappedResolution(pinpoints, int(capped["most"]))
        )
    if kind == "dynamic":
        return DynamicTiles(data.min_num_tiles, data.max_num_tiles, data.use_thumbnail)
    if kind == "grid":
        return FixedGrid(data.tile_grid[0], data.tile_grid[1], data.use_thumbnail)
    if kind == "keep":
        return KeptShape()
    if kind == "naflex":
        return FlexibleShape(data.max_num_patches)
    if kind == "native":
        return NativeShape(data.shortest_edge, data.longest_edge, data.do_image_splitting)
    return WholeImage()


@dataclass(frozen=True)
class VideoChoice:
    """The frames of a video that are shown: `num_frames` spread evenly (-1: all), or a single one."""

    num_frames: int
    single: Literal["first", "middle", "last"] | None
    library: Literal["decord", "pyav"]

    @property
    def usual_frames(self) -> int:
        """How many they are, or 1 where each video has its own number."""
        return self.num_frames if self.single is None and self.num_frames > 0 else 1


def video_choice(data: DictConfig) -> VideoChoice | None:
    """Returns how videos are read; None where they are not, as in models recorded before there were such keys.

    Raises:
        ConfigError: no frame of them is.
    """
    if data.get("media_type", "image") != "video":
        return None
    if data.num_frames == 0:
        raise ConfigError(
            "model.data.num_frames=0 shows nothing of a video: give a number, or -1 for all frames"
        )
    return VideoChoice(data.num_frames, data.splice_single_frame, data.video_reader)


def language_config_of(model_cfg: DictConfig) -> LanguageConfig:
    """Returns the language model of a resolved `model` section."""
    if language_backend_of(model_cfg) == HUGGING_FACE:
        found = language_config_from_hf(plain(recorded_llm(model_cfg)["config"]), HUGGING_FACE)
        return replace(found, lora=lora_of(model_cfg))
    sizes = {field: model_cfg[key] for key, field in LANGUAGE_KEYS.items()}
    sizes |= {field: float(sizes[field]) for field in ("rope_theta", "rms_norm_eps")}
    if sizes["rope_scaling"] is not None:
        sizes["rope_scaling"] = OmegaConf.to_container(sizes["rope_scaling"])
    return LanguageConfig(
        **sizes,
        form=decoder_form_of(model_cfg),
        padded_vocab_size=padded_vocab_size(
            model_cfg.vocab_size, model_cfg.make_vocab_size_divisible_by, model_cfg.tensor_model_parallel_size
        ),
        max_positions=model_cfg.max_position_embeddings,
        family=recorded_family(model_cfg),
        sees_whole_images=image_attention_of(model_cfg) == BIDIRECTIONAL,
        sees_whole_prompts=image_attention_of(model_cfg) == PREFIX,
        experts=experts_config_of(model_cfg),
        lora=lora_of(model_cfg),
    )


CAUSAL, BIDIRECTIONAL, PREFIX = "causal", "bidirectional", "prefix"
"""`model.image_attention`: what the positions of an image see of it, or of the whole prompt."""


def image_attention_of(model_cfg: Mapping[str, Any] | DictConfig) -> str:
    """Returns what positions of an image see; in models recorded before there was a choice, what is before them."""
    return model_cfg.get("image_attention") or CAUSAL


def decoder_form_of(model_cfg: Mapping[str, Any] | DictConfig) -> DecoderForm:
    """Returns how the decoder of a `model` section differs from LLaMA's."""
    given = {field: model_cfg.get(key) for key, field in FORM_KEYS.items()}
    chosen: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    if "activation" in chosen:
        chosen["activation"] = SAME_ACTIVATION.get(chosen["activation"], chosen["activation"])
    floats = ("rotary_share", "query_scalar", "score_cap", "logit_cap", "local_rope_theta")
    chosen |= {field: float(chosen[field]) for field in floats if field in chosen}
    return DecoderForm(**chosen)


def form_keys(form: DecoderForm) -> dict[str, Any]:
    """Returns the keys of `model` that say a form."""
    return {key: getattr(form, field) for key, field in FORM_KEYS.items()}


def differing_form_keys(form: DecoderForm) -> dict[str, Any]:
    """Returns those of them that are not LLaMA's: what a `.nemo` records."""
    usual = form_keys(LLAMA_FORM)
    return {key: value for key, value in form_keys(form).items() if value != usual[key]}


def language_backend_of(section: Mapping[str, Any] | DictConfig) -> str:
    """Returns who runs the language model; of models recorded before there was a choice, Megatron."""
    return section.get("language_backend") or MEGATRON


def recorded_llm(section: Mapping[str, Any] | DictConfig) -> Any:
    """Returns what a `model` section, or that of a language model alone, records of it beside its sizes."""
    return section["mm_cfg"]["llm"] if "mm_cfg" in section else section


def recorded_family(section: Mapping[str, Any] | DictConfig) -> str | None:
    """Returns the family that a `model` section, or that of a language model alone, records; None: sizes tell it."""
    family: str | None = recorded_llm(section).get("family")
    return family


def row_length(model_cfg: DictConfig) -> int:
    """Returns the positions of a full row of a micro batch: of the longest sample, or of a pack."""
    data: DictConfig = model_cfg.data
    longest: int = (
        data.packed_length if data.packed_sequence and data.packed_length else model_cfg.encoder_seq_length
    )
    return longest
