"""What a checkpoint's `config.json` says goes into keys that are null, and is compared with those that are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig

from neva.config.plain import plain
from neva.config.show import as_override
from neva.errors import ConfigError, naming
from neva.formats.hf_files import MODEL_CONFIG
from neva.formats.json import read_object

Shape = TypeVar("Shape")


def read_shape(folder: str | None, from_hf: Callable[[dict[str, Any]], Shape]) -> Shape | None:
    """What the `config.json` of a Hugging Face folder says, or None when there is no such file (yet)."""
    path = Path(folder) / MODEL_CONFIG if folder else None
    if path is None or not path.is_file():
        return None
    with naming(path):
        return from_hf(read_object(path, ConfigError))


def fill_or_compare(
    section: DictConfig, expected: Mapping[str, Any], path: str, source: str, group: str | None = None
) -> None:
    """Fills nulls of `section` with `expected`; raises when a given value differs, with all differences."""
    remedy = (
        f"correct the key or leave it out (in a tree of your own: {group}=from_checkpoint)"
        if group
        else ("leave the key out")
    )
    problems = []
    for key, value in expected.items():
        given = plain(section[key])
        if given is None:
            section[key] = value
        elif given != value:
            problems.append(
                f"{path}.{key}={as_override(given)} but {source} gives {as_override(value)}: {remedy}"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def require(section: DictConfig, keys: tuple[str, ...], path: str, folder: str | None) -> None:
    unknown = [key for key in keys if section[key] is None]
    if unknown:
        names = ", ".join(f"{path}.{key}" for key in unknown)
        found = f"{folder}/config.json does not exist or lacks them" if folder else "no checkpoint gives them"
        raise ConfigError(f"not known: {names}; {found}: give the values or the checkpoint folder")
