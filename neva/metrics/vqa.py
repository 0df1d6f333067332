"""VQA accuracy: an answer is right when three of the ten people who were asked gave it.

Source: https://visualqa.org/evaluation.html and its `vqaEval.py`. Every answer is normalised; `vqaEval.py` leaves
those alone on which all ten people agree, which later ports of it dropped.
"""

from __future__ import annotations

import re

from neva.errors import DataError
from neva.metrics.metric import Reference, Verdict, register_metric

ENOUGH = 3
"""People besides the one left out who make an answer right."""

ARTICLES = {"a", "an", "the"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(DIGITS)}}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_WITH_COMMA = re.compile(r"\d,\d")
LOOSE_PERIOD = re.compile(r"\.(?!\d)")
"""A period that no digit follows. vqaEval.py means to spare one behind a digit too; its expression does not."""

APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {
    **{written: word for word in APOSTROPHES.split() for written in _without_one_apostrophe(word)},
    "somebody'd": "somebodyd",  # the one that vqaEval.py turns round
}
"""Words that lack one apostrophe, to what they mean; not `shed` and others that are words."""


def judge(text: str, reference: Reference) -> Verdict:
    """Returns the mean, over the people left out in turn, of `min(1, others who said the same / 3)`.

    Raises:
        DataError: fewer answers than can make any answer right.
    """
    if len(reference.answers) <= ENOUGH:
        raise DataError(
            f"it has {len(reference.answers)} answers; vqa wants those of ten people, and no fewer than {ENOUGH + 1}: "
            "take exact_match for questions with one answer"
        )
    said = normalised(text)
    answers = [normalised(answer) for answer in reference.answers]
    count = answers.count(said)
    scores = [min(1.0, (count - (answer == said)) / ENOUGH) for answer in answers]
    return Verdict(sum(scores) / len(scores), said, max(answers, key=answers.count))


def normalised(answer: str) -> str:
    """Returns an answer without punctuation and articles, numbers up to ten as digits, apostrophes put back."""
    text = _without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """Drops a mark that stands beside a space anywhere, or beside digits with a comma; puts a space for any other."""
    has_comma = NUMBER_WITH_COMMA.search(text) is not None
    found = text
    for mark in PUNCTUATION:
        is_outside = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if is_outside or has_comma else " ")
    return LOOSE_PERIOD.sub("", found)


register_metric("vqa", "VQA accuracy over the answers of ten people", judge)
