"""The text of an answer while it grows, in pieces that are never taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neva.inference.answer import cut
from neva.inference.stopping import UNFINISHED


class TextInPieces:
    """Pieces of an answer's text whose sum is what `neva infer` writes: cut at its end, without space around it.

    What may still change is held back: bytes of an unfinished character, the beginning of an end string, space.
    Only the last few tokens are decoded at each step.

    Args:
        decode: the text of ids, without special tokens.
        ends: strings in front of which the answer ends.
    """

    def __init__(self, decode: Callable[[list[int]], str], ends: Sequence[str]) -> None:
        self._decode, self._ends = decode, ends
        self._ids: list[int] = []
        self._text = ""
        self._start, self._read = 0, 0  # what is decoded again for its context; what is in the text
        self._sent = ""

    def add(self, ids: Sequence[int]) -> str:
        """Returns what the next tokens add to the text, as far as it stays."""
        self._ids += ids
        known = self._decode(self._ids[self._start : self._read])
        recent = self._decode(self._ids[self._start :])
        new = recent[len(known) :]
        if new and not new.endswith(UNFINISHED):  # without text there is no context for what follows
            self._text += new
            self._start, self._read = self._read, len(self._ids)
        return self._piece(self._settled())

    def rest(self) -> str:
        """Returns the last piece, when the answer has ended."""
        return self._piece(cut(self._decode(self._ids), self._ends).strip())

    def _settled(self) -> str:
        text = cut(self._text, self._ends)
        held = max((_overlap(text, end) for end in self._ends), default=0)
        return text[: len(text) - held].strip()

    def _piece(self, text: str) -> str:
        piece = text[len(self._sent) :]
        self._sent += piece
        return piece


def _overlap(text: str, end: str) -> int:
    """Returns how many characters at the end of a text are the beginning of `end`."""
    return next((count for count in range(min(len(end), len(text)), 0, -1) if text.endswith(end[:count])), 0)
