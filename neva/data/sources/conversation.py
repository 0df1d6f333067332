"""Records of the form `{id, image, conversations: [{from, value}]}` or `{id, images, messages: [{role, content}]}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from neva.data.sources.source import Record
from neva.errors import SampleError
from neva.formats.json import half_character
from neva.templates.template import Turn

ROLES: dict[str, Literal["human", "gpt"]] = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
}

CONVERSATIONS, IMAGES, VIDEOS, SYSTEM = (
    ("conversations", "messages"),
    ("image", "images"),
    ("video", "videos"),
    ("system", "system_prompt"),
)
"""The spellings of a field; null says the same as leaving it out."""

MISSPELT = {
    **dict.fromkeys(("conversation", "message", "conversations", "messages"), CONVERSATIONS),
    **dict.fromkeys(("image", "images", "img", "imgs", "imagepath", "imagepaths", "imagefile"), IMAGES),
    **dict.fromkeys(("system", "systemprompt", "systemmessage", "sysprompt"), SYSTEM),
}
"""Keys, without case and underscores, that mean a field -> its spellings."""

NO_FILES = {"image": ("s3://", "gs://"), "video": ("data:", "http://", "https://", "s3://", "gs://")}
"""How names begin that are not read."""


def parse_record(raw: Any, default_id: str, place: str = "") -> Record:
    """Returns a record.

    A first turn of role system becomes the system prompt; a first answer without a question is dropped, as in LLaVA.

    Args:
        raw: the JSON value.
        default_id: its id, where it has none.
        place: where it stands in its file, for messages.

    Raises:
        SampleError: something is missing or of the wrong type; it knows the record's id and place.
    """
    record_id = default_id
    try:
        if not isinstance(raw, Mapping):
            raise SampleError(f"a record must be an object with conversations, found {type(raw).__name__}")
        record_id = _text(str(default_id if raw.get("id") is None else raw["id"]), "id")
        return _parse(raw, record_id, place)
    except SampleError as error:
        error.record_id, error.place = record_id, place
        raise


def _parse(raw: Mapping[str, Any], record_id: str, place: str) -> Record:
    _refuse_misspelt(raw)
    conversation = given(raw, CONVERSATIONS)
    if not isinstance(conversation, list) or not conversation:
        raise SampleError(f"conversations must be a list of turns, found {conversation!r:.80}")
    system = given(raw, SYSTEM)
    first = conversation[0]
    if isinstance(first, Mapping) and given(first, ("from", "role")) == "system":
        system = given({"record": system, "turn": given(first, ("value", "content"))}, ("turn", "record"))
        conversation = conversation[1:]
    turns = [_turn(turn) for turn in conversation]
    return Record(
        id=record_id,
        turns=turns[1:] if turns and turns[0].role == "gpt" else turns,
        images=_file_names(given(raw, IMAGES), "image"),
        system=None if system is None else _text(system, "system prompt"),
        place=place,
        videos=_file_names(given(raw, VIDEOS), "video"),
    )


def given(row: Mapping[str, Any], spellings: Sequence[str]) -> Any:
    """Returns the value of a field that may be spelt in several ways, None where none of them says something.

    Raises:
        SampleError: two of them say different things.
    """
    present = [key for key in spellings if row.get(key) is not None]
    if len(present) < 2:
        return row[present[0]] if present else None
    filled = [key for key in present if row[key] not in ("", [])]
    values = {key: row[key] for key in filled or present}
    if any(value != next(iter(values.values())) for value in values.values()):
        raise SampleError(f"found {' and '.join(values)}, which say different things; expected one of them")
    return next(iter(values.values()))


def _refuse_misspelt(raw: Mapping[str, Any]) -> None:
    """Raises SampleError for a key that means a field which would otherwise be missing."""
    for key, value in raw.items():
        spellings = MISSPELT.get(key.lower().replace("_", "").replace("-", ""))
        if value and spellings and key not in spellings and all(raw.get(name) is None for name in spellings):
            raise SampleError(f"the key {key!r} is not read; expected {' or '.join(map(repr, spellings))}")


def _turn(raw: Any) -> Turn:
    if not isinstance(raw, Mapping):
        raise SampleError(f"a turn must be an object with from and value, found {raw!r:.80}")
    role = given(raw, ("from", "role"))
    if not isinstance(role, str) or role not in ROLES:
        raise SampleError(f"a turn is from {role!r:.80}, expected one of {', '.join(ROLES)}")
    return Turn(ROLES[role], _text(given(raw, ("value", "content")), f"text of a {role} turn"))


def _text(value: Any, what: str) -> str:
    """Returns a text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise SampleError(f"the {what} must be a string, found {value!r:.80}")
    if half := half_character(value):
        raise SampleError(f"the {what} holds {half}, half of a character; expected whole ones")
    return value


def _file_names(value: Any, medium: str) -> list[str]:
    if value is None or value in ("", []):
        return []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise SampleError(f"{medium} must be a file name or a list of file names, found {value!r:.80}")
    for name in names:
        if _text(name, f"{medium} name").startswith(NO_FILES[medium]):
            raise SampleError(
                f"{medium} must be a file name, found {name!r:.60}; save the {medium} as a file"
            )
    return names
