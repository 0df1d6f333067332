"""The table of a model: rules that map its tensors between Hugging Face's names and Megatron's, both ways.

Megatron's names and layouts are called native.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from neva.errors import CheckpointError

if TYPE_CHECKING:  # planning reads names and shapes from these rules, without torch
    from torch import Tensor


Shape = tuple[int, ...]


class ConversionError(CheckpointError):
    """Weights that do not fit the table; the message names the tensors."""


class Rule(Protocol):
    """Maps some tensors of one side to some of the other. `optional` names may be absent from a source."""

    @property
    def hf(self) -> tuple[str, ...]: ...
    @property
    def native(self) -> tuple[str, ...]: ...
    @property
    def optional(self) -> tuple[str, ...]: ...
    def to_native(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]: ...
    def to_hf(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]: ...


def expect_shape(name: str, tensor: Tensor, shape: Shape) -> Tensor:
    """Returns `tensor` itself.

    Raises:
        ConversionError: its shape is not `shape`.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise ConversionError(
            f"{name} has shape {list(tensor.shape)}, the configuration expects {list(shape)}"
        )
    return tensor


class OneHF:
    """A rule whose one tensor on Hugging Face's side is `hf_name`."""

    hf_name: str

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.hf_name,)


class OneNative:
    """A rule whose one native tensor is `native_name`."""

    native_name: str

    @property
    def native(self) -> tuple[str, ...]:
        return (self.native_name,)


@dataclass(frozen=True)
class Rename(OneHF, OneNative):
    """The same tensor under another name."""

    hf_name: str
    native_name: str
    shape: Shape
    optional = ()

    def to_native(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield self.native_name, expect_shape(self.hf_name, tensors[self.hf_name], self.shape)

    def to_hf(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield self.hf_name, expect_shape(self.native_name, tensors[self.native_name], self.shape)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


@dataclass(frozen=True)
class Table:
    """All rules of a model: every source tensor is consumed once and every target produced once, or it raises.

    `ignored` are patterns of Hugging Face names that the model does not use (buffers, a text tower beside the vision
    tower); a name that matches is skipped on reading and never written.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for side in ("hf", "native"):
            counts = Counter(name for rule in self.rules for name in getattr(rule, side))
            if twice := [name for name, count in counts.items() if count > 1]:
                raise ConversionError(f"the table names {_names(twice)} more than once on its {side} side")

    @property
    def hf_names(self) -> list[str]:
        return [name for rule in self.rules for name in rule.hf]

    @property
    def native_names(self) -> list[str]:
        return [name for rule in self.rules for name in rule.native]

    def __add__(self, other: Table) -> Table:
        return Table(self.rules + other.rules, self.ignored + other.ignored)

    def to_native(self, source: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields native (name, tensor) pairs, one rule at a time.

        Raises:
            ConversionError: names or shapes do not match; of names, before the first pair.
        """
        optional = {name for rule in self.rules for name in rule.optional}
        expected = set(self.hf_names)
        others = set(source) - optional - expected
        skipped = {name for name in others if any(re.fullmatch(pattern, name) for pattern in self.ignored)}
        _match_names(set(source) - optional - skipped, expected, "Hugging Face")
        return self._run(lambda rule: rule.to_native(source), self.native_names)

    def to_hf(self, source: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields Hugging Face (name, tensor) pairs, one rule at a time.

        Raises:
            ConversionError: names or shapes do not match; of names, before the first pair.
        """
        _match_names(set(source), set(self.native_names), "native")
        return self._run(lambda rule: rule.to_hf(source), self.hf_names)

    def check(self, native: Mapping[str, Tensor]) -> None:
        """Compares native tensors, which may be on the meta device, with the table.

        Raises:
            ConversionError: names or shapes do not match.
        """
        for _ in self.to_hf(native):
            pass

    def _run(
        self, apply: Callable[[Rule], Iterator[tuple[str, Tensor]]], expected: list[str]
    ) -> Iterator[tuple[str, Tensor]]:
        remaining = set(expected)
        for rule in self.rules:
            for name, tensor in apply(rule):
                if name not in remaining:
                    raise ConversionError(f"{name} was produced twice or is not in the table")
                remaining.discard(name)
                yield name, tensor
        if remaining:
            raise ConversionError(f"the table did not produce {_names(list(remaining))}")


def _match_names(found: set[str], expected: set[str], side: str) -> None:
    problems = []
    if unknown := found - expected:
        problems.append(f"{len(unknown)} {side} tensors have no place in this model: {_names(list(unknown))}")
    if missing := expected - found:
        problems.append(f"{len(missing)} {side} tensors are missing: {_names(list(missing))}")
    if problems:
        raise ConversionError("; ".join(problems))
