"""Where an answer ends: end strings, found as it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What the bytes of a character are decoded to before its last byte is there."""
_MARGIN = 16
"""Characters that a decoder may treat otherwise at the start of a text: leading spaces, clean-up around punctuation."""
_MOVES_EVERY = 16
"""Tokens."""


class EndStrings:
    """Whether an answer contains one of the end strings; asked after each of its tokens, it decodes the last few alone.

    The text is decoded from a token on that lies more than the longest end string back, and moves on behind whole
    characters. Because a decoder may read the tokens at such a start differently, what is found there is looked up in
    the whole text.

    Args:
        ends: the end strings.
        decode: the text of ids, special tokens included.
    """

    def __init__(self, ends: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self._ends = ends
        self._decode = decode
        self._reach = max(map(len, ends), default=0) + _MARGIN
        self._start, self._next_start = 0, 0

    def __call__(self, ids: list[int]) -> bool:
        """Returns whether the text of `ids`, which go on from those of the last call, contains an end string."""
        if not self._ends:
            return False
        text = self._decode(ids[self._start :])
        if self._contains_end(text) and (self._start == 0 or self._contains_end(self._decode(ids))):
            return True
        if (len(ids) - self._next_start) % _MOVES_EVERY == 0:
            recent = self._decode(ids[self._next_start :])
            if len(recent) >= self._reach and not recent.endswith(UNFINISHED):
                self._start, self._next_start = self._next_start, len(ids)
        return False

    def _contains_end(self, text: str) -> bool:
        return any(end in text for end in self._ends)
