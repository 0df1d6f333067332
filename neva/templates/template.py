"""Conversation templates: turns in, text segments with their loss flags out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from neva.constants import IMAGE_PLACEHOLDER
from neva.errors import SampleError
from neva.registry import TEMPLATES


@dataclass(frozen=True)
class Turn:
    """What one side says. `text` is None only in a last gpt turn: the answer that inference will generate."""

    role: Literal["human", "gpt"]
    text: str | None
    label: str | None = None
    """How a SteerLM answer was judged (`quality:4,toxicity:0`); None: the template's own label, if it has one."""


@dataclass(frozen=True)
class Segment:
    """A stretch of text whose tokens all carry loss or all do not. A special segment is one special token."""

    text: str
    has_loss: bool
    is_special: bool = False


@dataclass(frozen=True)
class Template:
    """How turns become text (`{}` stands for what the turn says), and how other tools and exports know it."""

    begins_with_bos: bool
    default_system: str
    system: str
    """Where the system prompt stands; empty: the template has no place for one."""
    human: str
    gpt: str
    """Stands before the answer; the prompt for inference ends with it, or with the label."""
    answer: str
    """Carries loss. Left out when the answer is empty, so that only the end is learnt then."""
    end: str | None
    """Follows the answer and carries loss; None: the tokenizer's end-of-sequence token."""
    after: str
    """Follows the end without loss."""
    begin: str = ""
    """Stands before everything else, the system prompt too."""
    next_human: str | None = None
    """A question that is not the first; None: as `human`."""
    image_first: str | None = None
    """A question that begins with an image; None: as `human`."""
    label: str = ""
    """The label of an answer, without loss, between `gpt` and the answer; left out when there is none."""
    default_label: str | None = None
    """The label of answers that bring none; None: those have none."""
    special_tokens: tuple[str, ...] = ()
    is_caption: bool = False
    """One image question, whose words are dropped, and one answer."""
    other_names: tuple[str, ...] = ()
    """What other tools call it."""
    jinja: str | None = None
    """The chat template of its turns, where that is not the one that `neva.templates.jinja` makes of the patterns."""

    @property
    def special_end(self) -> str | None:
        """The special token that ends an answer beside the tokenizer's end of sequence."""
        return self.end if self.end in self.special_tokens else None

    def question(self, text: str, is_first: bool) -> str:
        """Returns the pattern of a question."""
        if self.image_first is not None and text.startswith(IMAGE_PLACEHOLDER):
            return self.image_first
        return self.human if is_first or self.next_human is None else self.next_human

    def segments(self, turns: Sequence[Turn], system: str | None, eos: str) -> list[Segment]:
        """Returns the segments of turns that it takes; see `render`."""
        system = self.default_system if system is None else system
        segments = list(_fill(self, self.begin, ""))
        if system:
            segments += _fill(self, self.system, system)
        for number, turn in enumerate(turns):
            if turn.role == "human":
                text = _question(self, turn)
                segments += _fill(self, self.question(text, number == 0), text)
                continue
            segments += _fill(self, self.gpt, "")
            label = self.default_label if turn.label is None else turn.label
            if label is not None:
                segments += _fill(self, self.label, label)
            if turn.text is None:
                break
            if turn.text:
                segments += _fill(self, self.answer, turn.text, has_loss=True)
            end = eos if self.end is None else self.end
            segments.append(Segment(end, True, self.end is None or end in self.special_tokens))
            segments += _fill(self, self.after, "")
        return segments


def template_names() -> tuple[str, ...]:
    """Returns the names of all templates, first those that any tokenizer can write."""
    return tuple(sorted(TEMPLATES.names(), key=lambda name: len(TEMPLATES[name].special_tokens)))


def names_elsewhere() -> dict[str, str]:
    """Returns what other tools call a template, and its name here."""
    return {other: name for name in TEMPLATES.names() for other in TEMPLATES[name].other_names}


def render(
    template: Template, turns: Sequence[Turn], system: str | None = None, eos: str = "</s>"
) -> list[Segment]:
    """Returns the text of a conversation, split where the loss begins and ends.

    `<image>` stays in the text as the placeholder of an image. `system` replaces the template's own system prompt.
    `eos` is the tokenizer's end-of-sequence token (`</s>` in LLaVA).

    Raises:
        SampleError: the turns do not alternate human, gpt, or the template does not take them or the system prompt.
    """
    check_turns(template, turns)
    if system and not template.system and not template.is_caption:
        raise SampleError(
            f"the template has no place for a system prompt, found {system!r}: put it into the question"
        )
    return template.segments(turns, system, eos)


