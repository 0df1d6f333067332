"""Conversation templates: turns in, text segments with their loss flags out.

The text of `plain` and `v1` is that of haotian-liu/LLaVA (`llava/conversation.py`, `llava/train/train.py`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from neva.constants import IMAGE_PLACEHOLDER
from neva.errors import SampleError


@dataclass(frozen=True)
class Turn:
    """What one side says. `text` is None only in a last gpt turn: the answer that inference will generate."""

    role: Literal["human", "gpt"]
    text: str | None


@dataclass(frozen=True)
class Segment:
    """A stretch of text whose tokens all carry loss or all do not. A special segment is one special token."""

    text: str
    has_loss: bool
    is_special: bool = False


@dataclass(frozen=True)
class Template:
    """How turns become text; `{}` stands for what the turn says."""

    begins_with_bos: bool
    default_system: str
    system: str
    human: str
    gpt: str
    """Stands before the answer; the prompt for inference ends with it."""
    answer: str
    """Carries loss. Left out when the answer is empty, so that only the end is learnt then."""
    end: str | None
    """Follows the answer and carries loss; None: the tokenizer's end-of-sequence token."""
    after: str
    """Follows the end without loss."""
    special_tokens: tuple[str, ...] = ()
    is_caption: bool = False
    """One image question, whose words are dropped, and one answer."""


TEMPLATES = {
    "plain": Template(
        begins_with_bos=True,
        default_system="",
        system="",
        human="{}",
        gpt="",
        answer="{}",
        end="\n",
        after="",
        is_caption=True,
    ),
    "v1": Template(
        begins_with_bos=True,
        default_system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        system="{} ",
        human="USER: {} ",
        gpt="ASSISTANT:",
        answer=" {}",
        end=None,
        after="",
    ),
    "chatml": Template(
        begins_with_bos=False,
        default_system="You are a helpful assistant.",
        system="<|im_start|>system\n{}<|im_end|>\n",
        human="<|im_start|>user\n{}<|im_end|>\n",
        gpt="<|im_start|>assistant\n",
        answer="{}",
        end="<|im_end|>",
        after="\n",
        special_tokens=("<|im_start|>", "<|im_end|>"),
    ),
}


def render(
    template: Template, turns: Sequence[Turn], system: str | None = None, eos: str = "</s>"
) -> list[Segment]:
    """The text of a conversation, cut where the loss begins and ends.

    `<image>` stays in the text as the placeholder of an image. `system` replaces the template's own system
    prompt. `eos` is the tokenizer's end-of-sequence token (`</s>` in LLaVA). Raises `SampleError` when the
    turns do not alternate human, gpt, or when the template does not take them.
    """
    check_turns(template, turns)
    system = template.default_system if system is None else system
    segments = list(_fill(template, template.system, system)) if system else []
    for turn in turns:
        if turn.role == "human":
            segments += _fill(template, template.human, _question(template, turn))
            continue
        segments += _fill(template, template.gpt, "")
        if turn.text is None:
            break
        if turn.text:
            segments += _fill(template, template.answer, turn.text, has_loss=True)
        end = eos if template.end is None else template.end
        segments.append(Segment(end, True, template.end is None or end in template.special_tokens))
        segments += _fill(template, template.after, "")
    return segments


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


def move_images_to_front(turns: Sequence[Turn]) -> list[Turn]:
    """The first question with its `<image>` placeholders taken out and put in front, each on a line of its
    own.

    LLaVA does this in `preprocess_multimodal`; NeVA under `sep_image_conv_front`. Raises `SampleError` when
    the first turn has no placeholder.
    """
    first = turns[0].text or ""
    count = first.count(IMAGE_PLACEHOLDER)
    if count == 0:
        raise SampleError(
            f"sep_image_conv_front needs {IMAGE_PLACEHOLDER} in the first turn, found {first!r}"
        )
    rest = first.replace(IMAGE_PLACEHOLDER, "").strip()
    moved = (f"{IMAGE_PLACEHOLDER}\n" * count + rest).strip()
    return [Turn(turns[0].role, moved), *turns[1:]]


def insert_image(prompt: str, side: Literal["left", "right"]) -> str:
    """A prompt with an image placeholder put before or after it, on a line of its own (NeVA's
    `insert_image_token`)."""
    placed = IMAGE_PLACEHOLDER + prompt if side == "left" else prompt + IMAGE_PLACEHOLDER
    return placed.replace(IMAGE_PLACEHOLDER, f"{IMAGE_PLACEHOLDER}\n")


def _question(template: Template, turn: Turn) -> str:
    text = turn.text or ""
    return IMAGE_PLACEHOLDER * text.count(IMAGE_PLACEHOLDER) if template.is_caption else text


def _fill(template: Template, pattern: str, text: str, has_loss: bool = False) -> Iterator[Segment]:
    """The pattern with `text` in place of `{}`, its special tokens as segments of their own."""
    special = template.special_tokens
    pieces = re.split("(" + "|".join(map(re.escape, special)) + ")", pattern) if special else [pattern]
    for piece in pieces:
        if piece:
            yield Segment(piece.replace("{}", text), has_loss, piece in special)
