"""Datasets that megatron-energon's `prepare` has prepared: a folder of shards with `.nv-meta`.

Which shards train is in `split.yaml`, what the parts of a sample are in `dataset.yaml`; both are read as energon reads
them. The order is neva's, a pure function: a checkpoint holds its position, where energon saves the state of a loader.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from neva.config.data_sources import paths_of
from neva.data.sources.parts import ENERGON, SampleForm
from neva.data.sources.webdataset import META, ShardRecords, open_shards
from neva.errors import DataError, reason
from neva.registry import SOURCES


class EnergonSource:
    """Reads the split `train` of a prepared folder."""

    form = "a folder that `energon prepare` has prepared"

    def accepts(self, path: Path) -> bool:
        """Returns whether `path` has energon's `.nv-meta`."""
        return (path / META).is_dir()

    def open(self, path: Path, datasets_exclude: Collection[str] = ()) -> ShardRecords:
        """Returns the samples of the split `train`.

        Raises:
            DataError: the folder is not prepared, or its samples are of a type that is not read.
        """
        shards = training_shards(path)
        if missing := next((shard for shard in shards if not shard.is_file()), None):
            raise DataError(
                f"{path}/{META}/split.yaml names {missing.name}, which is not there; prepare the folder again"
            )
        return open_shards(path, shards, form_of(path), datasets_exclude)


SOURCES.register("energon", EnergonSource())


def training_shards(folder: Path) -> list[Path]:
    """Returns the shards of the split `train`; DataError when there are none."""
    split = _read(folder / META / "split.yaml")
    listed = (split.get("split_parts") or {}).get("train") or []
    if sample := next(
        (entry for entry in split.get("exclude") or [] if not str(entry).endswith(".tar")), None
    ):
        raise DataError(
            f"{folder}/{META}/split.yaml excludes {sample!r}; shards are left out as a whole: pack this one without it"
        )
    excluded = {
        folder / name for entry in split.get("exclude") or [] for name in map(str, paths_of(str(entry)))
    }
    shards = [folder / name for entry in listed for name in map(str, paths_of(str(entry)))]
    kept = [shard for shard in shards if shard not in excluded]
    if not kept:
        raise DataError(
            f"{folder}/{META}/split.yaml puts no shard into the split train; prepare it with another ratio"
        )
    return kept


def form_of(folder: Path) -> SampleForm:
    """Returns what the parts of a sample mean.

    Raises:
        DataError: the type of the samples, or the way to load them, is not read.
    """
    path = folder / META / "dataset.yaml"
    dataset = _read(path)
    if "sample_loader" in dataset:
        raise DataError(
            f"{path} has a sample_loader, which is Python code in the data; expected a field_map: prepare it with one, "
            "or as CrudeWebdataset with conversations in json"
        )
    declared = dataset.get("sample_type") or dataset
    kind = re.sub(r"(Sample|Webdataset)$", "", str(declared.get("__class__")))
    if kind == "Crude":
        return SampleForm()
    if kind not in ENERGON:
        known = ", ".join(f"{name}Sample" for name in ENERGON)
        raise DataError(f"{path}: samples are {declared.get('__class__')}; expected CrudeWebdataset, {known}")
    fields = dataset.get("field_map")
    if not isinstance(fields, Mapping) or not all(isinstance(value, str) for value in fields.values()):
        raise DataError(f"{path} has no field_map of texts; expected one, as energon prepare writes it")
    return SampleForm(kind, dict(fields))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read ({reason(error)}); run energon prepare again") from error
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds no mapping; run energon prepare again")
    return found
