"""Control tokens that somebody wrote into a text: recognised, and read as the characters that they are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from neva.constants import IMAGE_PLACEHOLDER
from neva.errors import ConfigError, SampleError
from neva.templates.template import Segment

MARK = "\ufdd0{}\ufdd1"
"""How a template's control tokens are written where a text has the same characters: between two that no text has."""


LITERAL = "\ufdd2" + IMAGE_PLACEHOLDER[1:]
"""How `<image>` is written in a text where it means these seven characters and no image; as long as they are."""


@lru_cache(maxsize=4)
def special_tokens(
    tokenizer: PreTrainedTokenizerFast, own: tuple[str, ...] = ()
) -> tuple[frozenset[str], re.Pattern[str]]:
    """Returns the control tokens of a tokenizer, and a pattern that finds the longest of them.

    These are its special tokens but `<image>`, and those of `own`, which a template writes, that were added to it
    without being called special, as `<extra_id_0>` is in a tokenizer.model.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {str(token) for token in added if token.special or str(token) in own}
    special = (special | set(tokenizer.all_special_tokens)) - {IMAGE_PLACEHOLDER}
    sought = {*special, LITERAL} if IMAGE_PLACEHOLDER in map(str, added) else special
    longest_first = sorted(sought, key=len, reverse=True)
    return frozenset(special), re.compile("|".join(map(re.escape, longest_first)))


def written_control_token(
    segments: Sequence[Segment], tokenizer: PreTrainedTokenizerFast, own: tuple[str, ...] = ()
) -> str | None:
    """Returns a control token that stands in the text of a segment which is none itself; None: there is none.

    `own`: what the template writes as control tokens.

    Raises:
        ConfigError: a special segment is no control token of the tokenizer.
    """
    special, pattern = special_tokens(tokenizer, own)
    written = None
    for segment in segments:
        if segment.is_special and segment.text not in special:
            raise ConfigError(
                f"the conversation template writes {segment.text!r}, which is not a special token of the "
                "tokenizer; add it there or choose another model.data.conv_template"
            )
        if not segment.is_special and special and (found := pattern.search(segment.text)):
            written = written or found.group()
    return written


class MarkedTokenizer:
    """A copy of a tokenizer that knows special tokens under marked names alone, so that plain ones are text.

    All else is the same: spaces, normalisation, ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, own: tuple[str, ...] = ()) -> None:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        self._special = special_tokens(tokenizer, own)[0] | {IMAGE_PLACEHOLDER}
        added = content["added_tokens"]
        self._copy = Tokenizer.from_str(json.dumps({**content, "added_tokens": []}))
        self._id_of: dict[int | None, int] = {}
        for token in added:
            name = self.mark(token["content"])
            flags = {flag: token[flag] for flag in ("single_word", "lstrip", "rstrip", "normalized")}
            self._copy.add_tokens([AddedToken(name, special=token["special"], **flags)])
            self._id_of[self._copy.token_to_id(name)] = token["id"]
        special = {token["id"] for token in added if token["content"] in self._special}
        self._refused = special - {tokenizer.unk_token_id}  # that one stands for what has no token

    def mark(self, text: str) -> str:
        """Returns how a special token is written for this tokenizer; other text as it is."""
        return MARK.format(text) if text in self._special else text

    def __call__(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of a text and the characters that each stands for.

        Raises:
            SampleError: the tokenizer has no way to write a special token's characters.
        """
        encoding = self._copy.encode(text, add_special_tokens=False)
        ids = [self._id_of.get(token, token) for token in encoding.ids]
        for token, found in zip(ids, encoding.ids, strict=True):
            if token in self._refused and found not in self._id_of:
                raise SampleError(
                    f"the text contains {self._copy.id_to_token(found)!r}, which the tokenizer can only read as a "
                    "special token; remove or rewrite it"
                )
        return ids, encoding.offsets


@lru_cache(maxsize=4)
def marked_tokenizer(tokenizer: PreTrainedTokenizerFast, own: tuple[str, ...] = ()) -> MarkedTokenizer:
    """Returns the copy of a tokenizer, which is made once."""
    return MarkedTokenizer(tokenizer, own)
