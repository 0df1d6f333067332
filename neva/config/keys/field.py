"""The kinds of key: one with an effect, one that passes without any, one that is refused unless it is off."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Key:
    """A key with an effect. Bounds: `low`, `high` included, `above`, `below` excluded.

    `choices`, `pattern` and `form` may be functions that ask a registry when a value is checked.
    `form` says `pattern` in words.
    `not_yet`: values that users of other systems know, each with the sentence that refuses it.
    `elsewhere`: what other systems call a value, with its name here.
    `optional`: need not be in the YAML (whoever reads the section has its own documented default).
    `common`: shown by `neva train --help`.
    `fixed`: why a run keeps its value when it is resumed, one of `FIXED`; None: a resumed run may have another.
    """

    doc: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | Callable[[], tuple[Any, ...]] | None = None
    not_yet: Mapping[Any, str] | None = None
    elsewhere: Callable[[], Mapping[Any, str]] | None = None
    pattern: str | Callable[[], str] | None = None
    form: str | Callable[[], str] | None = None
    length: int | None = None
    optional: bool = False
    common: bool = False
    fixed: str | None = None


MODEL, TRAINED, READING, ORDER = "model", "trained", "reading", "order"

FIXED = {
    MODEL: "the weights of the checkpoint are those of that form",
    TRAINED: "the checkpoint has weights and optimizer state of what trained",
    READING: "the model was taught to read its samples so",
    ORDER: "the position in the data is one in that order",
}
"""Why a key is fixed once a run has begun."""


def asked(rule: Any) -> Any:
    """Returns what a rule of `Key` says, now."""
    return rule() if callable(rule) else rule


@dataclass(frozen=True)
class Refused:
    """A key that other systems have and `neva` has not.

    Only the `off` values pass: they say what happens anyway.
    """

    off: tuple[Any, ...]
    why: str


@dataclass(frozen=True)
class Ignored:
    """A key that other systems have and that changes no number here, whatever it says.

    `choices`: the values that it has there; None: any.
    """

    why: str
    choices: tuple[Any, ...] | None = None


Rule = Key | Refused | Ignored


def key(doc: str, **rules: Any) -> Any:
    """A dataclass field without default for a key with an effect; `rules` are those of `Key`."""
    return field(metadata={"rule": Key(doc, **rules)})


def refused(*off: Any, why: str) -> Any:
    """A dataclass field for a key that is refused unless its value is one of `off`."""
    return field(metadata={"rule": Refused(off, why)})


def ignored(why: str, choices: tuple[Any, ...] | None = None) -> Any:
    """A dataclass field for a key that passes without effect."""
    return field(metadata={"rule": Ignored(why, choices)})


def section() -> Any:
    """A dataclass field that is a section with keys of its own."""
    return field(metadata={})
