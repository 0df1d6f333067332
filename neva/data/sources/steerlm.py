"""SteerLM's `.jsonl`: images stand as `<img src="…/name">` in the turns, and `mask` says who is not learnt from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from neva.constants import IMAGE_PLACEHOLDER
from neva.data.sources.conversation import IMAGES, ROLES

IMG = re.compile(r"""<img\s[^<>]*?src\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s<>"']+))[^<>]*>""", re.IGNORECASE)


def with_placeholders(raw: Any) -> Any:
    """Returns a record with `<image>` for each `<img src=…>` of a question, and their names without folders.

    Answers keep theirs, which is HTML that somebody asked for. A record that names its images itself is returned as
    it is: its texts may speak of HTML. So is one whose `mask` is the side that asks, which is never learnt from; of
    another `mask` the conversation is left out, which is an error of the record.
    """
    if not isinstance(raw, Mapping):
        return raw
    asked = raw.get("mask")
    if isinstance(asked, str) and asked and ROLES.get(asked.lower()) != "human":
        return {**raw, "conversations": f"masked for {asked}, expected mask=User: answers are what is learnt"}
    turns = raw.get("conversations")
    if not isinstance(turns, list) or any(raw.get(key) for key in IMAGES):
        return raw
    names: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        names.append(PurePosixPath(next(group for group in match.groups() if group is not None)).name)
        return IMAGE_PLACEHOLDER

    new = [
        {**turn, "value": IMG.sub(replaced, turn["value"])}
        if isinstance(turn, Mapping) and isinstance(turn.get("value"), str) and _asks(turn)
        else turn
        for turn in turns
    ]
    return {**raw, "conversations": new, "image": names} if names else raw


def _asks(turn: Mapping[str, Any]) -> bool:
    return ROLES.get(str(turn.get("from")).lower()) == "human"
