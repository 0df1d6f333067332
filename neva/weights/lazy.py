"""Lazy mappings from names to tensors, over others: each reads, casts or converts a tensor when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from neva.errors import CheckpointError, naming
from neva.families.mapping import Rule, Table

logger = logging.getLogger(__name__)


class Filtered(Mapping[str, Tensor]):
    """The tensors of a mapping whose names start with one of `prefixes` and with none of `without`."""

    def __init__(self, source: Mapping[str, Tensor], *prefixes: str, without: tuple[str, ...] = ()) -> None:
        self._source = source
        names = (name for name in source if name.startswith(prefixes) and not name.startswith(without))
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._source[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Renamed(Mapping[str, Tensor]):
    """The tensors of a mapping under other names."""

    def __init__(self, source: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Chained(Mapping[str, Tensor]):
    """Several mappings as one; a name that several have is read from the first of them."""

    def __init__(self, *sources: Mapping[str, Tensor]) -> None:
        self._source_of = {name: source for source in reversed(sources) for name in source}

    def __getitem__(self, name: str) -> Tensor:
        return self._source_of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source_of)

    def __len__(self) -> int:
        return len(self._source_of)


class Cast(Mapping[str, Tensor]):
    """The tensors of a mapping in another dtype."""

    def __init__(self, source: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._source, self._dtype = source, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._source[name].to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


class Converted(Mapping[str, Tensor]):
    """The native tensors of a source that has other names, each made by its rule of a table.

    Raises:
        ConversionError: names that do not match the table's, here; shapes, where a tensor is read. It names `where`.
    """

    def __init__(self, table: Table, source: Mapping[str, Tensor], where: str | Path) -> None:
        with naming(where):
            table.to_native(source)  # compares the names
        self._source, self._where = source, where
        self._rule_of: dict[str, Rule] = {name: rule for rule in table.rules for name in rule.native}

    def __getitem__(self, name: str) -> Tensor:
        with naming(self._where):
            return dict(self._rule_of[name].to_native(self._source))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rule_of)

    def __len__(self) -> int:
        return len(self._rule_of)


def checked(pairs: Iterable[tuple[str, Tensor]], total: int, target: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the same pairs, and logs a line at every tenth of `total`.

    Raises:
        CheckpointError: a tensor that is not of finite floating-point numbers.
    """
    for done, (name, tensor) in enumerate(pairs, start=1):
        check_numbers(name, tensor, target)
        yield name, tensor
        if total and done * 10 // total > (done - 1) * 10 // total:
            logger.info("%s: %d of %d tensors", target, done, total)


def check_numbers(name: str, tensor: Tensor, target: str) -> None:
    """Raises CheckpointError when a tensor, on its way into `target`, is not of finite floating-point numbers."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{target}: {name} holds {dtype}, expected floating-point numbers; a quantised model has to be converted "
            "back to bf16, fp16 or fp32 first"
        )
    if tensor.numel() and not all(value.isfinite() for value in tensor.aminmax()):
        raise CheckpointError(
            f"{target}: {name} holds a number that is infinite or none at all in {dtype}; where that comes from "
            "--precision, give bf16 or 32, else the source is damaged"
        )
