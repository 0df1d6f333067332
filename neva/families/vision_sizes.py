"""Sizes of a vision tower as a `config.json` and as `VisionConfig` have them, and the hidden states that follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neva.errors import ConfigError
from neva.families.configs import VisionConfig
from neva.formats.json import shown

SIZES = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_hidden_size",
    "hidden_act": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
"""Keys of a `config.json`, and what `VisionConfig` calls them."""
SAYS_NOTHING = (
    *SIZES,
    *("model_type", "num_channels", "transformers_version", "torch_dtype", "dtype", "_name_or_path"),
    *("_attn_implementation", "use_cache", "output_hidden_states", "output_attentions", "return_dict"),
    *("initializer_range", "initializer_factor", "problem_type", "is_encoder_decoder"),
    "chunk_size_feed_forward",
)
"""Keys of a `config.json` that change nothing of a tower beside its sizes."""


def refuse_uneven(vision: VisionConfig) -> None:
    """Raises ConfigError for a tower whose heads do not share its width evenly, or that sees less than a patch."""
    if vision.hidden_size % vision.num_heads:
        raise ConfigError(
            f"hidden_size is {vision.hidden_size}, which num_attention_heads {vision.num_heads} does not divide"
        )
    if vision.patch_size > vision.image_size:
        raise ConfigError(f"patch_size is {vision.patch_size}, more than image_size {vision.image_size}")


def transformers_sizes(vision: VisionConfig) -> dict[str, Any]:
    """Returns the sizes as the arguments of transformers' config classes."""
    return {key: getattr(vision, field) for key, field in SIZES.items()}


def hidden_states(num_layers: int) -> range:
    """Returns the indices of a tower's hidden states: 0 is the embedding, -1 the last layer's output."""
    return range(-num_layers - 1, num_layers + 1)


def num_layers_run(vision: VisionConfig) -> int:
    """Returns how many layers stand before the last selected hidden state.

    Raises:
        ConfigError: the tower has no such hidden state.
    """
    states = hidden_states(vision.num_layers)
    if not vision.select_layers or any(layer not in states for layer in vision.select_layers):
        raise ConfigError(
            f"vision_select_layer: found {shown(listed(vision.select_layer))}, expected {states[0]}..{states[-1]} for "
            f"a tower of {vision.num_layers} layers"
        )
    return max(layer % (vision.num_layers + 1) for layer in vision.select_layers)


def in_order(others: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Returns what `VisionConfig.others` holds for the keys of a `config.json`."""
    return tuple((key, _unchanging(others[key])) for key in sorted(others))


def _unchanging(value: Any) -> Any:
    return tuple(map(_unchanging, value)) if isinstance(value, list | tuple) else value


def listed(value: Any) -> Any:
    """Returns a value of `VisionConfig` as a `config.json` or a YAML holds it."""
    return list(map(listed, value)) if isinstance(value, tuple) else value
