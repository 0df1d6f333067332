"""Values of a `config.json` by their kind; one of another kind is refused with its key, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neva.errors import ConfigError
from neva.formats.json import shown

LARGEST = 2**31 - 1
"""Of a size: what a 32-bit whole number holds."""

LARGEST_NUMBER = 1e30
"""Far from what float32 overflows at."""

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast", "silu", "relu")
"""Of a tower's feed-forward layers, by transformers' names."""

MOST_LAYERS = 10_000
"""The tables of a model have some rows for each layer, and are made before a tensor is looked at."""


def whole(values: Mapping[str, Any], key: str, low: int = 1, high: int = LARGEST) -> int:
    """Returns the whole number of a key.

    Raises:
        ConfigError: it is something else, or outside of `low` to `high`.
    """
    value = values.get(key)
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{key} is {shown(value)}, expected a whole number from {low} to {high}")
    return value


def number(values: Mapping[str, Any], key: str) -> float:
    """Returns the number of a key.

    Raises:
        ConfigError: it is something else, not finite or not above 0.
    """
    value: Any = values.get(key)
    if type(value) not in (int, float) or not 0 < value < LARGEST_NUMBER:
        raise ConfigError(f"{key} is {shown(value)}, expected a number above 0")
    return float(value)


def flag(values: Mapping[str, Any], key: str) -> bool:
    """Returns whether a key says true; null says false.

    Raises:
        ConfigError: it is something else.
    """
    value = values.get(key)
    if not isinstance(value, bool | None):
        raise ConfigError(f"{key} is {shown(value)}, expected true or false")
    return bool(value)


def text(values: Mapping[str, Any], key: str) -> str:
    """Returns the text of a key.

    Raises:
        ConfigError: it is something else.
    """
    value = values.get(key)
    if not isinstance(value, str):
        raise ConfigError(f"{key} is {shown(value)}, expected a text")
    return value


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns the object of a key; empty where it is null or absent.

    Raises:
        ConfigError: it is something else.
    """
    value = values.get(key)
    if not isinstance(value, dict | None):
        raise ConfigError(f"{key} is {shown(value)}, expected an object with keys")
    return value or {}


def selected_layers(layer: Any) -> int | tuple[int, ...]:
    """Returns the hidden state of a tower that is named, or several: a list of one is that one.

    Raises:
        ConfigError: it is no number and no list of numbers.
    """
    layers = list(layer) if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
    if not layers or any(type(each) is not int for each in layers):
        raise ConfigError(f"vision_feature_layer: found {shown(layer)}, expected a layer or a list of layers")
    return layers[0] if len(layers) == 1 else tuple(layers)


def side(values: Mapping[str, Any], key: str) -> int:
    """Returns the side of a square in pixels, which is given once or for each direction.

    Raises:
        ConfigError: it is no square.
    """
    size = values.get(key)
    if not isinstance(size, list):
        return whole(values, key)
    if not size or any(other != size[0] for other in size):
        raise ConfigError(f"{key} is {shown(size)}, expected a square")
    return whole({key: size[0]}, key)


def activation(values: Mapping[str, Any]) -> str:
    """Returns the activation of a tower.

    Raises:
        ConfigError: it is not one of ACTIVATIONS.
    """
    name = text(values, "hidden_act")
    if name not in ACTIVATIONS:
        raise ConfigError(f"hidden_act is {shown(name)}, expected one of {', '.join(ACTIVATIONS)}")
    return name
