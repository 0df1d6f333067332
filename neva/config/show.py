"""Values, ranges and types of the configuration as text: in all messages, tables and pages as one types them."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import is_dataclass
from typing import Any

from neva.config.keys.field import Key, asked


def as_override(value: object) -> str:
    """Returns a value as a command-line override writes it: null, true, 8, text, [336,336]."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace(" ", "")


def range_text(rule: Key) -> str:
    """Returns the values a rule allows, in words; empty when it allows all of the type."""
    parts = [
        f"{sign} {bound:g}"
        for sign, bound in ((">=", rule.low), (">", rule.above), ("<=", rule.high), ("<", rule.below))
        if bound is not None
    ]
    if (choices := asked(rule.choices)) is not None:
        parts.append(
            ("one of " if len(choices) > 1 else "")
            + ", ".join("null" if choice is None else str(choice) for choice in choices)
        )
    if rule.pattern is not None:
        parts.append(f"of the form {asked(rule.form)}")
    if rule.length is not None:
        parts.insert(0, f"{rule.length} values" + (", each" if parts else ""))
    return " and ".join(parts).replace("each and", "each")


def type_name(hint: Any) -> str:
    """Returns a type in words: `a number or null`."""
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        types.NoneType: "null",
    }
    if isinstance(hint, types.UnionType):
        return " or ".join(type_name(option) for option in typing.get_args(hint))
    if is_dataclass(hint):
        return "a section with keys"
    if typing.get_origin(hint) is list:
        return "a list, each " + type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) is dict:
        return "a mapping"
    return words[hint]
