"""Multiple choice: the letter that an answer names, or the option whose text it says.

What is read out of an answer is what VLMEvalKit's `exact_matching` reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from neva.errors import DataError
from neva.metrics.metric import Reference, Verdict, register_metric

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WITHOUT_OPTIONS = dict.fromkeys("ABCD", "")
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LAST = 4
"""A lone letter counts among this many last words: further in front, `A` is more likely an article."""
SENTENCE = re.compile(r"answer\s+is\s+\**([A-D])\**", re.IGNORECASE)


def judge(text: str, reference: Reference) -> Verdict:
    """Returns 1 when the letter that is read is the right one.

    Raises:
        DataError: the reference names no letter or option.
    """
    truth = right_letter(reference)
    letter = chosen(text, reference.options or WITHOUT_OPTIONS)
    return Verdict(float(letter == truth), letter, truth)


def chosen(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the option that an answer chooses; None: it does not say, or names several."""
    words = text.translate(MARKS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - LAST:
        return named[0]
    found = SENTENCE.search(text)
    if found and found[1].upper() in options:
        return found[1].upper()
    return _said(text.lower(), {letter: option.lower() for letter, option in options.items()})


def _said(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the only option whose text an answer contains, unless it is much longer than all options together."""
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, option in options.items() if option and option in text]
    return found[0] if len(found) == 1 else None


def right_letter(reference: Reference) -> str:
    """Returns the letter of the right option, which a reference gives as such or by its text.

    Raises:
        DataError: it gives neither.
    """
    letters = list(reference.options) or list(WITHOUT_OPTIONS)
    answer = reference.answers[0].strip()
    if answer.strip("().").upper() in letters:
        return answer.strip("().").upper()
    for letter, option in reference.options.items():
        if option.strip() == answer:
            return letter
    raise DataError(
        f"its answer is {answer!r:.80}; expected one of {', '.join(letters)}, or the text of an option"
    )


register_metric("multiple_choice", "letters of options, or their texts", judge)
