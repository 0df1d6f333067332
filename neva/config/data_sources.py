"""What `model.data.data_path` names: one source of records, or several that are mixed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neva.errors import ConfigError

KEY = "model.data.data_path"
BRACES = re.compile(r"^(.*?)\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}(.*)$")
MOST_SHARDS = 100_000


@dataclass(frozen=True)
class DataSource:
    """One source of records."""

    path: str
    """A file or folder, or the paths of shards with braces: `shards/{000..099}.tar`."""
    image_folder: str | None
    """Folder or tar in which its records' images are; None: it brings them."""
    weight: float = 1.0
    """How often each of its records comes in an epoch."""
    name: str = ""


def data_sources(data_cfg: DictConfig) -> list[DataSource]:
    """Returns the sources that `data_path` names, each with the run's image folder unless it has one of its own.

    Raises:
        ConfigError: a list or table that is not of the described form.
    """
    given = data_cfg.data_path
    value: Any = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    if isinstance(value, str):
        return [DataSource(value, data_cfg.image_folder, name=Path(value).name)]
    if isinstance(value, Mapping):
        value = [{"name": name, **_table(entry, f"{KEY}.{name}")} for name, entry in value.items()]
    entries = [
        _source(entry, f"{KEY}[{number}]", data_cfg.image_folder) for number, entry in enumerate(value)
    ]
    if not entries:
        raise ConfigError(f"{KEY} is empty; expected a file, or a list of them")
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{KEY}: two sources are called {twice!r}; give each a name of its own")
    return entries


def is_mixture(data_cfg: DictConfig) -> bool:
    """Returns whether `data_path` is a list or a table."""
    return not isinstance(data_cfg.data_path, str)


def missing_records(data_cfg: DictConfig) -> list[str]:
    """Returns a line for each source that `data_path` names and that is not there; ConfigError as `data_sources`."""
    missing = []
    for source in data_sources(data_cfg):
        where = f"{KEY}: source {source.name}" if is_mixture(data_cfg) else KEY
        missing += [f"{where}: no file at {path}" for path in paths_of(source.path) if not path.exists()][:1]
    return missing


def missing_folders(data_cfg: DictConfig) -> list[str]:
    """Returns a line for each image folder of the sources that is not there."""
    return [
        f"{image_folder_key(data_cfg, source)}: no folder at {source.image_folder}"
        for source in data_sources(data_cfg)
        if source.image_folder is not None and not Path(source.image_folder).exists()
    ]


def image_folder_key(data_cfg: DictConfig, source: DataSource) -> str:
    """Returns what messages call the image folder of a source."""
    return f"the image_folder of {source.name}" if is_mixture(data_cfg) else "model.data.image_folder"


def paths_of(path: str) -> list[Path]:
    """Returns the paths that a path with braces stands for, in order; itself alone without braces.

    Raises:
        ConfigError: they are too many.
    """
    found = list(islice(_expanded(path), MOST_SHARDS + 1))
    if len(found) > MOST_SHARDS:
        raise ConfigError(f"{KEY}={path} stands for more than {MOST_SHARDS:,} files; list fewer")
    return [Path(text) for text in found]


def _expanded(text: str) -> Iterator[str]:
    braces = BRACES.match(text)
    if braces is None:
        yield text
        return
    before, first, last, choices, after = braces.groups()
    if choices is None:
        numbers = range(int(first), min(int(last), int(first) + MOST_SHARDS) + 1)
        parts: Sequence[str] = [str(number).zfill(len(first)) for number in numbers]
    else:
        parts = choices.split(",")
    for part in parts:
        yield from (f"{before}{part}{rest}" for rest in _expanded(after))


def _table(entry: Any, where: str) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"path": entry}
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{where}={entry!r:.80}: expected a path, or {{path: …, image_folder: …, weight: …}}"
        )
    return {str(name): value for name, value in entry.items()}


def _source(entry: Any, where: str, image_folder: str | None) -> DataSource:
    table = {"image_folder": image_folder, "weight": 1.0, "name": None, **_table(entry, where)}
    if unknown := set(table) - {"path", "image_folder", "weight", "name"}:
        raise ConfigError(
            f"{where}: unknown key {sorted(unknown)[0]}; expected path, image_folder, weight, name"
        )
    if not isinstance(table.get("path"), str):
        raise ConfigError(f"{where}.path={table.get('path')!r:.80}: expected a path")
    if not isinstance(table["image_folder"], str | None):
        raise ConfigError(f"{where}.image_folder={table['image_folder']!r:.80}: expected a path or null")
    weight = table["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1000:
        raise ConfigError(
            f"{where}.weight={weight!r:.80}: expected a number above 0, how often a record comes in an epoch"
        )
    return DataSource(
        table["path"], table["image_folder"], float(weight), str(table["name"] or Path(table["path"]).name)
    )
