"""RoPE in a `config.json`: base, scaling and the numbers that each kind of scaling needs.

The kinds are those of transformers' `modeling_rope_utils`. What it derives from the longest position is written out
when it is read, since a recipe may train with another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neva.errors import ConfigError
from neva.families.values import flag, number, section, whole
from neva.formats.json import shown

if TYPE_CHECKING:
    from neva.families.configs import LanguageConfig

ORIGINAL = "original_max_position_embeddings"
DYNAMIC, YARN, LONGROPE = "dynamic", "yarn", "longrope"

SCALING_KEYS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    DYNAMIC: ("factor", ORIGINAL),
    YARN: ("factor", ORIGINAL),
    LONGROPE: ("factor", ORIGINAL),
}
"""Type of scaled RoPE -> the numbers that it needs."""

OPTIONAL_KEYS = {
    YARN: ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    LONGROPE: ("attention_factor",),
}
LISTS = ("short_factor", "long_factor")
"""Of longrope: by what each frequency is divided, up to the original length and beyond."""

BY_LENGTH = (DYNAMIC, LONGROPE)
"""Kinds whose frequencies depend on how long a sequence is."""


def read_rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Returns base and scaling: of `rope_parameters` since transformers 5, of two keys before."""
    parameters = dict(_parameters(values))
    parameters.pop("partial_rotary_factor", None)  # see `rotary_share`
    theta = number({"rope_theta": parameters.pop("rope_theta", values["rope_theta"])}, "rope_theta")
    rope_type = parameters.pop("type", None)
    rope_type = parameters.pop("rope_type", rope_type) or "default"
    if rope_type == "default":
        return theta, None
    scaling = {"rope_type": rope_type, **parameters}
    if rope_type in (DYNAMIC, YARN, LONGROPE):
        _write_out(scaling, values)
    check_scaling(scaling)
    return theta, scaling


def _parameters(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the numbers of RoPE; where somebody has added the older key, transformers takes that."""
    return section(values, "rope_scaling") or section(values, "rope_parameters")


def _write_out(scaling: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Fills what transformers derives from the longest position; of `dynamic` that is the original length."""
    longest = whole(values, "max_position_embeddings")
    original = longest
    if scaling["rope_type"] != DYNAMIC:
        original = values.get(ORIGINAL) or scaling.get(ORIGINAL) or longest
    scaling[ORIGINAL] = whole({ORIGINAL: original}, ORIGINAL)
    if scaling["rope_type"] != DYNAMIC and scaling.get("factor") is None:
        scaling["factor"] = longest / original


def check_scaling(scaling: Mapping[str, Any], rotary_dim: int | None = None) -> None:
    """Raises ConfigError for a scaled RoPE that neva has not, or that lacks a number.

    `rotary_dim`, where it is known: elements of a head that are turned; longrope has a factor for each two of them.
    """
    rope_type = scaling.get("rope_type")
    if not isinstance(rope_type, str) or rope_type not in SCALING_KEYS:
        known = ", ".join(SCALING_KEYS)
        raise ConfigError(f"rope_type is {shown(rope_type)}, expected one of default, {known}")
    for key in SCALING_KEYS[rope_type]:
        number(scaling, key)
    for key in OPTIONAL_KEYS.get(rope_type, ()):
        if scaling.get(key) is not None:
            number(scaling, key)
    if rope_type == YARN:
        flag(scaling, "truncate")
    for key in LISTS if rope_type == LONGROPE else ():
        _check_list(scaling, key, rotary_dim)


def _check_list(scaling: Mapping[str, Any], key: str, rotary_dim: int | None) -> None:
    factors = scaling.get(key)
    if isinstance(factors, str) or not hasattr(factors, "__len__") or isinstance(factors, Mapping):
        raise ConfigError(f"{key} is {shown(factors)}, expected a list of numbers")
    for factor in factors:  # type: ignore[union-attr]
        number({key: factor}, key)
    if rotary_dim is not None and len(factors) != rotary_dim // 2:  # type: ignore[arg-type]
        raise ConfigError(
            f"{key} has {len(factors)} numbers, expected {rotary_dim // 2}: "  # type: ignore[arg-type]
            f"one for two of the {rotary_dim} elements of a head that are turned"
        )


def rotary_share(values: Mapping[str, Any]) -> float:
    """Returns the share of each head that is turned by its position.

    Raises:
        ConfigError: it is none.
    """
    share = _parameters(values).get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if share is None:
        return 1.0
    if (share := number({"partial_rotary_factor": share}, "partial_rotary_factor")) > 1:
        raise ConfigError(f"partial_rotary_factor is {share}, expected at most 1")
    return share


def rope_keys(language: LanguageConfig) -> dict[str, Any]:
    """Returns the keys of `config.json` about positions, in the spellings of transformers 4.45 to 5.x."""
    scaling, longest = None, language.max_positions
    if language.rope_scaling:
        scaling = dict(language.rope_scaling)
        if scaling["rope_type"] == DYNAMIC:  # transformers takes the original length from here
            longest = int(scaling.pop(ORIGINAL))
    share = language.form.rotary_share
    partial = {} if share == 1 else {"partial_rotary_factor": share}
    return {
        "max_position_embeddings": longest,
        "rope_theta": language.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {
            "rope_type": "default",
            **(scaling or {}),
            "rope_theta": language.rope_theta,
            **partial,
        },
        **partial,
    }
