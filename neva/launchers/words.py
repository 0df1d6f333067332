"""Reads the words of a foreign command line: each wrong one is a sentence, and all of them are reported at once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from neva.errors import ConfigError

T = TypeVar("T")
_WHOLE = re.compile(r"[0-9]{1,18}")
_DECIMAL = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Words:
    """Named words of a command line, read one by one; `finish` raises what was wrong with them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self.problems: list[str] = []

    def refuse(self, name: str, expected: str) -> None:
        """Notes that the word `name` is not what was expected."""
        self.problems.append(f"{name} is {self.values.get(name, '')!r}, expected {expected}")

    def whole(self, name: str, low: int = 0, remedy: str = "") -> int:
        """Returns the whole number from `low` that `name` holds; `low` itself where that is wrong."""
        text = self.values.get(name, "")
        if _WHOLE.fullmatch(text) and int(text) >= low:
            return int(text)
        self.refuse(name, f"a whole number from {low}{remedy}")
        return low

    def decimal(self, name: str, is_above_zero: bool = True) -> float:
        """Returns the finite number that `name` holds, above 0 or from 0 on; 1 where that is wrong."""
        text = self.values.get(name, "")
        value = float(text) if _DECIMAL.fullmatch(text) else math.nan
        if math.isfinite(value) and (value > 0 or (value == 0 and not is_above_zero)):
            return value
        self.refuse(name, f"a number {'above' if is_above_zero else 'from'} 0, such as 1e-5")
        return 1.0

    def choice(self, name: str, choices: Mapping[str, T], refused: Mapping[str, str]) -> T:
        """Returns what the word `name` stands for; the first choice where that is wrong.

        Args:
            name: the word.
            choices: what each accepted text stands for.
            refused: texts that the other system knows, each with the sentence that refuses it.
        """
        text = self.values.get(name, "")
        if text in choices:
            return choices[text]
        if text in refused:
            self.problems.append(f"{name}={text} is refused: {refused[text]}")
        else:
            self.refuse(name, f"one of {', '.join(choices)}")
        return next(iter(choices.values()))

    def path(self, name: str) -> str:
        """Returns the path that `name` holds."""
        text = self.values.get(name, "")
        if not text.strip() or "\n" in text or "${" in text:
            self.refuse(name, "a path in one line and without ${")
        return text

    def finish(self) -> None:
        """Raises ConfigError with all problems, a line each."""
        if self.problems:
            raise ConfigError("\n".join(dict.fromkeys(self.problems)))


def named(names: Sequence[str], words: Sequence[str], required: int, usage: str) -> dict[str, str]:
    """Returns positional `words` by their names.

    Raises:
        ConfigError: their number is not between `required` and that of the names.
    """
    if not required <= len(words) <= len(names):
        expected = str(len(names)) if required == len(names) else f"{required} to {len(names)}"
        raise ConfigError(f"found {len(words)} arguments, expected {expected}: {usage} {' '.join(names)}")
    return dict(zip(names, words, strict=False))
