"""Micro batches in a safetensors file: their tensors, and in its header what else they have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neva.data.batch import Batch, SampleOrigin
from neva.errors import DataError, reason
from neva.families.media_tokens import PictureShape
from neva.formats.atomic_write import finished_target

_BATCHES = "batches"
"""Entry of the header."""


def write_batches(path: Path, batches: Sequence[Batch]) -> None:
    """Writes micro batches, in the place of what is there."""
    tensors: dict[str, Tensor] = {}
    plain: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        found = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        # copies: micro batches are views of one block, which the file would hold for each of them
        tensors |= {f"{number}.{name}": value.cpu().contiguous().clone() for name, value in found.items()}
        plain.append({name: value for name, value in values.items() if name not in found})
    with finished_target(path, overwrite=True) as temporary:
        save_file(tensors, temporary, {_BATCHES: json.dumps(plain)})


def read_batches(path: Path) -> list[Batch]:
    """Returns what `write_batches` wrote.

    Raises:
        DataError: it is something else, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            plain = json.loads(file.metadata()[_BATCHES])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        return [_batch(values, number, tensors) for number, values in enumerate(plain)]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as micro batches: {reason(error)}") from error


def _batch(values: dict[str, Any], number: int, tensors: dict[str, Tensor]) -> Batch:
    own: dict[str, Any] = {
        name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{number}.")
    }
    values["pictures"] = [PictureShape(*shape) for shape in values["pictures"]]
    values["origins"] = [
        SampleOrigin(row, record, tuple(stands_for)) for row, record, stands_for in values["origins"]
    ]
    return Batch(**values, **own)
