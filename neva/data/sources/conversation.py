"""Records of the form `{id, image, conversations: [{from, value}]}` or `{id, images, messages: [{role, content}]}`.

A content may be a list of parts as in OpenAI's and Hugging Face's messages: texts, and images with or without a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from neva.constants import IMAGE_PLACEHOLDER
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

FIRST_ANSWER = "answer first"
"""What is odd about a record whose first turn is an answer."""

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

UNLEARNT = ("weight", "loss", "train")
"""Keys by which OpenAI, ms-swift and axolotl say of an answer that it carries no loss."""

NO_FILES = {"image": ("s3://", "gs://"), "video": ("data:", "http://", "https://", "s3://", "gs://")}
"""How names begin that are not read."""


def parse_record(raw: Any, default_id: str, place: str = "") -> Record:
    """Returns a record.

    A first turn of role system becomes the system prompt; a first answer without a question is dropped, as in LLaVA,
    which the record's `odd` says.

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
    if isinstance(first, Mapping) and _role(first) == "system":
        said = given(first, ("value", "content"))
        said = _parts(said, [], "system") if isinstance(said, list) else said
        system = given({"record": system, "turn": said}, ("turn", "record"))
        conversation = conversation[1:]
    named: list[str] = []
    turns = [_turn(turn, named) for turn in conversation]
    is_answer_first = bool(turns) and turns[0].role == "gpt"
    return Record(
        id=record_id,
        turns=turns[1:] if is_answer_first else turns,
        images=_all_images(_file_names(given(raw, IMAGES), "image"), named),
        system=None if system is None else _text(system, "system prompt"),
        place=place,
        odd=(FIRST_ANSWER,) if is_answer_first else (),
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


def _role(turn: Mapping[str, Any]) -> Any:
    """Returns who speaks, in whatever letters it is written."""
    role = given(turn, ("from", "role"))
    return role.lower() if isinstance(role, str) else role


def _turn(raw: Any, named: list[str]) -> Turn:
    """Returns a turn; the images that its parts name are added to `named`."""
    if not isinstance(raw, Mapping):
        raise SampleError(f"a turn must be an object with from and value, found {raw!r:.80}")
    role = _role(raw)
    if role == "system":
        raise SampleError(
            "a turn of role system stands behind others; expected it first, or the key 'system'"
        )
    if not isinstance(role, str) or role not in ROLES:
        raise SampleError(f"a turn is from {role!r:.80}, expected one of {', '.join(ROLES)}")
    said = given(raw, ("value", "content"))
    text = (
        _parts(said, named, role)
        if isinstance(said, list) and said
        else _text(said, f"text of a {role} turn")
    )
    if ROLES[role] == "gpt" and (key := next((key for key in UNLEARNT if raw.get(key) in (0, False)), None)):
        raise SampleError(
            f"an answer says {key}={raw[key]!r}, which is not read: all are learnt; leave it out"
        )
    label = raw.get("label") if ROLES[role] == "gpt" else None
    return Turn(ROLES[role], text, None if label is None else _text(label, "label of an answer"))


def _parts(parts: list[Any], named: list[str], role: str) -> str:
    """Returns the text of a list of parts, each image on a line of its own where it stands."""
    text, was_image = "", False
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            said = _text(part.get("text"), f"text of a {role} turn")
            text += "\n" * (was_image and bool(said)) + said
            was_image = was_image and not said
        elif kind in ("image", "image_url") and role != "system":
            named += _file_names(_named_image(part), "image")
            text += "\n" * bool(text) + IMAGE_PLACEHOLDER
            was_image = True
        else:
            raise SampleError(
                f"a part of a {role} turn is {part!r:.80}, expected a text or an image with its type"
            )
    return text


def _named_image(part: Mapping[str, Any]) -> Any:
    """Returns what an image part names, None where the record's `images` do."""
    named = given(part, ("image", "image_url", "path", "url"))
    return named.get("url") if isinstance(named, Mapping) else named


def _all_images(listed: list[str], named: list[str]) -> list[str]:
    """Returns the images that the record lists, or those that its turns name."""
    if listed and named and listed != named:
        raise SampleError("found other images in the record than in its turns; expected them in one place")
    return listed or named


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
