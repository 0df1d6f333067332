"""A value of the configuration as text: in every message, table and page it looks as one types it."""

from __future__ import annotations

import json


def as_override(value: object) -> str:
    """Returns a value as a command-line override writes it: null, true, 8, text, [336,336]."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace(" ", "")
