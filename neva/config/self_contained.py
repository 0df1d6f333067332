"""A YAML without a defaults list, as NeVA's are: what it lacks comes from `conf/base`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from neva.config.plain import plain
from neva.config.schema import Inference, leaves, root_of
from neva.config.show import as_override
from neva.errors import ConfigError


def is_self_contained(path: Path) -> bool:
    """Whether the YAML file names no file of a config group.

    Raises:
        ConfigError: it cannot be read as a mapping.
    """
    try:
        own = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(own, DictConfig):
        raise ConfigError(f"{path} holds no keys: expected a mapping, as in conf/")
    listed = OmegaConf.to_container(own).get("defaults")  # type: ignore[union-attr]
    return not any(entry != "_self_" for entry in listed or [])


def on_base(own: DictConfig, compose_base: Callable[[str], DictConfig]) -> tuple[DictConfig, list[str]]:
    """Returns the tree of a self-contained YAML with what it lacks, and `key=value` of that.

    Keys that are null, or that the base leaves open, are not listed: they follow from others or are asked for.

    Args:
        own: what stands in the file, with the overrides.
        compose_base: composes a recipe of `conf/base`.
    """
    base = compose_base("base/inference" if root_of(own) is Inference else "base/training")
    OmegaConf.set_struct(base, False)
    merged = OmegaConf.merge(base, own)
    assert isinstance(merged, DictConfig)
    given = set(leaves(own))
    added = [
        path
        for path in leaves(base)
        if path not in given and not any(g.startswith(path + ".") for g in given)
    ]
    values = {path: select(merged, path) for path in added}
    return merged, [f"{path}={as_override(value)}" for path, value in values.items() if value is not None]


def select(tree: DictConfig, key: str) -> object:
    """Returns what stands at a key, references followed as far as they lead to something."""
    value = OmegaConf.select(tree, key, throw_on_missing=False, throw_on_resolution_failure=False)
    return plain(value)
