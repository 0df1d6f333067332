"""Lazy mappings from names to tensors, over others: each reads, casts or converts a tensor when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

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
        ConversionError: names that do not match the table's.
    """

    def __init__(self, table: Table, source: Mapping[str, Tensor]) -> None:
        table.to_native(source)  # compares the names
        self._source = source
        self._rule_of: dict[str, Rule] = {name: rule for rule in table.rules for name in rule.native}

    def __getitem__(self, name: str) -> Tensor:
        return dict(self._rule_of[name].to_native(self._source))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rule_of)

    def __len__(self) -> int:
        return len(self._rule_of)


def log_progress(
    pairs: Iterable[tuple[str, Tensor]], total: int, target: str
) -> Iterator[tuple[str, Tensor]]:
    """Yields the same pairs, and logs a line at every tenth of `total`."""
    done = 0
    for done, pair in enumerate(pairs, start=1):
        yield pair
        if total and done * 10 // total > (done - 1) * 10 // total:
            logger.info("%s: %d of %d tensors", target, done, total)