def check_turns(template: Template, turns: Sequence[Turn]) -> None:
    """Raises `SampleError` unless human and gpt alternate, human first, and only a last gpt turn is open."""
    roles = [turn.role for turn in turns]
    if not roles or roles != ["human", "gpt"] * (len(roles) // 2) + ["human"] * (len(roles) % 2):
        raise SampleError(f"turns must alternate human, gpt, human, …, human first; found {roles}")
    if any(turn.text is None for turn in turns[:-1]) or (turns[-1].text is None and roles[-1] == "human"):
        raise SampleError("only a last gpt turn may be without text")
    if not template.is_caption:
        return
    if len(turns) != 2:
        raise SampleError(f"the plain template takes one question and one answer, found {len(turns)} turns")
    if IMAGE_PLACEHOLDER not in (turns[0].text or ""):
        raise SampleError(
            f"the plain template needs {IMAGE_PLACEHOLDER} in its question, found {turns[0].text!r}"
        )


def placeholders(turns: Sequence[Turn]) -> int:
    """Returns the number of `<image>` in some turns."""
    return sum((turn.text or "").count(IMAGE_PLACEHOLDER) for turn in turns)


def move_images_to_front(turns: Sequence[Turn]) -> list[Turn]:
    """Moves the `<image>` placeholders of each turn to its front, each on a line of its own.

    LLaVA does this in `preprocess_multimodal`; NeVA, in the first turn, under `sep_image_conv_front`.
    """
    return [replace(turn, text=turn.text and _image_first(turn.text)) for turn in turns]


def _image_first(text: str) -> str:
    count = text.count(IMAGE_PLACEHOLDER)
    if not count:
        return text
    rest = text.replace(IMAGE_PLACEHOLDER, "").strip()
    return (f"{IMAGE_PLACEHOLDER}\n" * count + rest).strip()


def around_images(segments: Sequence[Segment], tags: tuple[str, str]) -> list[Segment]:
    """Puts a token before and one behind each image; they carry no loss.

    Where both are one token (Idefics2's), images that follow each other share it, and a word that would follow it
    without a space gets one, as in transformers' `Idefics2Processor`.
    """
    begin, end = (Segment(tag, False, is_special=True) for tag in tags)
    tagged: list[Segment] = []
    for segment in segments:
        first, *rest = segment.text.split(IMAGE_PLACEHOLDER)
        texts = [[replace(segment, text=first)]]
        texts += [
            [begin, Segment(IMAGE_PLACEHOLDER, False), end, replace(segment, text=text)] for text in rest
        ]
        tagged += [part for parts in texts for part in parts if part.text]
    return _joined(tagged, begin) if begin == end else tagged


def _joined(segments: Sequence[Segment], tag: Segment) -> list[Segment]:
    joined: list[Segment] = []
    for segment in segments:
        follows = bool(joined) and joined[-1] == tag
        if follows and segment == tag:
            continue
        is_word = not segment.is_special and segment.text != IMAGE_PLACEHOLDER and segment.text[0] != "<"
        if follows and is_word and not segment.text[0].isspace():
            segment = replace(segment, text=f" {segment.text}")
        joined.append(segment)
    return joined


def insert_media(
    prompt: str, count: int, side: Literal["left", "right"], placeholder: str = IMAGE_PLACEHOLDER
) -> str:
    """Puts placeholders before or after a prompt, each on a line of its own (NeVA's `insert_image_token`)."""
    media = f"{placeholder}\n" * count
    return media + prompt if side == "left" else prompt + media


def _question(template: Template, turn: Turn) -> str:
    text = turn.text or ""
    return IMAGE_PLACEHOLDER * text.count(IMAGE_PLACEHOLDER) if template.is_caption else text


def _fill(template: Template, pattern: str, text: str, has_loss: bool = False) -> Iterator[Segment]:
    """Yields the pattern with `text` in place of `{}`, its special tokens as segments of their own."""
    special = template.special_tokens
    stretches = re.split("(" + "|".join(map(re.escape, special)) + ")", pattern) if special else [pattern]
    for stretch in stretches:
        if stretch:
            yield Segment(stretch.replace("{}", text), has_loss, stretch in special)
