"""The whole way from a recipe's name to a tree that a run can trust."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from neva.config.compose import CONF_DIR, Composed, read
from neva.config.derive import resolve
from neva.config.schema import check_keys, ignored_keys
from neva.config.stand_ins import release
from neva.config.validate import validate, world_size
from neva.registry import load_plugins


def load(
    config_name: str | None,
    overrides: Sequence[str],
    conf_dir: Path = CONF_DIR,
    tell: Callable[[str], None] = lambda remark: None,
) -> DictConfig:
    """Composes, completes and validates a recipe.

    Args:
        config_name: of the recipe; None: NEMO_CONFIG says it.
        overrides: `key=value` words.
        conf_dir: tree in which the recipe lies.
        tell: gets a sentence each on keys that were filled in and keys that have no effect.

    Returns:
        The complete tree, without interpolations and without derived nulls.

    Raises:
        ConfigError: the first step that fails, with all its problems, a line each.
    """
    cfg = complete(config_name, overrides, conf_dir, tell)
    validate(cfg, world_size(cfg.trainer))
    return cfg


def complete(
    config_name: str | None,
    overrides: Sequence[str],
    conf_dir: Path = CONF_DIR,
    tell: Callable[[str], None] = lambda remark: None,
) -> DictConfig:
    """As `load`, but for what must hold between keys.

    Raises:
        ConfigError: a plugin that does not exist, wrong keys, or values that contradict their source.
    """
    composed = read(config_name, overrides, conf_dir)
    for remark in _remarks(composed):
        tell(remark)
    return completed(composed)


def completed(composed: Composed) -> DictConfig:
    """As `complete`, of a tree that is composed already."""
    plugins = composed.tree.get("plugins")
    if isinstance(plugins, ListConfig):
        load_plugins(str(name) for name in plugins)
    check_keys(composed.tree)
    if composed.given is not None:
        release(composed.tree, composed.given)
    return resolve(composed.tree)


def _remarks(composed: Composed) -> list[str]:
    ignored, defaulted = ignored_keys(composed.tree), composed.defaulted
    remarks = {
        f"not in the YAML, by neva's defaults: {', '.join(defaulted)}": defaulted,
        f"without effect here (docs/configuration_keys.md says why): {', '.join(ignored)}": ignored,
    }
    return [remark for remark, keys in remarks.items() if keys]
