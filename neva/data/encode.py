"""From a conversation to token ids and labels: one tokenisation, loss flags by character position."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from transformers import PreTrainedTokenizerFast

from neva.constants import IGNORE_INDEX, IMAGE_PLACEHOLDER, IMAGE_TOKEN_ID
from neva.data.control_tokens import marked_tokenizer, written_control_token
from neva.errors import SampleError
from neva.templates.template import Segment, Template, Turn, move_images_to_front, render


def encode(
    segments: Sequence[Segment],
    tokenizer: PreTrainedTokenizerFast,
    image_tokens: int,
    bos: bool,
    max_length: int,
) -> tuple[list[int], list[int]]:
    """Returns token ids and labels of the same length, not shifted, at most `max_length`.

    Text between two `<image>` placeholders is tokenised in one call, each such chunk on its own, as in
    LLaVA's `tokenizer_image_token`; a placeholder becomes `image_tokens` times `IMAGE_TOKEN_ID`. A token
    carries loss when its first character lies in a segment that does. `bos` puts the tokenizer's
    beginning-of-sequence token first, where it has one. A special token that stands in a text is read as its
    characters. Text beyond `max_length` is truncated on the right; an image there is a `SampleError`.
    """
    texts = [segment.text for segment in segments]
    tokenize: Callable[[str], tuple[list[int], list[tuple[int, int]]]] = partial(_tokenize, tokenizer)
    if written_control_token(segments, tokenizer) is not None:
        tokenize = marked = marked_tokenizer(tokenizer)
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
            input_ids += [IMAGE_TOKEN_ID] * image_tokens
            labels += [IGNORE_INDEX] * image_tokens
        ids, offsets = tokenize(chunk)
        input_ids += ids
        labels += [
            token if has_loss[bisect_right(ends, chunk_start + first)] else IGNORE_INDEX
            for token, (first, _) in zip(ids, offsets, strict=True)
        ]
        chunk_start += len(chunk) + len(IMAGE_PLACEHOLDER)
    if IMAGE_TOKEN_ID in input_ids[max_length:]:
        raise SampleError(
            f"the sequence of {len(input_ids)} tokens must be cut to encoder_seq_length={max_length}, "
            "which would cut an image; raise encoder_seq_length or shorten the record"
        )
    return input_ids[:max_length], labels[:max_length]


def _tokenize(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return tokens["input_ids"], tokens["offset_mapping"]


@dataclass(frozen=True)
class ConversationEncoder:
    """Everything that decides which ids a conversation becomes, for training and inference alike."""

    tokenizer: PreTrainedTokenizerFast
    template: Template
    image_tokens: int
    max_length: int
    sep_image_conv_front: bool
    system: str | None = None
    """The system prompt of conversations that bring none; None: the template's own."""

    def sample(
        self, turns: Sequence[Turn], image_count: int, system: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Returns ids and unshifted labels of a training sample; SampleError when no label is left."""
        segments = self._render(turns, image_count, system)
        input_ids, labels = encode(
            segments, self.tokenizer, self.image_tokens, self.template.begins_with_bos, self.max_length
        )
        # The first position has no predecessor that could predict it.
        if all(label == IGNORE_INDEX for label in labels[1:]):
            raise SampleError(
                f"no token carries loss within encoder_seq_length={self.max_length}; "
                "the answers are missing or cut off"
            )
        return input_ids, labels

    def prompt(self, question: str, image_count: int, system: str | None = None) -> list[int]:
        """Returns the ids of a question up to where the answer begins, as a training sample has them.

        Raises:
            SampleError: it is too long, or holds a control token: a template was put around it already.
        """
        segments = self._render([Turn("human", question), Turn("gpt", None)], image_count, system)
        if written := written_control_token(segments, self.tokenizer):
            raise SampleError(
                f"the text contains {written!r}, a special token of the template; give the question alone"
            )
        whole, _ = encode(
            segments, self.tokenizer, self.image_tokens, self.template.begins_with_bos, max_length=sys.maxsize
        )
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
        placeholders = sum((turn.text or "").count(IMAGE_PLACEHOLDER) for turn in turns)
        if placeholders != image_count:
            raise SampleError(
                f"found {placeholders} {IMAGE_PLACEHOLDER} placeholders for {image_count} images; "
                "each image needs exactly one"
            )
        if IMAGE_PLACEHOLDER in (system or ""):
            raise SampleError(f"the system prompt holds {IMAGE_PLACEHOLDER}; images belong into the turns")
        if self.sep_image_conv_front:
            turns = move_images_to_front(turns)
        return render(self.template, turns, system, self.tokenizer.eos_token)
