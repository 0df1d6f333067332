"""Two trees, key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neva.config.compose import CONF_DIR
from neva.config.load import complete
from neva.config.schema import leaf_values
from neva.config.show import as_override

ABSENT = "-"


def resolved_leaves(cfg: DictConfig) -> dict[str, Any]:
    """Returns dotted path and value of everything in a tree, interpolations resolved."""
    return leaf_values(OmegaConf.to_container(cfg, resolve=True))


def resolved(source: str) -> DictConfig:
    """Returns the resolved tree of a recipe's name, or of the path of a YAML file, such as a run's resolved.yaml.

    Raises:
        ConfigError: there is none, or it cannot be resolved.
    """
    path = Path(source)
    if path.suffix == ".yaml" and path.is_file():
        return complete(path.stem, [], path.resolve().parent)
    return complete(source, [], CONF_DIR)


def differences(first: DictConfig, second: DictConfig) -> list[tuple[str, str, str]]:
    """Returns key, first and second value as text where two trees differ, `-` where one lacks the key."""
    left, right = resolved_leaves(first), resolved_leaves(second)
    return [
        (key, _shown(left, key), _shown(right, key))
        for key in dict.fromkeys([*left, *right])
        if left.get(key, ...) != right.get(key, ...)
    ]


def _shown(values: dict[str, Any], key: str) -> str:
    return as_override(values[key]) if key in values else ABSENT
