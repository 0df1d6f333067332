"""A tokenizer's own chat template as a template of conversations, its loss by segment.

Where it marks answers with `{% generation %}`, these carry the loss. Else a conversation is rendered turn by turn: each
rendering must begin with the one before, and what an answer adds carries loss up to the last control token in it. A
chat template that writes the past otherwise once a conversation goes on is refused: no prompt of inference would be
what training showed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from neva.data.control_tokens import special_tokens
from neva.errors import ConfigError, SampleError, reason
from neva.templates.template import Segment, Template, Turn

ROLES: dict[Literal["human", "gpt"], str] = {"human": "user", "gpt": "assistant"}
MARKS_ANSWERS = re.compile(r"{%-?\s*generation\s*-?%}")
SPLIT = "\ufdd3"
"""Stands inside a control token that somebody wrote into a text, so that it is none of the chat template's."""


@dataclass(frozen=True)
class ChatTemplate(Template):
    """What `special_tokens` names are the tokenizer's; the patterns of `Template` say nothing here."""

    text: str = ""
    names: tuple[tuple[str, str], ...] = ()
    """`bos_token` and the like, which the chat template may write."""

    def segments(self, turns: Sequence[Turn], system: str | None, eos: str) -> list[Segment]:
        """Returns the segments of turns; see `render`.

        Raises:
            SampleError: the chat template refuses them, or writes the past otherwise as they go on.
        """
        messages = [] if system is None else [{"role": "system", "content": self._guarded(system)}]
        if MARKS_ANSWERS.search(self.text) and turns[-1].text is not None:
            messages += [_message(turn, self._guarded(turn.text or "")) for turn in turns]
            return list(self._marked(messages))
        segments: list[Segment] = []
        done = ""
        for number, turn in enumerate(turns):
            if turn.text is None:
                break
            messages.append(_message(turn, self._guarded(turn.text)))
            is_asked = turn.role == "human" and number + 1 < len(turns)
            text, _ = self._rendered(messages, is_asked)
            if not text.startswith(done):
                raise SampleError(
                    "the tokenizer's chat template writes the beginning of a conversation otherwise once it goes on: "
                    f"{done[-40:]!r} is not in {text!r:.200}; choose another model.data.conv_template, or give a chat "
                    "template without that as model.data.template.chat_template"
                )
            segments += (
                self._answer(text[len(done) :])
                if turn.role == "gpt"
                else self._split(text[len(done) :], False)
            )
            done = text
        return segments

    def _marked(self, messages: list[dict[str, str]]) -> Iterator[Segment]:
        """Yields the segments of a chat template that marks answers."""
        text, answers = self._rendered(messages, False, is_marked=True)
        position = 0
        for start, end in answers:
            yield from self._split(text[position:start], False)
            yield from self._split(text[start:end], True)
            position = end
        yield from self._split(text[position:], False)

    def _answer(self, text: str) -> list[Segment]:
        """Returns what an answer adds: loss up to the last control token, which ends it, or on all without one."""
        pieces = list(self._split(text, True))
        last = max((number for number, piece in enumerate(pieces) if piece.is_special), default=len(pieces))
        return [
            piece if number <= last else replace(piece, has_loss=False) for number, piece in enumerate(pieces)
        ]

    def _split(self, text: str, has_loss: bool) -> Iterator[Segment]:
        for piece in re.split(f"({self._pattern()})", text):
            if piece:
                yield Segment(piece.replace(SPLIT, ""), has_loss, piece in self.special_tokens)

    def _pattern(self) -> str:
        return "|".join(map(re.escape, sorted(self.special_tokens, key=len, reverse=True)))

    def _guarded(self, text: str) -> str:
        return re.sub(self._pattern(), lambda found: f"{found[0][0]}{SPLIT}{found[0][1:]}", text)

    def _rendered(
        self, messages: list[dict[str, str]], is_asked: bool, is_marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Returns the text, and where answers stand in it."""
        values: dict[str, Any] = dict(self.names)
        try:
            rendered: Any = render_jinja_template(
                conversations=[messages],
                chat_template=self.text,
                return_assistant_tokens_mask=is_marked,
                add_generation_prompt=is_asked,
                **values,
            )
        except (
            TemplateError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
        ) as error:  # what its expressions raise
            raise SampleError(
                f"the tokenizer's chat template refuses the conversation: {reason(error)}"
            ) from error
        (text,), answers = rendered
        return text, answers[0] if answers else []


def chat_template(text: str, tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """Returns the template of a chat template.

    Raises:
        ConfigError: it cannot be used: it is broken, or writes the past otherwise as a conversation goes on.
    """
    names = tuple(
        (role, str(token)) for role, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    )
    own = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special = tuple(sorted(own | special_tokens(tokenizer)[0]))
    template = ChatTemplate(
        begins_with_bos=False,
        default_system="",
        system="{}",
        human="{}",
        gpt="",
        answer="{}",
        end=None,
        after="",
        special_tokens=special,
        text=text,
        names=names,
    )
    said = [(role, f"{role} says {number}") for number in range(2) for role in ROLES]
    turns = [Turn(role, text) for role, text in said]
    try:
        segments = template.segments(turns, None, "")
        template.segments([*turns, Turn("human", "?")], None, "")
    except SampleError as error:
        raise ConfigError(f"model.data.conv_template=hf: {error}") from error
    if left_out := next((text for _, text in said if text not in _text(segments)), None):
        raise ConfigError(
            f"model.data.conv_template=hf: the tokenizer's chat template leaves out what is said ({left_out!r}), as "
            "one does that expects a list of parts; give one for texts as model.data.template.chat_template"
        )
    learnt = [segment for segment in segments if segment.has_loss]
    if said[-1][1] not in _text(learnt):
        raise ConfigError("model.data.conv_template=hf: the tokenizer's chat template marks no answer")
    ends = [segment.text for segment in learnt if segment.is_special]
    if not _takes_system(template, turns[:2]):
        template = replace(template, system="")
    return replace(template, end=ends[-1] if ends else None)


def _takes_system(template: ChatTemplate, turns: Sequence[Turn]) -> bool:
    """Returns whether a system prompt is written, neither refused nor left out."""
    prompt = "system prompt of a test"
    try:
        return prompt in _text(template.segments(turns, prompt, ""))
    except SampleError:
        return False


def _text(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def _message(turn: Turn, text: str) -> dict[str, str]:
    return {"role": ROLES[turn.role], "content": text}
