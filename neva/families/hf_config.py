"""Read the shape of a language model or vision tower from a Hugging Face `config.json` (a dict; no torch, no
transformers).

A `config.json` may be partial: what it omits is what transformers' config class of that `model_type` assumes.
These assumptions are written out below (transformers 5.23, `models/<type>/configuration_<type>.py`; equal in
4.x).
"""

from collections.abc import Mapping
from typing import Any

from neva.errors import ConfigError
from neva.families.configs import LanguageConfig, VisionConfig

_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
}
_QWEN: dict[str, Any] = {
    **_LLAMA,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
LANGUAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {
        **_LLAMA,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    # github.com/jingyaogong/minimind, model/model_minimind.py; its class writes every other key
    "minimind": {
        **_LLAMA,
        "vocab_size": 6400,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
}
_CLIP: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_DINOV2: dict[str, Any] = {
    **_CLIP,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4,
}
VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": _CLIP,
    "siglip": {**_CLIP, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "dinov2": {key: value for key, value in _DINOV2.items() if key != "intermediate_size"},
}
CLASS_TOKENS = {"clip": 1, "siglip": 0, "dinov2": 1}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config: `text_config` of a multimodal one, else the config itself."""
    return config.get("text_config", config)


def vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tower's part of a config: `vision_config` of a CLIP, SigLIP or LLaVA one, else the config
    itself.
    """
    return config.get("vision_config", config)


def vision_model_type(config: Mapping[str, Any]) -> str:
    """`clip`, `siglip`, `dinov2` … for either spelling (`clip_vision_model`, `clip`) of a tower's
    `model_type`.
    """
    part = vision_config(config)
    return str(part.get("model_type", config.get("model_type", ""))).removesuffix("_vision_model")


def language_config_from_hf(config: Mapping[str, Any]) -> LanguageConfig:
    """The shape that a `config.json` of LLaMA, Vicuna, Mistral, SmolLM2, Qwen2, Qwen3 or MiniMind describes.

    A LLaVA config is read through its `text_config`. `padded_vocab_size` is `vocab_size`: padding is the
    recipe's choice. `rope_scaling` holds transformers' keys (`rope_type`, `factor`, …) without `rope_theta`,
    or is None. Raises ConfigError for another architecture and for settings that would change the arithmetic
    unnoticed.
    """
    config = text_config(config)
    model_type = config.get("model_type", "llama")
    if "mm_vision_tower" in config and model_type in ("llava", "llava_llama"):
        model_type = "llama"  # haotian-liu/LLaVA's config is a LLaMA's with more keys
    if model_type not in LANGUAGE_DEFAULTS:
        raise ConfigError(
            f"model_type {model_type!r} is not a language model that neva reads; expected one of "
            f"{sorted(LANGUAGE_DEFAULTS)} (LLaMA-type weights of another name: set model_type to 'llama')"
        )
    values = {**LANGUAGE_DEFAULTS[model_type], **config}
    _refuse_other_arithmetic(model_type, values)
    heads = values["num_attention_heads"]
    theta, scaling = _rope(values)
    return LanguageConfig(
        num_layers=values["num_hidden_layers"],
        hidden_size=values["hidden_size"],
        ffn_hidden_size=values["intermediate_size"],
        num_heads=heads,
        num_query_groups=values["num_key_value_heads"] or heads,
        head_dim=values["head_dim"] or values["hidden_size"] // heads,
        vocab_size=values["vocab_size"],
        padded_vocab_size=values["vocab_size"],
        max_positions=values["max_position_embeddings"],
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=float(values["rms_norm_eps"]),
        tied=bool(values["tie_word_embeddings"]),
        qkv_bias=model_type == "qwen2" or bool(values["attention_bias"]),
        # MiniMind has q/k norms since the version whose class writes head_dim
        qk_norm=model_type == "qwen3" or (model_type == "minimind" and "head_dim" in config),
        sliding_window=_sliding_window(model_type, values),
    )


def _refuse_other_arithmetic(model_type: str, values: Mapping[str, Any]) -> None:
    def refuse(key: str, expected: str) -> None:
        raise ConfigError(
            f"config.json: {key} is {values[key]!r}, expected {expected}; neva has no such language model"
        )

    if values["hidden_act"] not in ("silu", "swish"):
        refuse("hidden_act", "silu")
    if values["mlp_bias"]:
        refuse("mlp_bias", "false")
    if values["attention_bias"] and model_type != "qwen2":
        refuse("attention_bias", "false (its output projection would carry a bias)")
    if values.get("use_moe"):
        refuse("use_moe", "false")
    if values.get("partial_rotary_factor", 1.0) != 1.0:
        refuse("partial_rotary_factor", "1.0")


def _rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling: in `rope_parameters` since transformers 5, `rope_theta` and `rope_scaling` before."""
    parameters = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = float(parameters.pop("rope_theta", values["rope_theta"]))
    rope_type = parameters.pop("type", None)
    rope_type = parameters.pop("rope_type", rope_type) or "default"
    if rope_type == "default":
        return theta, None
    if rope_type not in ("llama3", "linear"):
        raise ConfigError(f"config.json: rope_type is {rope_type!r}, expected one of default, linear, llama3")
    return theta, {"rope_type": rope_type, **parameters}


def _sliding_window(model_type: str, values: Mapping[str, Any]) -> int | None:
    """The window in tokens, or None. Qwen windows only the layers from `max_window_layers` on."""
    if model_type not in ("qwen2", "qwen3"):
        return values["sliding_window"]
    if not values["use_sliding_window"] or values["max_window_layers"] >= values["num_hidden_layers"]:
        return None
    if values["max_window_layers"] > 0:
        raise ConfigError(
            f"config.json: max_window_layers is {values['max_window_layers']} of "
            f"{values['num_hidden_layers']} layers; neva has one window "
            "for all layers: expected 0, or use_sliding_window false"
        )
    return values["sliding_window"]


def vision_config_from_hf(config: Mapping[str, Any], select_layer: int = -1) -> VisionConfig:
    """The shape of the tower that a CLIP, SigLIP, DINOv2 or LLaVA `config.json` describes.

    `select_layer` is the index into the tower's hidden states (-1: the last layer's output); it is the
    recipe's choice, except that a LLaVA config brings its own `vision_feature_layer`.
    """
    model_type = vision_model_type(config)
    if model_type not in VISION_DEFAULTS:
        raise ConfigError(
            f"model_type {model_type!r} is not a vision tower that neva reads; "
            f"expected one of {sorted(VISION_DEFAULTS)}"
        )
    values = {**VISION_DEFAULTS[model_type], **vision_config(config)}
    if "intermediate_size" not in values:
        values["intermediate_size"] = values["hidden_size"] * values["mlp_ratio"]
    return VisionConfig(
        model_type=model_type,
        image_size=_side(values, "image_size"),
        patch_size=_side(values, "patch_size"),
        hidden_size=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        ffn_hidden_size=values["intermediate_size"],
        hidden_act=values["hidden_act"],
        layer_norm_eps=float(values["layer_norm_eps"]),
        select_layer=config.get("vision_feature_layer", select_layer),
        class_token_length=CLASS_TOKENS[model_type],
    )


def _side(values: Mapping[str, Any], key: str) -> int:
    size = values[key]
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise ConfigError(f"config.json: {key} is {size}, expected a square")
    return size[0]
