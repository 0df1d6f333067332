"""From a conversation to token ids and labels: one tokenisation, loss flags by character position."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerFast

from neva.constants import IGNORE_INDEX, IMAGE_PLACEHOLDER, IMAGE_TOKEN_ID
from neva.data.control_tokens import LITERAL, marked_tokenizer, written_control_token
from neva.errors import DroppedError, SampleError
from neva.templates.template import (
    Segment,
    Template,
    Turn,
    around_images,
    move_images_to_front,
    placeholders,
    render,
)

TOO_LONG = "too long"


def encode(
    segments: Sequence[Segment],
    tokenizer: PreTrainedTokenizerFast,
    media_tokens: Sequence[int],
    bos: bool,
    control_tokens: tuple[str, ...] = (),
) -> tuple[list[int], list[int]]:
    """Returns token ids and labels of the same length, not shifted.

    Text between two `<image>` placeholders is tokenised in one call, each such chunk on its own, as in
    LLaVA's `tokenizer_image_token`; placeholder i becomes `media_tokens[i]` times `IMAGE_TOKEN_ID`. A token
    carries loss when its first character lies in a segment that does. `bos` puts the tokenizer's
    beginning-of-sequence token first, where it has one. A control token that stands in a text is read as its
    characters: a special token of the tokenizer, or one of `control_tokens`, which the template writes.
    """
    texts = [segment.text for segment in segments]
    tokenize: Callable[[str], tuple[list[int], list[tuple[int, int]]]] = partial(_tokenize, tokenizer)
    if written_control_token(segments, tokenizer, control_tokens) is not None:
        tokenize = marked = marked_tokenizer(tokenizer, control_tokens)
        texts = [marked.mark(segment.text) if segment.is_special else segment.text for segment in segments]
    has_bos = bos and tokenizer.bos_token_id is not None
    input_ids = [tokenizer.bos_token_id] if has_bos else []
    labels = [IGNORE_INDEX] * len(input_ids)
    ends = list(accumulate(len(text) for text in texts))
    # The last one also for a token without characters at the very end.
    has_loss = [segment.has_loss for segment in segments] + [segments[-1].has_loss]
    chunk_start = 0
    for number, chunk in enumerate("".join(texts).split(IMAGE_PLACEHOLDER)):
        if number:
            input_ids += [IMAGE_TOKEN_ID] * media_tokens[number - 1]
            labels += [IGNORE_INDEX] * media_tokens[number - 1]
        ids, offsets = tokenize(chunk.replace(LITERAL, IMAGE_PLACEHOLDER))
        input_ids += ids
        labels += [
            token if has_loss[bisect_right(ends, chunk_start + first)] else IGNORE_INDEX
            for token, (first, _) in zip(ids, offsets, strict=True)
        ]
        chunk_start += len(chunk) + len(IMAGE_PLACEHOLDER)
    return input_ids, labels


def _tokenize(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return tokens["input_ids"], tokens["offset_mapping"]


class Encoded(NamedTuple):
    """A training sample of S tokens."""

    input_ids: list[int]
    """[S], `IMAGE_TOKEN_ID` where image patches go."""
    labels: list[int]
    """[S], not shifted, `IGNORE_INDEX` where there is no loss."""
    num_images: int
    """Placeholders of the record that are in it, from the first on."""
    is_shortened: bool
    """Whether something was cut off to fit it into a sequence."""


@dataclass(frozen=True)
class ConversationEncoder:
    """Everything that decides which ids a conversation becomes, for training and inference alike."""

    tokenizer: PreTrainedTokenizerFast
    template: Template
    max_length: int
    sep_image_conv_front: bool
    system: str | None = None
    """The system prompt of conversations that bring none; None: the template's own."""
    image_tags: tuple[str, str] | None = None
    """Control tokens before and behind each image."""
    truncation: Literal["cut", "truncate_turns", "drop", "fail"] = "cut"
    """What becomes of a training sample that is longer than `max_length`."""
    no_label: Literal["drop", "fail"] = "fail"
    """What becomes of a training sample that has nothing to learn, or nothing any more."""

    answer_loss_only: bool = True
    """Whether answers alone carry loss in a training sample; otherwise all but image positions does."""

    def sample(
        self, turns: Sequence[Turn], media_tokens: Sequence[int], system: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Returns ids and unshifted labels of a training sample, as `fitted` does."""
        encoded = self.fitted(turns, media_tokens, system)
        return encoded.input_ids, encoded.labels

    def fitted(
        self, turns: Sequence[Turn], media_tokens: Sequence[int], system: str | None = None
    ) -> Encoded:
        """Returns a training sample of at most `max_length` tokens.

        Args:
            turns: with an `<image>` for each medium.
            media_tokens: positions that each medium takes, in the order of the placeholders.
            system: replaces the configured system prompt.

        Raises:
            DroppedError: it is longer, with `truncation` drop; it has no label, with `no_label` drop.
            SampleError: it is longer, with `truncation` fail; it cannot be shortened so; it has no label.
        """
        input_ids, labels = self._encode(turns, media_tokens, system)
        is_shortened = len(input_ids) > self.max_length
        if is_shortened:
            input_ids, labels = self._shortened(input_ids, labels, turns, media_tokens, system)
        # The first position has no predecessor that could predict it.
        if all(label == IGNORE_INDEX for label in labels[1:]):
            error = DroppedError if self.no_label == "drop" else SampleError
            raise error(
                f"no token carries loss within encoder_seq_length={self.max_length}; "
                "the answers are missing or cut off",
                "no label",
            )
        # A medium is never cut, so that those which remain fill all image positions that remain.
        num_images = bisect_right(list(accumulate(media_tokens)), input_ids.count(IMAGE_TOKEN_ID))
        return Encoded(input_ids, labels, num_images, is_shortened)

    def _shortened(
        self,
        input_ids: list[int],
        labels: list[int],
        turns: Sequence[Turn],
        media_tokens: Sequence[int],
        system: str | None,
    ) -> tuple[list[int], list[int]]:
        """Returns what `truncation` makes of ids and labels that are too long."""
        found = f"the sequence of {len(input_ids)} tokens"
        if self.truncation == "truncate_turns":
            return self._whole_turns(turns, media_tokens, system, found)
        if self.truncation != "cut":
            error = DroppedError if self.truncation == "drop" else SampleError
            raise error(
                f"{found} is longer than encoder_seq_length={self.max_length}; raise it or shorten the record",
                TOO_LONG,
            )
        if IMAGE_TOKEN_ID in input_ids[self.max_length :]:
            raise SampleError(
                f"{found} must be cut to encoder_seq_length={self.max_length}, "
                "which would cut an image; raise encoder_seq_length or shorten the record",
                TOO_LONG,
            )
        return input_ids[: self.max_length], labels[: self.max_length]

    def _whole_turns(
        self, turns: Sequence[Turn], media_tokens: Sequence[int], system: str | None, found: str
    ) -> tuple[list[int], list[int]]:
        """Returns as many questions with their answers, from the first on, as fit."""

        def first(count: int) -> tuple[list[int], list[int]]:
            kept = turns[: 2 * count]
            return self._encode(kept, media_tokens[: placeholders(kept)], system)

        counts = range(1, (len(turns) - 1) // 2 + 1)
        fitting = bisect_right(counts, self.max_length, key=lambda count: len(first(count)[0]))
        if not fitting:
            raise SampleError(
                f"{found} is longer than encoder_seq_length={self.max_length} with its first question and answer "
                "alone; raise encoder_seq_length or shorten the record",
                TOO_LONG,
            )
        return first(fitting)

    def _encode(
        self, turns: Sequence[Turn], media_tokens: Sequence[int], system: str | None
    ) -> tuple[list[int], list[int]]:
        segments = self._render(turns, len(media_tokens), system)
        input_ids, labels = self._ids(segments, media_tokens)
        if not self.answer_loss_only:
            labels = [IGNORE_INDEX if token == IMAGE_TOKEN_ID else token for token in input_ids]
        return input_ids, labels

    def _ids(self, segments: Sequence[Segment], media_tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        bos, own = self.template.begins_with_bos, self.control_tokens
        return encode(segments, self.tokenizer, media_tokens, bos, own)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """What is written around turns and images as one token each."""
        return (*self.template.special_tokens, *(self.image_tags or ()))

    def prompt(
        self,
        question: str,
        media_tokens: Sequence[int],
        system: str | None = None,
        label: str | None = None,
    ) -> list[int]:
        """Returns the ids of a question up to where the answer begins; see `next_turn`."""
        return self.next_turn([Turn("human", question)], media_tokens, system, label)

    def next_turn(
        self,
        turns: Sequence[Turn],
        media_tokens: Sequence[int],
        system: str | None = None,
        label: str | None = None,
    ) -> list[int]:
        """Returns the ids of turns, the last a question, up to where the answer begins, as a training sample has them.

        Raises:
            SampleError: they are too long, or hold a control token: a template was put around them already.
        """
        segments = self._render([*turns, Turn("gpt", None, label)], len(media_tokens), system)
        if written := written_control_token(segments, self.tokenizer, self.control_tokens):
            raise SampleError(
                f"the text contains {written!r}, a special token of the template; give the question alone"
            )
        whole, _ = self._ids(segments, media_tokens)
        if len(whole) > self.max_length:
            raise SampleError(
                f"the prompt takes {len(whole)} tokens, more than encoder_seq_length={self.max_length}; "
                "shorten it"
            )
        return whole

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the tokenizer's end of sequence and the template's own special end."""
        ids = {self.tokenizer.eos_token_id}
        if self.template.special_end is not None:
            ids.add(self.tokenizer.convert_tokens_to_ids(self.template.special_end))
        return tuple(ids)

    @property
    def end_strings(self) -> tuple[str, ...]:
        """Text that ends an answer: the template's end where that is no special token (`plain`'s new line)."""
        end = self.template.end
        return () if end is None or self.template.special_end is not None else (end,)

    def _render(self, turns: Sequence[Turn], image_count: int, system: str | None) -> list[Segment]:
        system = self.system if system is None else system
        if placeholders(turns) != image_count:
            raise SampleError(
                f"found {placeholders(turns)} {IMAGE_PLACEHOLDER} placeholders for {image_count} images; "
                "each image needs exactly one",
                "placeholders",
            )
        if IMAGE_PLACEHOLDER in (system or ""):
            raise SampleError(f"the system prompt holds {IMAGE_PLACEHOLDER}; images belong into the turns")
        if self.sep_image_conv_front:
            turns = move_images_to_front(turns)
        segments = render(self.template, turns, system, self.tokenizer.eos_token)
        return around_images(segments, self.image_tags) if self.image_tags else segments
