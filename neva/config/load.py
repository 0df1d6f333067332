"""The whole way from a recipe's name to a tree that a run can trust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from neva.config.compose import CONF_DIR, compose
from neva.config.derive import resolve
from neva.config.schema import check_keys
from neva.config.validate import validate, world_size
from neva.registry import load_plugins


def load(config_name: str | None, overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> DictConfig:
    """Composes, completes and validates a recipe.

    Returns:
        The complete tree, without interpolations and without derived nulls.

    Raises:
        ConfigError: the first step that fails, with all its problems, a line each.
    """
    completed = complete(compose(config_name, overrides, conf_dir))
    validate(completed, world_size(completed.trainer))
    return completed


def complete(composed: DictConfig) -> DictConfig:
    """Returns a composed tree with its keys checked and its derived values filled in, its plugins being imported first.

    Raises:
        ConfigError: a plugin that does not exist, wrong keys, or values that contradict their source.
    """
    plugins = composed.get("plugins")
    if isinstance(plugins, ListConfig):
        load_plugins(str(name) for name in plugins)
    check_keys(composed)
    return resolve(composed)
