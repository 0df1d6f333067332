"""The whole way from a recipe's name to a tree that a run can trust."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from neva.config.compose import CONF_DIR, compose
from neva.config.derive import resolve
from neva.config.schema import check
from neva.config.validate import validate, world_size


def load(config_name: str | None, overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> DictConfig:
    """Compose, check, resolve and validate.

    Returns:
        The complete tree, without interpolations and without derived nulls.

    Raises:
        ConfigError: the first of the four steps that fails, with all its problems, a line each.
    """
    composed = compose(config_name, overrides, conf_dir)
    check(composed)
    resolved = resolve(composed)
    validate(resolved, world_size(resolved.trainer))
    return resolved
